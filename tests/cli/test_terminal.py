"""Every encoding of the console, every name; and no text of a file that a terminal would obey."""

import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import TEACHER

from fewstep.cli.main import main

BYTES = os.fsdecode(b"caf\xe9")  # a name that is no UTF-8
ANSI = "\x1b[31mred\x9b0m\u202e"


def pictures(folder, classes=("cat", "dog"), num=4):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(num):
            pixels = rng.integers(256, size=(8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def console(monkeypatch):
    """Runs a command on a console of some encoding; gives its exit code and what it wrote."""

    def call(encoding, *words):
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        written = []
        for stream in streams.values():
            stream.flush()
            written.append(stream.buffer.getvalue().decode(encoding))
        return ended.value.code, *written

    return call


@pytest.mark.parametrize("encoding", ["ascii", "cp1251", "cp437", "latin-1", "utf-8", "utf-16"])
@pytest.mark.parametrize("verb", ["check", "evaluate", "train", "inspect", "sample", "unknown"])
def test_every_verb_on_every_console(console, runs, encoding, verb):
    data = pictures(Path("猫 é"), ("кот", BYTES))
    words = {
        "check": ("data", "check", data),
        "evaluate": ("evaluate", "runs/cd", "--num", "20", "--measures", "frechet"),
        "train": (*TEACHER, "data=folder", f"data.path={data}", "name=猫", "data.limit=0"),
        "inspect": ("inspect", "runs/cd"),
        "sample": ("sample", "runs/cd", "--out", "猫.npz"),
        "unknown": ("sample", "猫\udce9", "--out", "x.npz"),
    }[verb]
    code, out, err = console(encoding, *words)
    assert code == (2 if verb == "unknown" else 0), err
    assert "Traceback" not in err
    if verb == "unknown":
        assert err.startswith("error: no model or run '")
    if verb == "check":
        assert "images: 8 of 8" in out
        assert r"caf\udce9" in out


def test_a_run_that_cannot_be_named_is_refused_before_the_work(refused, asleep):
    line = refused(2, *TEACHER, f"name={BYTES}", says=[r"runs/caf\udce9", "UTF-8"])
    assert "safetensors file" not in line
    assert not Path("runs").exists()


def test_weights_in_a_folder_that_is_no_utf8(refused, runs):
    os.rename("runs/cd", f"runs/{BYTES}")
    says = [r"runs/caf\udce9", "UTF-8"]
    refused(2, "sample", f"runs/{BYTES}", "--out", "x.png", says=says)
    refused(2, *TEACHER, "name=x", f"start=runs/{BYTES}", says=says)
    assert not Path("runs/x").exists()
    pytest.importorskip("diffusers")
    refused(2, "export", "runs/tiny", "--to", "diffusers", "--out", BYTES, says="UTF-8")


def test_what_needs_no_weights_may_have_any_name(done, runs):
    pictures(Path(BYTES))
    done("sample", "runs/cd", "--out", f"{BYTES}.npz")
    done("sample", "runs/cd", "--out", f"{BYTES}.png")
    done("sample", "runs/cd", "--out", f"a/{BYTES}", "--num", "20")
    done(*TEACHER, "data=folder", f"data.path={BYTES}", "data.limit=0", "name=x")
    assert "is finished already" in done("train", "runs/x/run.yaml")
    words = ("--num", "20", "--measures", "frechet")
    done("evaluate", f"a/{BYTES}", *words, "--out", f"{BYTES}.json", "--report", f"{BYTES}.html")
    done("evaluate", f"a/{BYTES}", *words, "--against", f"{BYTES}.json")
    assert r"caf\udce9" in Path(f"{BYTES}.html").read_text()


@pytest.mark.parametrize("letter", ["x", "é", "猫"])
def test_names_as_long_as_a_file_system_allows(done, runs, letter):
    longest = 255 // len(letter.encode())
    words = ("sample", "runs/cd", "--num", "20", "--out")
    folder = letter * longest
    for suffix in (".npz", ".png"):
        done(*words, letter * (longest - len(suffix)) + suffix)
    done(*words, folder)
    page, result = (letter * (longest - 5) + suffix for suffix in (".html", ".json"))
    said = ("--num", "20", "--measures", "frechet")
    done("evaluate", folder, *said, "--out", result, "--report", page)
    done(*TEACHER, f"name={folder}")
    assert "is finished already" in done("train", f"runs/{folder}/run.yaml")
    assert not list(Path().rglob(".tmp-*"))


def unobeyed(text):
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


class TestForeignText:
    def test_class_names(self, console):
        code, out, err = console("utf-8", "data", "check", pictures(Path("x"), (ANSI, "b\nimages")))
        assert code == 0, err
        assert r"\x1b[31mred\x9b0m\u202e" in out
        assert unobeyed(out)
        assert out.count("\nimages") == 1

    def test_a_model(self, console, runs):
        file = runs / "cd" / "student" / "model.json"
        plain = json.loads(file.read_text())
        plain["card"] |= {f"note{ANSI}": f"{ANSI}\nshape: 1", "method": {ANSI: ANSI}}
        file.write_text(json.dumps(plain))
        (runs / "cd" / "status.json").write_text(json.dumps({"state": ANSI}))
        code, out, err = console("utf-8", "inspect", "runs/cd")
        assert code == 0, err
        assert unobeyed(out)
        assert out.count("\nshape: ") == 1
        plain["network"]["kind"] = ANSI
        file.write_text(json.dumps(plain))
        code, _, err = console("utf-8", "inspect", "runs/cd")
        assert code == 2
        assert unobeyed(err)
        assert len(err.splitlines()) == 1

    def test_a_run_and_its_report(self, console, runs):
        code, out, err = console("utf-8", *TEACHER, f"name={ANSI}\nx", "trainer.log_every=1")
        assert code == 0, err
        assert unobeyed(out + err)
        page = Path(f"runs/{ANSI}\nx/report.html").read_text()
        assert r"\x1b[31mred" in page
        assert unobeyed(page)

    def test_a_result(self, console, runs):
        os.rename("runs/cd", f"runs/{ANSI}")
        words = ("--num", "20", "--measures", "frechet", "--report", "x.html")
        code, out, err = console("utf-8", "evaluate", f"runs/{ANSI}", *words)
        assert code == 0, err
        assert r"\x1b[31mred" in out
        assert unobeyed(out)
        assert unobeyed(Path("x.html").read_text())

    def test_errors_and_warnings(self, console):
        for words in (
            ("sample", ANSI, "--out", "x.png"),
            ("train", ANSI),
            (ANSI,),
            ("inspect", ANSI),
        ):
            code, _, err = console("utf-8", *words)
            assert code == 2
            assert unobeyed(err), err


def test_a_line_is_as_long_as_somebody_reads(refused):
    refused(2, "sample", "x" * 5000, "--out", "x.png", says="xxx")
    refused(2, *TEACHER, f"{'k' * 5000}=3", says="kkk")
    refused(2, *TEACHER, f"{'a.' * 30000}b=3", says="a.a.a")
    refused(2, *TEACHER, f"trainer.steps={'9' * 100_000}", says="trainer.steps")
