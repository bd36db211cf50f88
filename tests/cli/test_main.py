"""The console script: version, help, exit codes, and what it imports."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import TEACHER

import fewstep as package
from fewstep import load
from fewstep.cli import verbs
from fewstep.cli.main import main

HOME = Path(package.__file__).parent


def test_the_version(done):
    assert done("--version") == f"fewstep {package.__version__}\n"


VERBS = ("demo", "train", "sample", "evaluate", "report", "export", "inspect", "check", "data")


@pytest.mark.parametrize("verb", [*((v,) for v in VERBS), ("data", "check")], ids=" ".join)
def test_help_of_every_verb_has_an_example(done, verb):
    out = done(*verb, "--help")
    assert "Usage:" in out
    assert f"Example: fewstep {' '.join(verb)}" in out or verb == ("data",)


def test_the_help_names_every_verb_and_cuts_nothing(done):
    out = done("--help")
    for verb in VERBS:
        assert f"\n  {verb} " in out
    assert "..." not in out.replace("[ARGS]...", "")
    assert "an unfinished run goes on where it stopped." in " ".join(out.split())
    assert "..." not in done("data", "--help").replace("[ARGS]...", "")


def test_the_usual_words_for_help_and_version(done):
    for words in (["-h"], ["help"], []):
        assert done(*words) == done("--help")
    for words in (["train", "-h"], ["help", "train"]):
        assert done(*words) == done("train", "--help")
    assert done("help", "data", "check") == done("data", "check", "--help")
    assert done("version") == done("--version")


def test_a_shell_completes_verbs_and_recipes(monkeypatch, capsys):
    def completed(words, place):
        monkeypatch.setenv("_FEWSTEP_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(place))
        monkeypatch.setattr(sys, "argv", ["fewstep"])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([])
        return capsys.readouterr().out.split()

    assert completed("fewstep ex", 1) == ["export"]
    assert set(completed("fewstep train digits_c", 2)) >= {"digits_cd", "digits_classifier"}
    assert all(name.startswith("mnist_") for name in completed("fewstep plan mnist_", 2))


def test_help_and_version_do_not_wait_for_torch():
    """The heavy libraries take seconds; what needs no network must not load them."""
    script = (
        "import sys\n"
        "from fewstep.cli.main import main\n"
        "good = ['--help', '--version', 'train --help', 'sample --help', 'inspect recipes']\n"
        "good += ['check --help']\n"
        "bad = ['train', 'trian x', 'sample x --stepz 3', 'plan x --processes 0', 'data chek']\n"
        "for words in good + bad:\n"
        "    try:\n"
        "        main(words.split())\n"
        "    except SystemExit as end:\n"
        "        assert end.code == (0 if words in good else 2), end.code\n"
        "heavy = {'torch', 'diffusers', 'sklearn', 'matplotlib', 'numpy', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"
    assert f"fewstep {package.__version__}" in ended.stdout
    assert len(ended.stderr.splitlines()) == 5


@pytest.mark.parametrize("verb", [*VERBS[:-1], "plan"])
def test_a_verb_s_file_takes_what_the_words_give(verb):
    """The options are declared in one place and used in another."""
    told = inspect.signature(getattr(verbs, verb)).parameters
    used = inspect.signature(getattr(importlib.import_module(f"fewstep.cli.{verb}"), verb))
    assert [name for name in told if name != "as_json"] == list(used.parameters)
    for name, parameter in used.parameters.items():
        assert parameter.annotation == told[name].annotation, name


def test_the_package_s_names_are_there():
    assert package.load is load
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        _ = package.nosuch


SAMPLE = ("sample", "runs/cd", "--out", "x.png")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*SAMPLE, "--stepz", "4"), ["--stepz", "--steps"]),
        (("trian", "digits_cd"), ["trian", "train"]),
        (("data", "chek", "digits"), ["chek", "check"]),
        (("sample", "runs/cd"), "--out"),
        (("sample",), "Missing"),
        (("inspect",), "Missing"),
        ((*SAMPLE, "more"), "more"),
        ((*SAMPLE, "--steps", "0"), ["--steps", "1"]),
        ((*SAMPLE, "--steps", "two"), "--steps"),
        ((*SAMPLE, "--steps"), "--steps"),
        ((*SAMPLE, "--num", "0"), ["--num", "1"]),
        ((*SAMPLE, "--num", "1000000000000"), ["--num", "10000000"]),
        ((*SAMPLE, "--num", "9" * 5000), "--num"),
        (("evaluate", "runs/cd", "--num", "1" + "0" * 20), ["--num", "10000000"]),
        ((*SAMPLE, "--batch", "0"), ["--batch", "1"]),
        (("evaluate", "runs/cd", "--num", "1"), ["--num", "2"]),
        (("--nosuch", "demo"), "--nosuch"),
        (("train",), "Missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage(refused, words, says):
    refused(2, *words, says=says)


@pytest.mark.parametrize("words", [(), ("data",)])
def test_no_verb_gives_the_help(fewstep, words):
    ended = fewstep(*words)
    assert ended.code in (0, 2)
    assert "Usage" in ended.out + ended.err
    assert "Traceback" not in ended.err


class TestCodes:
    """The exit code tells a script what kind of error it was."""

    def fail_with(self, monkeypatch, error):
        def load(*_, **__):
            raise error

        monkeypatch.setattr("fewstep.cli.sample.load", load)

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                "3 bytes"
            ),
        ],
        ids=["python", "gpu", "cpu"],
    )
    def test_out_of_memory(self, refused, monkeypatch, error):
        self.fail_with(monkeypatch, error)
        refused(5, *SAMPLE, says=["out of memory", "micro_batch", "--batch"])

    @pytest.mark.parametrize(
        "error",
        [RuntimeError("two\nlines"), AttributeError("two"), KeyError("two"), AssertionError()],
    )
    def test_a_fault_of_our_own(self, refused, monkeypatch, error):
        self.fail_with(monkeypatch, error)
        refused(1, *SAMPLE, says=[type(error).__name__, "--debug"])

    def test_stopped_by_the_user(self, fewstep, monkeypatch):
        self.fail_with(monkeypatch, KeyboardInterrupt())
        ended = fewstep(*SAMPLE)
        assert ended.code == 130
        assert ended.err == "stopped\n"

    @pytest.mark.parametrize("words", [("--debug", *SAMPLE), (*SAMPLE, "--debug")])
    def test_debug_shows_the_traceback(self, fewstep, words):
        """Before the line and the code that there are without it."""
        ended = fewstep(*words)
        assert ended.code == 2
        lines = ended.err.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-2].startswith("FileNotFoundError: no model or run 'runs/cd'")
        assert lines[-1].startswith("error: no model or run 'runs/cd'")


def test_plugins_that_are_not_there(refused):
    refused(2, *TEACHER, "name=new", "--plugin", "nosuchmodule", says="nosuchmodule")
