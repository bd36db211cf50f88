"""The shipped text-to-image teacher: what it was shipped for."""

import subprocess
import sys

import pytest
import torch

from fewstep.data.captions import one_of_each
from fewstep.data.shape_reader import follows, read
from fewstep.data.shapes import Shapes
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Dpmpp2m, Euler
from fewstep.diffusion.times import Trailing
from fewstep.models.folder import load
from fewstep.models.named import shipped
from fewstep.models.request import Request

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

MOST = 25_000_000  # bytes
PLAIN = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1]).to(torch.float32)
pipe.set_progress_bar_config(disable=True)
latents = torch.load(sys.argv[2])
images = pipe(["a small red circle", "a blue square"], latents=latents, num_inference_steps=4,
              guidance_scale=3.0, output_type="pt").images
torch.save(images, sys.argv[2])
assert "fewstep" not in sys.modules
"""


@pytest.fixture(scope="module")
def teacher():
    return load("shapes_teacher")


@pytest.fixture(scope="module")
def held_out():
    return Shapes(split="test").dataset()


def share_followed(model, captions, sampler):
    images = model.answer(Request({"caption": captions}, sampler=sampler, seed=0)).images()
    return sum(map(follows, captions, read(images))) / len(captions)


def test_it_is_small():
    files = [file for file in shipped()["shapes_teacher"].rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MOST
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt")]


def test_its_autoencoder_keeps_what_is_to_be_seen(teacher, held_out):
    """Of held-out pictures; the exact checker knows no others than those that can be drawn."""
    index = torch.arange(500)
    images = held_out.rows(index, ["image"])["image"].float() / 255
    with torch.no_grad():
        again = teacher.codec.decode(teacher.codec.encode(images))
    right = [one == other for one, other in zip(read(images), read(again), strict=True)]
    assert sum(right) / len(right) >= 0.97


def test_it_follows_captions(teacher, held_out):
    """1,000 of them at 50 steps: `test_at_its_own_steps`."""
    captions = one_of_each(held_out, 100, 0)
    assert share_followed(teacher, captions, Ode(8, Trailing(), Dpmpp2m())) >= 0.9


@pytest.mark.slow
def test_at_its_own_steps(teacher, held_out):
    """Six minutes on a core."""
    captions = one_of_each(held_out, 1000, 0)
    assert share_followed(teacher, captions, Ode(50, Trailing(), Euler())) >= 0.95


def test_plain_diffusers_makes_the_same_images(teacher, tmp_path):
    """In a new process, without fewstep."""
    latents = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    torch.save(latents, tmp_path / "latents.pt")
    words = [str(shipped()["shapes_teacher"]), str(tmp_path / "latents.pt")]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, *words], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    theirs = torch.load(tmp_path / "latents.pt")
    asked = {"caption": ["a small red circle", "a blue square"]}
    answer = teacher.answer(Request(asked, steps=4))
    cond = answer.cond(range(2))
    with torch.no_grad():
        x0 = answer.sampler(
            answer.denoise(), teacher.denoiser.process, latents, cond, Draws(0, range(2))
        )
        mine = teacher.codec.decode(x0)
    assert (mine - theirs).abs().max() <= 1e-4
