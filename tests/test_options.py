"""One sentence at every option, and what users read about options."""

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest
from tools.options import PAGE, page

from fewstep import plugins
from fewstep.choice import Choice, Count, Decay, Logarithm, NonNegative, Positive, Seed, Share
from fewstep.data.digits import Digits
from fewstep.data.source import Source
from fewstep.diffusion.densities import Density
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Euler, Heun, Solver
from fewstep.diffusion.times import Explicit, Karras, Strided, Times
from fewstep.learning.method import Method
from fewstep.learning.schedules import Schedule
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.dmd2 import DMD2
from fewstep.models.source import Saved
from fewstep.options import (
    about,
    docstring,
    families,
    families_called,
    families_in,
    first_sentence,
    in_words,
    kinds_called,
    options_of,
    sentence,
    shown,
    values,
)
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW, OptimizerSpec, RAdam


def every_choice():
    found = []
    for family in families():
        for kind in family.kinds().values():
            if kind.__module__.startswith("fewstep."):
                found.append(kind)
    return found


@pytest.mark.parametrize("cls", every_choice(), ids=lambda cls: cls.__name__)
def test_every_option_has_a_sentence(cls):
    for option in options_of(cls):
        assert option.sentence.endswith("."), f"{cls.__name__}.{option.name}"
        assert len(option.sentence) < 250
        assert "\n" not in option.sentence


def test_sentences_of_a_class_and_of_those_above_it():
    assert sentence(TrainerConfig, "ema").startswith("Decays of the averages")
    assert sentence(RAdam, "lr") == sentence(AdamW, "lr") != ""
    assert sentence(TrainerConfig, "nothing") == ""


def test_defaults_and_types_in_words():
    found = {one.name: one for one in options_of(TrainerConfig)}
    assert found["steps"][:3] == ("steps", "whole number >= 1", "1000")
    assert found["ema"][:3] == ("ema", "list of number >= 0, < 1", "[0.999]")
    assert found["optimizer"][:3] == ("optimizer", "optimizer_spec", "adam_w")
    assert found["optimizers"][:3] == ("optimizers", "optimizer_spec, for names", "{}")
    assert found["precision"].words == "fp32 | bf16 | fp16 | fp16_teacher"
    assert found["compile"][:3] == ("compile", "true or false", "false")
    path, ema, *_ = options_of(Saved)
    assert path[:3] == ("path", "text", None)
    assert ema[:3] == ("ema", "text or none", "none")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Count, "whole number >= 1"),
        (Seed, "whole number"),
        (Logarithm, "number >= -50, <= 50"),
        (Positive, "number > 0"),
        (NonNegative, "number >= 0"),
        (Share, "number >= 0, <= 1"),
        (Decay, "number >= 0, < 1"),
        (Literal["a", "b"], "a | b"),
        (Solver, "solver"),
        (Solver | None, "solver or none"),
        (tuple[Count, ...], "list of whole number >= 1"),
        (tuple[int, float], "list of 2: whole number, number"),
        (Mapping[str, Times], "times, for names"),
    ],
    ids=str,
)
def test_types(hint, words):
    assert in_words(hint) == words


def test_values():
    assert shown(Karras()) == "karras"
    assert shown(Ode(4, Strided(Karras(rho=5.0), 8), Euler())) == (
        "ode(steps=4, times=strided(of=karras(rho=5), total=8), solver=euler)"
    )
    assert shown(Explicit(((2.5, 0.8),))) == "explicit(between=[[2.5, 0.8]])"
    assert shown(0.9999432) == "0.9999432"
    assert shown(1e-8) == "1e-08"
    assert shown("") == "''"
    assert shown(Saved("runs/x")) == "saved(path=runs/x)"


def test_families_that_a_type_names():
    assert families_in(Mapping[str, Times | None]) == [Times]
    assert families_in(tuple[Count, ...]) == []
    assert {Method, Schedule, Solver, Times} <= set(families())
    assert all(Choice in one.__bases__ for one in families())


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_option_of_a_run_with_its_value():
    run = Run(Digits(limit=5), Diffusion(), Saved("runs/x"))
    found = {path: value for path, value, _ in values(run)}
    assert found["data"] == "digits"
    assert found["data.limit"] == "5"
    assert found["teacher.path"] == "runs/x"
    assert found["start"] == "none"
    assert found["trainer.optimizer"] == "adam_w"
    assert found["trainer.optimizer.lr"] == "0.001"
    assert list(found)[:2] == ["data", "data.split"]


def test_names():
    assert families_called("solvers") == families_called("solver") == [Solver]
    assert families_called("densities") == [Density]
    assert families_called("processes") == [Process]
    assert families_called("data") == [Source]
    assert families_called("trainer") == [TrainerConfig]
    assert families_called("optimizers") == [OptimizerSpec]
    assert families_called("nothing") == []
    assert kinds_called("heun") == [(Solver, Heun)]
    assert kinds_called("DMD2") == [(Method, DMD2)]
    assert kinds_called("nothing") == []


def test_what_a_kind_is_in_a_sentence():
    assert about(DMD2).startswith("Improved distribution matching distillation")  # its file's
    assert about(AdamW) == "AdamW in one fused kernel."
    assert first_sentence("Song et al. 2023 said so. And more.") == "Song et al. 2023 said so."
    assert first_sentence("On\ntwo lines.\n\nMore.") == "On two lines."
    assert first_sentence("") == ""


def test_a_signature_is_no_docstring():
    @dataclass(frozen=True)
    class Wordless(AdamW):
        more: int = 3

    assert Wordless.__doc__.startswith("Wordless(")
    assert docstring(Wordless) == ""
    assert docstring(AdamW) == "AdamW in one fused kernel."


def test_options_of_a_plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_loaded", {})
    (tmp_path / "told_half.py").write_text(
        textwrap.dedent('''
            from dataclasses import dataclass
            from fewstep.learning.schedules import Schedule

            @dataclass(frozen=True)
            class ToldHalf(Schedule):
                """Half."""

                share: float = 0.5
                """The factor,
                all the time."""
                warmup: int = 0

                def after_warmup(self, progress):
                    return self.share
        ''')
    )
    plugins.load(tmp_path / "told_half.py")
    share, _ = options_of(Schedule.kinds()["told_half"])
    assert share[:4] == ("share", "number", "0.5", "The factor, all the time.")


def test_what_has_no_source_has_no_sentences():
    namespace = {"__name__": "nowhere", "dataclass": dataclass, "Choice": Choice}
    sys.modules["nowhere"] = type(sys)("nowhere")
    exec("@dataclass(frozen=True)\nclass InNoFile(Choice):\n    x: int = 3\n", namespace)
    (option,) = options_of(namespace["InNoFile"])
    assert option[:4] == ("x", "whole number", "3", "")
    del sys.modules["nowhere"]
