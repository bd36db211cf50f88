"""What `fewstep inspect` says of models, lists and names."""

import re
from pathlib import Path

import pytest
from tests.cli.conftest import LOOP

from fewstep import load
from fewstep.cli.configure import configured
from fewstep.data.digits import Digits
from fewstep.data.source import Source
from fewstep.diffusion.densities import Density
from fewstep.diffusion.process import Process
from fewstep.learning.method import Method
from fewstep.models.network import Network
from fewstep.models.source import ModelSource
from fewstep.recipes import listed, recipe


class TestInspect:
    def test_recipes(self, done):
        found = dict(line.split(maxsplit=1) for line in done("inspect", "recipes").splitlines())
        assert found == listed()
        assert all(text.endswith(".") for text in found.values())

    def test_methods(self, done):
        found = dict(line.split(maxsplit=1) for line in done("inspect", "methods").splitlines())
        assert list(found) == list(Method.offered())
        assert found["dmd2"].startswith("Improved distribution matching distillation (Yin et al.")
        assert all(text.endswith(".") for text in found.values())

    @pytest.mark.parametrize("name", ["runs/cd", "runs/cd/student"])
    def test_a_student(self, done, runs, name):
        out = done("inspect", name)
        for text in (
            "1×8×8",
            "classes: 10",
            "evaluations: 2",
            "renoise",
            "cm_boundary",
            "guidance: none",
            "easy_cons",
        ):
            assert text in out
        model = load(name)
        assert f"{sum(p.numel() for p in model.denoiser.parameters()):,} parameters" in out
        assert Digits(limit=64).dataset().fingerprint() in out

    def test_a_teacher(self, done, runs):
        out = done("inspect", "runs/tiny")
        assert "evaluations: 7" in out
        assert "guidance: doubled, 1 to 8" in out
        assert "run: finished, step 3 of 3" in out.splitlines()
        assert "\nlast numbers: denoising " in out
        assert re.search(r"\ntime: \d+ s, \d+ threads?\n", out)
        assert re.search(r"\nwritten: 20\d\d-\d\d-\d\d \d\d:\d\d\n", out)


class TestNames:
    """Anything that can be named is explained."""

    def test_a_recipe(self, done, refused):
        """What it is for and what came out of it, and its run file, which makes the same run."""
        out = done("inspect", "digits_cd")
        head, _, run = out.partition("\n\ndata:")
        assert head.startswith("digits_cd (recipe)\n" + listed()["digits_cd"])
        Path("mine.yaml").write_text("data:" + run)
        assert configured("mine.yaml", [])[0] == recipe("digits_cd")
        refused(2, "inspect", "digits_cdd", says="did you mean digits_cd")

    def test_a_method(self, done):
        out = done("inspect", "dmd2")
        assert out.startswith("dmd2 (method)\nImproved distribution matching distillation")
        lines = out.splitlines()
        (row,) = (line for line in lines if line.startswith("fake_steps"))
        assert row.split() == ["fake_steps", "5", "whole", "number", ">=", "1"]
        assert "density: along, log_normal" in out

    def test_sentences_stand_below_their_options(self, done):
        lines = done("inspect", "trainer").splitlines()
        assert lines[0] == "trainer_config"
        place = next(i for i, line in enumerate(lines) if line.startswith("clip "))
        assert lines[place].split()[1] == "1"
        assert lines[place + 1] == (
            "    The largest norm of the gradients of one update; 0: no limit."
        )

    def test_an_option_that_must_be_given(self, done):
        (row,) = (s for s in done("inspect", "saved").splitlines() if s.startswith("path"))
        assert row.split() == ["path", "needed", "text"]

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("unet", "unet (network)"),
            ("heun", "heun (solver)"),
            ("Karras", "karras (times)"),
            ("digits", "digits (source)"),
            ("adam-w", "adam_w (optimizer_spec)"),
            ("run", "run\nOne training run"),
            ("log_normal", "log_normal (density)"),
            ("fresh", "fresh (model_source)"),
        ],
    )
    def test_every_family(self, done, name, says):
        assert done("inspect", name).startswith(says)

    @pytest.mark.parametrize(
        ("name", "kinds"),
        [
            ("solvers", ["dpmpp_2m", "euler", "heun", "midpoint"]),
            ("schedules", ["constant", "cosine", "linear"]),
            ("optimizers", ["adam_w", "radam", "sgd"]),
            ("samplers", ["flow_map", "ode", "renoise"]),
            ("processes", Process.kinds()),
            ("densities", Density.kinds()),
            ("networks", Network.kinds()),
            ("data", Source.kinds()),
            ("teacher", ModelSource.kinds),
        ],
    )
    def test_lists_of_kinds(self, done, name, kinds):
        lines = done("inspect", name).splitlines()
        kinds = kinds() if callable(kinds) else kinds  # some are found when all rooms are read
        assert [line.split()[0] for line in lines] == list(kinds)
        assert all(len(line.split()) > 1 for line in lines)

    def test_what_nobody_knows(self, refused):
        refused(2, "inspect", "midpiont", says=["midpiont", "did you mean midpoint"])
        refused(2, "inspect", "runs/gone", says=["runs/gone", "digits_teacher"])

    def test_a_folder_comes_before_a_name(self, refused, tmp_path):
        (tmp_path / "heun").mkdir()
        refused(2, "inspect", "heun", says=["heun", "no model folder"])


def test_the_options_of_a_run_with_their_values(done, tmp_path):
    out = done("train", "digits_cd", "method.bins=7", "--options")
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line[0] != " "}
    assert rows["method"] == "consistency_distillation"
    assert rows["method.bins"] == "7"
    assert rows["trainer.steps"] == "500"
    assert rows["teacher.path"] == "digits_teacher"
    assert not (tmp_path / "runs").exists()


def test_a_classifier_and_other_parts(done, runs):
    out = done("inspect", "digits_classifier").splitlines()
    assert out[:2] == ["model: classifier, 72,842 parameters", "samples: 1×8×8"]
    assert "method: classification" in out
    done("train", "shapes_vae", "data.num=64", *LOOP)
    out = done("inspect", "runs/shapes_vae").splitlines()
    assert out[0].startswith("model: autoencoder, ")
    assert out[1] == "samples: 3×32×32"
    assert "run: finished, step 3 of 3" in out
