"""Text-to-image models as pipelines of diffusers and as LoRA files: the same images there."""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tests.tiny_diffusion import DATA, TINY

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import (
    ConsistencyBoundary,
    Epsilon,
    Flow,
    LcmBoundary,
    SamplePrediction,
    Velocity,
)
from fewstep.diffusion.process import RectifiedFlow, VariancePreservingTable
from fewstep.diffusion.samplers import FlowMap, Ode, Renoise
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun
from fewstep.diffusion.times import Explicit, Segments, Strided, Trailing, Uniform
from fewstep.export.card import Card
from fewstep.export.lora import export_lora, labels_of, round_addition
from fewstep.export.rounding import round_model
from fewstep.export.schedules import schedule_of
from fewstep.export.stable_diffusion import call_of, ends_of, export_pipeline, pipeline_of
from fewstep.models.adapters import merged
from fewstep.models.folder import load
from fewstep.models.lora import Lora
from fewstep.models.lora_files import delta, merge
from fewstep.models.named import shipped

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CARD = Card("a small one")
TABLE = VariancePreservingTable()
FIXED = Guidance("fixed", 7.0, 7.0, 7.0)
NESTED = Segments(Trailing(), 40)  # of which every fourth, tenth … is an index of DDIM's own
LCM = Strided(Trailing(), 50)


def tiny(prediction=None, sampler=None, guidance=None, process=TABLE):
    """A random Stable Diffusion whose weights are everywhere."""
    source = dataclasses.replace(TINY, process=process, parameterization=prediction or Epsilon())
    model = source.load(DATA, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in (model.denoiser, model.codec, model.conditioner):
        for parameter in module.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return dataclasses.replace(
        model,
        sampler=sampler or Ode(4, Trailing(), Euler()),
        guidance=guidance or FIXED,
        examples={"caption": ["a red circle", "two blue squares"]},
        card={"method": {"kind": "multi_boundary"}},
    )


MODELS = {
    "ddim": (
        None,
        Ode(4, Trailing(), Euler()),
        Guidance("doubled", 1.0, 8.0, 3.0),
        "DDIMScheduler",
    ),
    "ddim to index 0": (None, Ode(4, Trailing("t_min"), Euler()), FIXED, "DDIMScheduler"),
    "2m": (
        *(Velocity(), Ode(5, Trailing(), Dpmpp2m()), Guidance("doubled", 1.0, 8.0, 7.5)),
        "DPMSolverMultistepScheduler",
    ),
    "multi-boundary": (None, FlowMap(4, NESTED), FIXED, "DDIMScheduler"),
    "two boundaries": (Velocity(), FlowMap(2, NESTED), Guidance(), "DDIMScheduler"),
    "segments of 50": (
        *(None, FlowMap(4, Segments(Trailing("t_min"), 50)), FIXED),
        "DPMSolverMultistepScheduler",
    ),
    "three steps": (None, FlowMap(3, Trailing()), FIXED, "DPMSolverMultistepScheduler"),
    "one step": (SamplePrediction(), Renoise(1, Trailing()), FIXED, "DDIMScheduler"),
    "lcm": (LcmBoundary(), Renoise(4, LCM), FIXED, "LCMScheduler"),
    "lcm of v": (LcmBoundary(Velocity()), Renoise(3, LCM), FIXED, "LCMScheduler"),
    "dmd2": (
        *(None, Renoise(3, Explicit(((749.0, 499.0),), "t_data")), Guidance()),
        "LCMScheduler",
    ),
    "consistency to the data": (
        *(ConsistencyBoundary(Velocity(), "t_data"), Renoise(4, Strided(Trailing(), 40)), FIXED),
        "LCMScheduler",
    ),
    "scm": (
        *(ConsistencyBoundary(Velocity(), "t_data"), Renoise(2, Uniform(whole=True)), FIXED),
        "LCMScheduler",
    ),
    "tcd": (
        *(None, FlowMap(4, Strided(Trailing("t_min"), 50), 0.3, "time"), FIXED),
        "TCDScheduler",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_pipeline_makes_the_same_images(tmp_path, name):
    prediction, sampler, guidance, scheduler = MODELS[name]
    model = tiny(prediction, sampler, guidance)
    schedule = schedule_of(model.denoiser, model.sampler)
    assert schedule.name == scheduler
    assert schedule.times == sampler.grid(TABLE)[:-1].round().int().tolist()
    assert export_pipeline(model, tmp_path / "made", CARD) <= 1e-4
    index = json.loads((tmp_path / "made" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", scheduler]


@pytest.mark.parametrize("name", ["2m", "multi-boundary", "lcm of v", "tcd"])
def test_it_comes_back_as_it_was(tmp_path, name):
    prediction, sampler, guidance, _ = MODELS[name]
    model = tiny(prediction, sampler, guidance)
    export_pipeline(model, tmp_path / "made", CARD)
    again = load(tmp_path / "made")
    assert (again.sampler, again.guidance) == (sampler, guidance)
    assert (again.examples, again.card) == (model.examples, model.card)
    assert torch.allclose(again.generate(num=2), model.generate(num=2), atol=1e-6)
    assert again.distilled == model.distilled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_the_size(tmp_path, dtype):
    """The weights are those that fit into 16 bits, and what was exported comes back with them."""
    model = tiny(None, Ode(4, Trailing(), Euler()))
    whole = model.generate(num=2)
    round_model(model, dtype)
    assert not torch.equal(model.generate(num=2), whole)
    assert export_pipeline(model, tmp_path / "made", CARD, dtype) <= 1e-4
    files = [*(tmp_path / "made").rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:
        assert {one.dtype for one in load_file(file).values()} == {dtype}
    assert torch.allclose(load(tmp_path / "made").generate(num=2), model.generate(num=2), atol=1e-6)


def test_too_large_for_16_bits():
    model = tiny()
    next(model.denoiser.parameters()).data[0] = 1e5
    with pytest.raises(ValueError, match=r"1e\+05 are too large for fp16"):
        round_model(model, torch.float16)
    round_model(model, torch.bfloat16)


def test_a_damaged_note_of_an_export_is_named(tmp_path):
    export_pipeline(tiny(), tmp_path / "made", CARD)
    file = tmp_path / "made" / "fewstep.json"
    plain = json.loads(file.read_text())
    for name, value in (("sampler", {"kind": "odd"}), ("guidance", 3), ("card", [1])):
        file.write_text(json.dumps({"model": {**plain["model"], name: value}}))
        with pytest.raises(ValueError, match=r"fewstep\.json"):
            load(tmp_path / "made")


def test_what_reads_the_guidance_is_told_it(tmp_path):
    """By the pipeline's own embedding of guidance_scale, which other scales would change."""
    plain = tiny(LcmBoundary(), Renoise(2, LCM))
    generator = torch.Generator().manual_seed(3)
    network = plain.denoiser.network.with_inputs({"guidance"})
    projection = network.module.time_embedding.cond_proj.weight
    projection.data = torch.randn(projection.shape, generator=generator)
    denoiser = Denoiser(network, TABLE, LcmBoundary()).eval()
    model = dataclasses.replace(
        plain, denoiser=denoiser, guidance=Guidance("input", 3.0, 15.0, 8.0)
    )
    assert export_pipeline(model, tmp_path / "made", CARD) <= 1e-4
    other = dataclasses.replace(model, guidance=Guidance("input", 3.0, 15.0, 4.0))
    assert not torch.allclose(model.generate(num=2), other.generate(num=2), atol=1e-3), (
        "the scale changes nothing, so nothing was tested"
    )


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"sampler": Ode(4, Trailing(), Heun())}, "heun"),
        ({"sampler": Ode(4, Uniform(), Dpmpp2m())}, "between"),
        ({"sampler": FlowMap(4, LCM, 0.3, "level")}, "level"),
        ({"sampler": FlowMap(4, LCM, 0.3, "time")}, "ends at index 0"),
        ({"sampler": Ode(4, Trailing(), Euler(), churn=1.0)}, "churn"),
        ({"process": RectifiedFlow(), "prediction": Flow()}, "rectified_flow"),
        ({"prediction": Flow()}, "flow"),
        ({"guidance": Guidance("doubled", 1.0, 8.0, 3.0, (100.0, 900.0))}, "fades"),
        ({"prediction": LcmBoundary(), "sampler": Ode(2, Trailing(), Euler())}, "boundary"),
        ({"process": VariancePreservingTable(t_max=500.0)}, "part of one"),
    ],
)
def test_what_diffusers_cannot_say(tmp_path, parts, says):
    with pytest.raises(ValueError, match=says):
        export_pipeline(tiny(**parts), tmp_path / "made", CARD)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("sampler", [FlowMap(2, NESTED), MODELS["tcd"][1]])
def test_the_end_of_a_jump_is_told_as_the_card_says(tmp_path, sampler):
    model = flow_map(sampler)
    assert export_pipeline(model, tmp_path / "made", CARD) <= 1e-4
    again = load(tmp_path / "made")
    assert torch.allclose(again.generate(num=2), model.generate(num=2), atol=1e-6)
    ends = sampler.grid(TABLE).round().int().tolist()[1:]
    if sampler.gamma:
        ends[:-1] = [int(0.7 * end) for end in ends[:-1]]
    assert list(ends_of(model).values()) == ends
    assert f"{ends[0]}.0" in (tmp_path / "made" / "README.md").read_text()


def flow_map(sampler):
    """A model whose U-Net reads where its jump ends."""
    model = tiny(None, sampler)
    network = model.denoiser.network.with_inputs({"s"})
    last = network.module.class_embedding.linear_2
    last.weight.data = torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(5))
    model.denoiser = Denoiser(network, TABLE, Epsilon()).eval()
    return model


def student(alpha=None, targets=("all",), inputs=frozenset(), base=None, seed=4):
    """A LoRA student with random additions: its model, merged, and the addition alone."""
    base = base or tiny(None, FlowMap(4, NESTED))
    clone = Lora(rank=2, alpha=alpha, targets=targets).clones(base.denoiser, seed=0)
    denoiser = clone("student", inputs=inputs)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.network.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    addition = denoiser.network.addition()
    return dataclasses.replace(base, denoiser=merged(denoiser).eval()), addition, base


@pytest.mark.parametrize(
    ("alpha", "targets"), [(None, ("all",)), (1.0, ("all",)), (8.0, ("attention",))]
)
def test_both_files_are_right_at_strength_1(tmp_path, alpha, targets):
    model, addition, base = student(alpha, targets)
    assert not torch.allclose(model.generate(num=2), base.generate(num=2), atol=1e-3)
    assert export_lora(model, addition, tmp_path / "made", "x", CARD) <= 1e-4
    # Kohya's file against a merge by hand: W + strength · alpha/dim · up down.
    tensors = load_file(tmp_path / "made" / "x.safetensors")
    network = base.denoiser.network.module
    names = {name.replace(".", "_"): name for name, _ in network.named_modules()}
    changed = 0
    for key in [key for key in tensors if key.endswith(".alpha")]:
        stem = key.removesuffix(".alpha")
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        scale = tensors[key].item() / len(down)
        weight = network.get_submodule(names[stem.removeprefix("lora_unet_")]).weight
        product = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        weight.data += scale * product
        changed += 1
    assert changed == len(addition.tensors) // 2
    mine = model.denoiser.network.state_dict()
    for name, tensor in base.denoiser.network.state_dict().items():
        assert torch.allclose(tensor, mine[name], atol=1e-6), name


def test_a_lora_of_half_the_size(tmp_path):
    """What is added is rounded, and the base is as it was."""
    model, addition, base = student()
    small = round_addition(model, addition, torch.float16)
    assert export_lora(model, small, tmp_path / "made", "x", CARD, torch.float16) <= 1e-4
    for name in ("x", "pytorch_lora_weights"):
        tensors = load_file(tmp_path / "made" / f"{name}.safetensors")
        assert {one.dtype for one in tensors.values()} == {torch.float16}
    merge(base, [str(tmp_path / "made" / "x.safetensors")], [1.0])
    mine = model.denoiser.network.state_dict()
    for name, tensor in base.denoiser.network.state_dict().items():
        assert torch.allclose(tensor, mine[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("version", "prediction", "named", "architecture"),
    [
        ("sd_v1", Epsilon(), "sd_v1", "stable-diffusion-v1/lora"),
        ("sd_v2", Epsilon(), "sd_v2", "stable-diffusion-v2-512/lora"),
        ("sd_v2", Velocity(), "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
    ],
)
def test_the_names_of_versions_in_other_tools(version, prediction, named, architecture):
    model, addition, _ = student()
    model.denoiser.parameterization = prediction
    schedule = schedule_of(model.denoiser, model.sampler)
    found = labels_of(model, addition, schedule, "x", version)
    assert found["ss_base_model_version"] == named
    assert found["modelspec.architecture"] == architecture


def test_the_metadata(tmp_path):
    model, addition, _ = student(alpha=1.0)
    for name in ("a", "b"):
        export_lora(model, addition, tmp_path / name, "x", Card("x", base="me/base"))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    expected = ["README.md", "fewstep.json", "pytorch_lora_weights.safetensors", "x.safetensors"]
    assert files == expected
    for file in files:
        contents = [(tmp_path / name / file).read_bytes() for name in ("a", "b")]
        assert contents[0] == contents[1], f"{file} has other bytes each time"
    with safe_open(tmp_path / "a" / "x.safetensors", "pt") as file:
        found = file.metadata()
    assert found["ss_network_dim"] == "2"
    assert found["ss_network_alpha"] == "1"
    assert found["ss_base_model_version"] == "sd_v1"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["fewstep.times"] == "999,749,499,249"
    assert found["fewstep.guidance"] == "1"
    usage = "strength 1, CFG 1, 4 steps, sampler euler, scheduler sgm_uniform"
    assert found["fewstep.usage"] == usage
    card = (tmp_path / "a" / "README.md").read_text()
    for text in ('base_model: "me/base"', "- lora", "- multi_boundary", "strength 1, CFG 1"):
        assert text in card


def test_an_addition_that_is_not_whole(tmp_path):
    model, addition, _ = student(inputs=frozenset({"guidance"}))
    with pytest.raises(ValueError, match="guidance, which no LoRA file"):
        export_lora(model, addition, tmp_path / "made", "x", CARD)
    assert not (tmp_path / "made").exists()


def test_delta_of_a_convolution_is_one_after_the_other():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(2, 3, 3, 3, generator=generator),
        torch.randn(4, 2, 1, 1, generator=generator),
    )
    x = torch.randn(1, 3, 5, 5, generator=generator)
    conv = torch.nn.functional.conv2d
    assert torch.allclose(conv(x, delta(a, b)), conv(conv(x, a), b), atol=1e-5)


def snippet_of(card):
    return card.split("```python\n")[1].split("```")[0]


def of_a_style(tmp_path, base):
    """A student of the base with somebody's own LoRA in it, exported to `style`, with that LoRA."""
    model, addition, _ = student(base=base, seed=6)
    export_lora(model, addition, tmp_path / "theirs", "own", CARD)
    styled = copy.deepcopy(base)
    merge(styled, [str(tmp_path / "theirs" / "own.safetensors")], [0.5])
    model, addition, _ = student(base=styled)
    model.card = {**model.card, "lora": [["own.safetensors", 0.5]]}
    export_lora(model, addition, tmp_path / "style", "y", Card("y", base="../base"))
    shutil.copy(tmp_path / "theirs" / "own.safetensors", tmp_path / "style")
    return model


def expected_of(model):
    """What the snippet of its card makes, in this process."""
    schedule = schedule_of(model.denoiser, model.sampler)
    pipeline = pipeline_of(model, schedule)
    pipeline.set_progress_bar_config(disable=True)
    called = {**call_of(model, schedule), "generator": torch.Generator().manual_seed(0)}
    return pipeline(model.examples["caption"][0], **called).images[0]


def test_the_snippets_of_the_cards_run(tmp_path):
    """In a new process, without fewstep, and make the model's image; those of what is stored in 16
    bits, and of the shipped teacher, too.
    """
    model, addition, base = student()
    export_pipeline(base, tmp_path / "base", CARD)
    models = {"base": base, "lora": model, "style": of_a_style(tmp_path, base)}
    export_lora(model, addition, tmp_path / "lora", "x", Card("x", base="../base"))
    export_pipeline(flow_map(FlowMap(2, NESTED)), tmp_path / "jumps", CARD)
    half = copy.deepcopy(base)
    round_model(half, torch.float16)
    export_pipeline(half, tmp_path / "half", CARD, torch.float16)
    shutil.copytree(shipped()["shapes_teacher"], tmp_path / "shipped")
    models |= {"half": half, "shipped": load("shapes_teacher")}
    names = (*models, "jumps")
    lines = ["import os, sys"]
    for name in names:
        code = snippet_of((tmp_path / name / "README.md").read_text())
        lines += [f"os.chdir({str(tmp_path / name)!r})", f"exec({code!r}, {{}})"]
    lines.append("assert 'fewstep' not in sys.modules")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    for name in names:
        assert (tmp_path / name / "image.png").is_file()
    wanted = {name: np.asarray(expected_of(one), int) for name, one in models.items()}
    for name, image in wanted.items():
        made = np.asarray(Image.open(tmp_path / name / "image.png"), int)
        assert np.abs(made - image).max() <= 1, name
    assert np.abs(wanted["style"] - wanted["lora"]).max() > 1
    card = (tmp_path / "style" / "README.md").read_text()
    assert "| base | ../base with own.safetensors at 0.5 |" in card
