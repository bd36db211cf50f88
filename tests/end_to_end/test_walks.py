"""The four ways in, by the command line alone and as a new user would go them: own pictures, an own
network, a folder of diffusers, an own method.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli.main import main
from fewstep.models.folder import load
from fewstep.training.log import read_log

FEW = ("trainer.steps=6", "trainer.batch=8", "trainer.health_every=3", "trainer.log_every=1")
SMALL = ("trainer.sample_steps=[1,2]", "trainer.device=cpu")

NETWORK = """
from dataclasses import dataclass
import fewstep
from torch import nn


class Mine(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.into = nn.Conv2d(channels, width, 3, padding=1)
        self.out = nn.Sequential(nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x, t):
        return self.out(self.into(x) + self.time(t[:, None])[:, :, None, None])


@dataclass(frozen=True)
class MyNet(fewstep.OutsideNetwork):
    width: int = 16

    def module(self, space):
        return Mine(space.shape[0], self.width)
"""

DOC = Path(__file__).parents[2] / "docs" / "adding_a_method.md"
METHOD = DOC.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with pictures of one's own in it: 40 of 8×8, light above dark."""
    path = tmp_path_factory.mktemp("home")
    (path / "pictures").mkdir()
    shade = np.linspace(220, 30, 8)[:, None, None]
    for i in range(40):
        noise = np.random.default_rng(i).normal(0, 20, (8, 8, 3))
        pixels = (shade + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path / "pictures" / f"IMG_{i:03}.png")
    return path


@pytest.fixture
def fewstep(home, monkeypatch, capsys):
    """A command that must succeed; what it printed."""
    monkeypatch.chdir(home)

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out = capsys.readouterr()
        assert ended.value.code == 0, f"fewstep {' '.join(map(str, words))}: {out.err}"
        return out.out + out.err

    return call


def page(home, run):
    """What stands on the page of a run, without its marks."""
    text = (home / "runs" / run / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") >= 2  # of teacher and student, or of both steps
    assert "://" not in text.replace("http://www.w3.org/", "")  # which are names, not places
    return re.sub(r"<[^>]+>", " ", text)


def test_own_pictures(home, fewstep):
    """A folder, a teacher that fits it, a student, its page, samples and a folder of diffusers."""
    assert "images: 40 of 8×8, 3 channels" in fewstep("data", "check", "pictures")
    fewstep("train", "images_teacher", "data.path=pictures", *FEW, *SMALL)
    said = fewstep("train", "images_cd", "data.path=pictures", *FEW, *SMALL)
    assert "image (3×8×8)" in said
    text = page(home, "images_cd")
    for word in ("consistency_distillation", "images_teacher", "pictures"):
        assert word in text
    fewstep("sample", "runs/images_cd", "--steps", 2, "--num", 4, "--out", "own.png")
    with Image.open(home / "own.png") as image:
        assert image.size[0] >= 8
    made = fewstep("export", "runs/images_cd", "--to", "diffusers")
    assert float(made.split()[-1]) <= 1e-4


def test_an_own_network(home, fewstep):
    """One file of Python: a teacher of this network, its student, the page."""
    (home / "my_network.py").write_text(NETWORK)
    plugin = ("--plugin", "my_network.py")
    words = ("data.path=pictures", *FEW, *SMALL, *plugin)
    fewstep("train", "images_teacher", "teacher.network=my_net", "name=mine", *words)
    fewstep("train", "images_cd", "teacher=runs/mine", "name=mine_cd", *words)
    text = page(home, "mine_cd")
    assert "mine" in text
    assert "consistency_distillation" in text
    student = load(home / "runs" / "mine_cd")
    assert type(student.denoiser.network.module).__name__ == "Mine"
    fewstep("sample", "runs/mine_cd", "--out", "mine.png", *plugin)
    assert (home / "mine.png").is_file()


def test_a_folder_of_diffusers(home, fewstep):
    """Looked at, sampled and distilled as it is; the student is a folder of the same kind, whose
    images are the student's to the bit.
    """
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(home / "theirs")
    told = fewstep("inspect", "theirs")
    assert "network: unet_2d" in told
    assert "x0: cut at ±1 in each step of sampling" in told
    fewstep("sample", "theirs", "--num", 2, "--steps", 3, "--out", "theirs.npz")
    assert np.load(home / "theirs.npz")["arr_0"].shape == (2, 8, 8, 3)
    words = ("data.path=pictures", "teacher=theirs", *FEW, *SMALL)
    said = fewstep("train", "images_cd", "name=theirs_odd", *words)
    assert "warning: student will not be exported: no scheduler knows" in said
    assert "--to diffusers" not in page(home, "theirs_odd")
    (remedy,) = [line for line in said.splitlines() if line.startswith("warning: it will be with")]
    times = remedy.removeprefix("warning: it will be with ").split()
    assert times == ["method.times.end=t_data", "method.sample_times.end=t_data"]
    said = fewstep("train", "images_cd", "name=theirs_cd", *times, *words)
    assert "will not be exported" not in said
    assert "theirs" in page(home, "theirs_cd")
    assert "--to diffusers" in page(home, "theirs_cd")
    made = fewstep("export", "runs/theirs_cd", "--to", "diffusers", "--out", "few")
    assert float(made.split()[-1]) <= 1e-4
    index = json.loads((home / "few" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    for source in ("runs/theirs_cd", "few"):
        fewstep("sample", source, "--num", 4, "--seed", 3, "--out", f"{source[-3:]}.npz")
    mine, again = (np.load(home / f"{name}.npz")["arr_0"] for name in ("_cd", "few"))
    assert mine.std() > 1
    assert (mine == again).all()


def test_an_own_method(home, fewstep):
    """One file of Python: it keeps the laws, trains, and has its page."""
    (home / "my_method.py").write_text(METHOD)
    said = fewstep("check", "my_method.py")
    assert "FAILED" not in said
    assert said.count("passed") >= 9
    words = ("--plugin", "my_method.py", "method=my_jump", "name=mine_jump")
    fewstep("train", "digits_cd", *words, *FEW, *SMALL)
    assert "my_jump" in page(home, "mine_jump")
    losses = [line["answer"] for line in read_log(home / "runs/mine_jump/log.jsonl")]
    assert len(losses) == 6
    assert all(np.isfinite(losses))
    assert min(losses) > 0
