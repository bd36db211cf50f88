"""The main job through the command line, with few steps: student, samples, numbers, report,
export.
"""

import html.parser
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fewstep.cli.main import main

KEYS = {
    *(
        "model",
        "solver",
        "steps",
        "evaluations",
        "values",
        "role",
        "headline",
        "images_per_second",
        "protocol",
    )
}


def fewstep(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0, (
        f"fewstep {' '.join(map(str, words))} ended with {ended.value.code}"
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which a demo of a few steps has run."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fewstep(
            "demo",
            "trainer.steps=4",
            "trainer.batch=16",
            "trainer.health_every=2",
            "trainer.log_every=1",
            "--num",
            40,
        )
    return folder


@pytest.fixture(autouse=True)
def _there(home, monkeypatch):
    monkeypatch.chdir(home)


def test_results_have_every_row_and_key(home):
    results = json.loads((home / "runs/demo/results.json").read_text())
    rows = [(r["model"], r["evaluations"]) for r in results]
    assert rows == [
        *(("teacher", n) for n in (1, 2, 4, 35)),
        *(("student", n) for n in (1, 2, 4)),
        ("data", 0),
    ]
    for r in results:
        assert set(r) == KEYS
        few = ["kernel_distance"] if r["model"] != "data" else []  # 40 images, 64 features
        assert list(r["values"]) == ["frechet", *few, "confirmed", "diversity"]
        assert r["values"]["frechet"] > 0
        assert 0 <= r["values"]["confirmed"] <= 1
        assert r["role"] == r["model"]
        assert r["protocol"]["features"].startswith("classifier ")
        assert r["protocol"]["num"] == (40 if r["model"] != "data" else 382)
    by_key = {(r["model"], r["evaluations"]): r for r in results}
    assert [key for key, r in by_key.items() if r["headline"]] == [("teacher", 35), ("student", 2)]
    best = by_key["teacher", 35]
    assert best["solver"] in ("euler", "heun", "dpmpp_2m")
    assert best["steps"] == (18 if best["solver"] == "heun" else 35)
    assert best["values"]["frechet"] < by_key["teacher", 1]["values"]["frechet"]
    assert by_key["data", 0]["values"]["confirmed"] >= 0.97


def test_the_same_seed_gives_the_same_quality(home, monkeypatch):
    first = json.loads((home / "runs/demo/results.json").read_text())
    fewstep(
        *(
            "demo",
            "trainer.steps=4",
            "trainer.batch=16",
            "trainer.health_every=2",
            "trainer.log_every=1",
        ),
        *("name=again", "--num", 40),
    )
    second = json.loads((home / "runs/again/results.json").read_text())
    for a, b in zip(first, second):
        assert {k: v for k, v in a.items() if k != "images_per_second"} == {
            k: v for k, v in b.items() if k != "images_per_second"
        }


def test_the_report_stands_alone(home):
    """One file: no outside address, every tag closed, all sections there, light and dark."""
    text = (home / "runs/demo/report.html").read_text()

    class Tags(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.addresses, self.headings = [], [], []

        def handle_starttag(self, tag, attributes):
            self.addresses += [
                v
                for k, v in attributes
                if k in ("src", "href") and not v.startswith(("data:", "#"))
            ]
            if tag not in ("meta", "img", "br", "link") and not self.get_starttag_text().endswith(
                "/>"
            ):
                self.open.append(tag)

        def handle_startendtag(self, tag, attributes):
            self.handle_starttag(tag, attributes)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            if self.open and self.open[-1] == "h2":
                self.headings.append(data)

    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.addresses == []
    assert tags.headings == [
        *(
            "Quality",
            "Samples of the same seeds",
            "Training",
            "Memorisation",
            "Run",
            "Protocol",
            "Run file",
        )
    ]
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text
    # A row for 1, 2, 4 and 35 evaluations, of the student for 1, 2 and 4, and one of real images.
    assert text.count("data:image/png") == 8
    assert text.count("<span>") == 2 * 10
    assert "consistency_distillation: Consistency distillation" in text
    assert "fewstep train runs/demo/run.yaml name=demo-again" in text


def test_samples_of_the_student_and_of_the_shipped_teacher(home):
    fewstep("sample", "runs/demo", "--steps", 2, "--num", 30, "--seed", 1, "--out", "x.npz")
    fewstep("sample", "digits_teacher", "--steps", 2, "--num", 30, "--seed", 1, "--out", "t.npz")
    for name in ("x.npz", "t.npz"):
        arrays = np.load(name)
        assert arrays["arr_0"].shape == (30, 8, 8, 1)
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [i % 10 for i in range(30)]
    fewstep(
        "sample",
        "runs/demo",
        "--steps",
        2,
        "--num",
        12,
        "--seed",
        1,
        "--out",
        "y.npz",
        "--batch",
        5,
    )
    difference = np.load("x.npz")["arr_0"][:12].astype(int) - np.load("y.npz")["arr_0"]
    assert np.abs(difference).max() <= 1


def test_the_export_needs_no_fewstep(home):
    """diffusers' own pipeline, in a process that cannot import fewstep,
    makes the student's images.
    """
    fewstep("export", "runs/demo", "--to", "diffusers", "--out", "exported")
    from fewstep import load
    from fewstep.diffusion.draws import Draws

    model = load("runs/demo")
    noise = torch.randn(
        6, 1, 8, 8, generator=torch.Generator().manual_seed(3)
    )  # the pipeline's first draw
    labels = torch.arange(6)
    cond = model.conditioner({"label": labels})
    with torch.no_grad():
        x0 = model.sampler.with_steps(1)(
            model.denoiser, model.denoiser.process, noise, cond, Draws(0, range(6))
        )
    np.save("expected.npy", model.codec.decode(x0).numpy())
    script = """
import sys
sys.modules["fewstep"] = None
import numpy as np, torch
from diffusers import ConsistencyModelPipeline, UNet2DModel
pipeline = ConsistencyModelPipeline.from_pretrained("exported")
assert type(pipeline.unet) is UNet2DModel
draws = torch.Generator().manual_seed(3)
labels = torch.arange(6)
images = pipeline(batch_size=6, class_labels=labels, generator=draws, output_type="pt").images
print(float(np.abs(images.numpy() - np.load("expected.npy")).max()))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout.split()[-1]) <= 1e-4


def test_what_diffusers_cannot_say_is_refused(home, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", "digits_teacher", "--to", "diffusers", "--out", "teacher"])
    assert ended.value.code == 2
    assert "no consistency student" in capsys.readouterr().err
    assert not (home / "teacher").exists()
