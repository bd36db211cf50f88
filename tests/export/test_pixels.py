"""Models of pixels and of latents with a class as folders of diffusers, and back."""

import copy
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.made import TINY, stirred
from tests.models.test_pixel_pipelines import CM, EXACT, saved, transformer_pipeline

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import (
    CmBoundary,
    ConsistencyBoundary,
    Edm,
    Epsilon,
    LcmBoundary,
)
from fewstep.diffusion.process import VarianceExploding, VariancePreservingTable
from fewstep.diffusion.samplers import FlowMap, Ode, Renoise
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun
from fewstep.diffusion.times import Explicit, Karras, Segments, Strided, Trailing
from fewstep.export.card import Card
from fewstep.export.diffusers import export_diffusers
from fewstep.export.rounding import round_model
from fewstep.models.codec import UnitPixels
from fewstep.models.folder import load
from fewstep.models.source import Fresh
from fewstep.models.space import image_space

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CARD = Card("a small one")
TABLE = VariancePreservingTable()
KARRAS = Karras(7.0, "t_min")
LCM = Strided(Trailing(), 50)


def pixels(prediction, sampler, process=TABLE, classes=0, null=False):
    """One of ours, with weights everywhere."""
    source = Fresh(network=TINY, process=process, parameterization=prediction, null=null)
    model = source.load(image_space((3, 8, 8), classes), seed=0)
    stirred(model.denoiser.network, 1)
    model.sampler = sampler
    return model


def theirs(folder, prediction, sampler):
    """A network of diffusers, from its own folder, as what a method made of it."""
    scheduler = diffusers.DDIMScheduler(**EXACT)
    saved(folder, "DDIMPipeline", scheduler)
    teacher = load(folder)
    denoiser = Denoiser(teacher.denoiser.network, TABLE, prediction).eval()
    return teacher.with_student(denoiser, sampler, Guidance(), {"method": {"kind": "x"}}, {})


def back(model, folder):
    """The exported model, loaded again, and how far diffusers' own images were away."""
    difference = export_diffusers(model, folder, CARD)
    return load(folder), difference


def same(model, again):
    images = model.generate(num=6, seed=5)
    assert images.std() > 0.02
    assert torch.equal(again.generate(num=6, seed=5), images)
    assert again.sampler == model.sampler
    assert again.guidance == model.guidance
    assert again.denoiser.parameterization == model.denoiser.parameterization


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_consistency_student_of_ours_comes_back_to_the_bit(tmp_path, classes, steps):
    model = pixels(CmBoundary(), Renoise(steps, KARRAS), VarianceExploding(), classes)
    if steps == 3:  # of which the pipeline's own grid has no like
        with pytest.raises(ValueError, match=r"another grid of 3 steps .* --steps 1, 2, 4"):
            export_diffusers(model, tmp_path / "out", CARD)
        return
    again, difference = back(model, tmp_path / "out")
    assert difference < 1e-5
    same(model, again)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "ConsistencyModelPipeline"


def test_the_label_that_means_any_is_left_out(tmp_path):
    """No pipeline knows it, and a student that is not guided does not need it."""
    model = pixels(CmBoundary(), Renoise(2, KARRAS), VarianceExploding(), 10, null=True)
    again, _ = back(model, tmp_path / "out")
    same(model, again)
    assert model.conditioner.null
    assert not again.conditioner.null


SAMPLERS = {
    "LCMScheduler": (LcmBoundary(Epsilon()), Renoise(4, LCM)),
    "DDIMScheduler": (Epsilon(), Ode(10, Trailing(), Euler())),
    "DPMSolverMultistepScheduler": (Epsilon(), Ode(8, Trailing(), Dpmpp2m())),
}


@pytest.mark.parametrize("scheduler", SAMPLERS)
@pytest.mark.parametrize("make", ["ours", "theirs"])
def test_models_on_a_table_come_back_to_the_bit(tmp_path, scheduler, make):
    prediction, sampler = SAMPLERS[scheduler]
    if make == "ours":
        model = pixels(prediction, sampler)
    else:
        model = theirs(tmp_path / "teacher", prediction, sampler)
    again, difference = back(model, tmp_path / "out")
    assert difference < 1e-4
    same(model, again)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert index["scheduler"] == ["diffusers", scheduler]


def test_a_consistency_model_of_others_is_written_again(tmp_path):
    scheduler = diffusers.CMStochasticIterativeScheduler(4001)
    saved(tmp_path / "m", "ConsistencyModelPipeline", scheduler, **CM)
    model = load(tmp_path / "m")
    assert model.clip == 1.0
    again, difference = back(model, tmp_path / "out")
    assert difference < 1e-5
    assert again.clip == 1.0
    same(model, again)


def test_a_transformer_comes_back(tmp_path):
    transformer_pipeline().save_pretrained(tmp_path / "m")
    model = load(tmp_path / "m")
    model.sampler = model.sampler.with_steps(5)
    again, difference = back(model, tmp_path / "out")
    assert difference < 1e-4
    assert torch.equal(again.generate([3, 4], seed=1), model.generate([3, 4], seed=1))


def test_in_16_bits(tmp_path):
    model = pixels(CmBoundary(), Renoise(2, KARRAS), VarianceExploding())
    round_model(model, torch.float16)
    export_diffusers(model, tmp_path / "out", CARD, torch.float16)
    same(model, load(tmp_path / "out"))


def test_the_snippets_of_the_cards_run(tmp_path):
    """In a new process, without fewstep, and make the model's image."""
    transformer_pipeline().save_pretrained(tmp_path / "m")
    models = {
        "cm": pixels(CmBoundary(), Renoise(2, KARRAS), VarianceExploding(), 10),
        "table": theirs(tmp_path / "teacher", *SAMPLERS["LCMScheduler"]),
        "dit": load(tmp_path / "m"),
    }
    models["dit"].sampler = Ode(3, Trailing(), Euler())
    lines = ["import os, sys"]
    for name, model in models.items():
        export_diffusers(model, tmp_path / name, Card(name, licence="mit"))
        card = (tmp_path / name / "README.md").read_text()
        assert 'license: "mit"' in card
        assert "unconditional-image-generation" in card
        code = card.split("```python\n")[1].split("```")[0]
        lines += [f"os.chdir({str(tmp_path / name)!r})", f"exec({code!r}, {{}})"]
    lines.append("assert 'fewstep' not in sys.modules")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    for name, model in models.items():
        made = np.asarray(Image.open(tmp_path / name / "image.png"), int)
        assert made.shape[:2] == tuple(model.image_shape[1:])
        assert made.std() > 5
        called = json.loads((tmp_path / name / "fewstep.json").read_text())
        assert called["steps"] == model.sampler.steps


REFUSED = {
    "takes the time in another unit": lambda m: wrapped_edm(m),
    "asks for no class": lambda m: pixels(Epsilon(), Ode(5, Trailing(), Euler()), classes=3),
    "its sampling cuts x0": lambda m: dataclasses.replace(
        pixels(Epsilon(), Ode(5, Trailing(), Euler())), clip=1.0
    ),
    "are told the number of steps alone": lambda m: pixels(
        Epsilon(), Ode(2, Explicit(between=((300.0,),), end="t_data"), Euler())
    ),
    "no scheduler takes the steps of heun": lambda m: pixels(Epsilon(), Ode(5, Trailing(), Heun())),
    "its images are not in": lambda m: in_units(),
    "no consistency student with the published boundary": lambda m: pixels(
        Edm(), Renoise(1, KARRAS), VarianceExploding()
    ),
    "it has other inputs than noise level and label": lambda m: with_an_end(),
}


def wrapped_edm(folder):
    saved(folder, "DDPMPipeline", diffusers.EDMEulerScheduler())
    teacher = load(folder)
    student = Denoiser(teacher.denoiser.network, teacher.denoiser.process, CmBoundary())
    return teacher.with_student(student, Renoise(1, KARRAS), Guidance(), {}, {})


def in_units():
    model = pixels(Epsilon(), Ode(5, Trailing(), Euler()))
    model.codec = UnitPixels().build()
    return model


def with_an_end():
    model = pixels(ConsistencyBoundary(Epsilon(), "t_data"), FlowMap(2, Segments(Trailing(), 40)))
    model.denoiser.network = model.denoiser.network.with_inputs({"s"})
    return model


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_pipeline_can_hold_is_refused(tmp_path, reason):
    model = copy.deepcopy(REFUSED[reason](tmp_path / "m"))
    with pytest.raises(ValueError, match=reason) as caught:
        export_diffusers(model, tmp_path / "out", CARD)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
