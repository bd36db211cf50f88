"""Recipes are functions, found without importing what they need (what they do: test_contracts)."""

import subprocess
import sys

import numpy as np
import pytest

import fewstep
from fewstep import recipes
from fewstep.begun import load
from fewstep.data.sight import sight_of
from fewstep.export.schedules import schedule_of
from fewstep.learning.method import Clock
from fewstep.models.source import Saved
from fewstep.recipes.digits import digits_cd, digits_dit_cd
from fewstep.recipes.images import images_teacher
from fewstep.run import Run


def test_a_name_is_a_function():
    assert recipes.recipe("digits_cd") == digits_cd()
    assert isinstance(recipes.recipe("cifar10_cd_small"), Run)


def test_one_fits_itself_to_data_of_python():
    images = np.random.default_rng(0).integers(0, 256, (50, 12, 12, 3), dtype=np.uint8)
    data = fewstep.from_arrays(images, labels=[0, 1] * 25)
    run = fewstep.recipe("images_teacher", data)
    assert run == images_teacher(sight_of(data))
    assert (run.data.rows, run.data.flip) == (data.rows, True)
    assert run.teacher.network.multipliers == (1, 2)
    ready = run.prepared()
    assert ready.model.shape == (3, 12, 12)
    assert ready.model.classes == 2
    with pytest.raises(ValueError, match="digits_cd does not fit itself to pictures"):
        fewstep.recipe("digits_cd", data)


def test_what_takes_something_is_no_recipe():
    """Such functions are what recipes are made with."""
    names = set(recipes.listed())
    assert {"digits_cd", "mnist_ct", "cifar10_ect", "imagenet9_ct"} < names
    assert not names & {"student_of", "teacher_of", "small", "recipe", "listed"}


def test_a_name_says_its_family():
    for file in recipes.HERE.glob("[!_]*.py"):
        mine = [f.name for f in recipes._functions(file)]
        assert mine
        assert all(name.startswith(f"{file.stem}_") for name in mine)


def test_one_is_derived_from_another():
    first, second = digits_cd().dump(), digits_dit_cd().dump()
    assert second.pop("teacher")["path"] == "runs/digits_dit_teacher"
    first.pop("teacher")
    assert first == second


@pytest.mark.parametrize(
    ("name", "says"),
    [("digits_cdd", "did you mean digits_cd"), ("student_of", "no recipe"), ("qqq", "inspect")],
)
def test_an_unknown_one(name, says):
    with pytest.raises(ValueError, match=says):
        recipes.recipe(name)


def text_students():
    """Recipes whose teacher is a small Stable Diffusion."""
    small = [name for name in recipes.listed() if name.startswith(("shapes_", "emoji_"))]
    return [name for name in small if isinstance(recipes.recipe(name).teacher, Saved)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", text_students())
def test_diffusers_can_sample_every_student_of_captions(name):
    """There is a scheduler of its own for each; that its images are the same: test_pipelines."""
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    run, model = recipes.recipe(name), load("shapes_teacher")
    method = run.method.towards(model)
    nets = method.build_nets(model, run.adaptation.clones(model.denoiser))
    sampler = method.sampler(Clock(0, 1, 4))
    schedule = schedule_of(nets.student, sampler)
    process = model.denoiser.process
    assert schedule.times == sampler.grid(process)[:-1].tolist()
    assert schedule.name[:3] in {"DDI", "LCM", "DPM", "TCD"}


def test_listing_imports_nothing():
    code = "import sys; from fewstep.recipes import listed; assert len(listed()) > 30; "
    code += "assert not {'torch', 'fewstep.run'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
