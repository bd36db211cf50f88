"""`adaptation=lora` from the command line and in run files."""

import json
import re
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import LOOP

from fewstep.models.folder import load
from fewstep.models.lora import load_addition
from fewstep.training import plan

pytest.importorskip("peft")

LORA = ("adaptation=lora", "adaptation.rank=2")
TRAIN = ("train", "digits_cd", "teacher=runs/tiny", "data.limit=64", *LOOP, *LORA)


def test_a_recipe_trains_samples_and_goes_on(fewstep, runs):
    ended = fewstep(*TRAIN, "adaptation.targets=[in_layers.2, out_layers.3]", "name=low")
    assert ended.code == 0, ended.err
    student = Path("runs/low/student")
    tensors, facts = load_addition(student)
    assert (facts["rank"], facts["targets"]) == (2, ["in_layers.2", "out_layers.3"])
    assert {key.split(".")[-3] for key in tensors} == {"2", "3"}
    written = Path("runs/low/run.yaml").read_text()
    assert "kind: lora" in written
    assert fewstep("sample", "runs/low", "--num", "2", "--out", "low.png").code == 0
    again = fewstep("train", "runs/low/run.yaml", "name=again")
    assert again.code == 0, again.err
    pictures = [load(f"runs/{name}").generate(num=2) for name in ("low", "again")]
    assert torch.equal(*pictures)


def test_the_shipped_teacher_gets_additions(fewstep):
    """The recipe as it is."""
    ended = fewstep("train", "digits_cd", "adaptation=lora", *LOOP)
    assert ended.code == 0, ended.err
    [name] = [path.parent.parent.name for path in Path("runs").glob("*/student/lora.safetensors")]
    described = json.loads(Path(f"runs/{name}/student/model.json").read_text())
    assert described["card"]["adaptation"]["kind"] == "lora"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("adaptation=lora", "adaptation.rank=0"), ["adaptation.rank", "greater than or equal"]),
        (("adaptation=lora", "adaptation.targets=[to_q]"), ["adaptation.targets", "'to_q'"]),
        (("adaptation=lora", "adaptation.rang=4"), ["did you mean rank"]),
        (("adaptation=lorra",), ["lorra", "did you mean lora"]),
        (("adaptation.rank=4",), ["full_copy has no option 'rank'"]),
    ],
)
def test_mistakes(refused, runs, words, says):
    refused(2, "train", "digits_cd", "teacher=runs/tiny", *LOOP, *words, says=says)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", ("digits_teacher",)),
        ("plan", ("digits_teacher",)),
        ("train", ("digits_cd", "teacher=runs/tiny", "start=unet")),
        ("train", ("digits_cd", "teacher=unet")),
    ],
)
def test_a_new_network_is_no_base(refused, runs, verb, words):
    """Its weights would stay as they were drawn."""
    refused(2, verb, *words, *LOOP, *LORA, says=["lora freezes", "this unet is new"])


def test_what_trains_all_weights_takes_no_additions(refused):
    refused(2, "train", "digits_classifier", *LOOP, "adaptation=lora", says=["all weights", "lora"])


def test_a_plan_counts_the_base_once(fewstep, monkeypatch):
    monkeypatch.setattr(plan, "BUDGET", 0.0)
    words = ("plan", "digits_dmd2", "trainer.batch=4", "trainer.device=cpu")
    whole, low = (fewstep(*words, *more).out for more in ((), ("adaptation=lora", *LORA)))
    held = {role: size_of(low, role) for role in ("shared base", "student", "fake")}
    assert held["shared base"] == pytest.approx(size_of(whole, "teacher"), abs=0.1)
    assert 0 < held["student"] == held["fake"] < 0.1 * size_of(whole, "student")
    assert not re.search(r"^teacher ", low, re.MULTILINE)
    [trained] = re.findall(r"^trained: ([\d,]+) parameters of student", low, re.MULTILINE)
    [before] = re.findall(r"^trained: ([\d,]+) parameters of student", whole, re.MULTILINE)
    assert before == f"{sum(p.numel() for p in load('digits_teacher').denoiser.parameters()):,}"
    assert int(trained.replace(",", "")) < 0.1 * int(before.replace(",", ""))
    ends = [float(re.findall(r"student ([\d.]+) MiB", out)[0]) for out in (whole, low)]
    assert ends[1] > ends[0]  # the merged network, and the additions beside it


def size_of(table, role):
    """MiB of a role in a printed plan."""
    [size] = re.findall(rf"^{role} +always +([\d.]+)", table, re.MULTILINE)
    return float(size)
