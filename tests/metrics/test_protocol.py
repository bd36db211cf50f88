"""Protocols: what makes numbers unlike is named, and nothing that a newer file says is lost."""

import json
from dataclasses import replace

import pytest
import torch

from fewstep.metrics.measure import Scale
from fewstep.metrics.protocol import UNLIKE, Protocol, rounded

PROTOCOL = Protocol(
    features="classifier a",
    reference="b",
    reference_images=5,
    resolution=(1, 8, 8),
    num=4,
    measures={"frechet": Scale("Fréchet distance"), "confirmed": Scale("confirmed", "%")},
    left_out={"diversity": "the samples have no labels"},
    split="train",
    seed=3,
    guidance=1.5,
    sampler={"kind": "ode", "steps": 2},
    tried=("euler", "heun"),
    ema=0.99,
    teacher="c, ode(steps=2)",
)


def test_rounding_to_8_bits():
    levels = torch.arange(256) / 255
    assert torch.equal(rounded(levels), levels)
    assert torch.equal(rounded(levels + 0.4 / 255), levels)
    x = torch.rand(1000)
    assert (rounded(x) - x).abs().max() <= 0.5 / 255 + 1e-7
    assert torch.equal((rounded(x) * 255).round(), (x * 255).round())


@pytest.mark.parametrize("name", UNLIKE)
def test_what_makes_numbers_unlike_is_named(name):
    other = replace(PROTOCOL, **{name: (9, 9) if name == "resolution" else 9})
    assert PROTOCOL.differs(PROTOCOL) == []
    (reason,) = PROTOCOL.differs(other)
    mine = "1×8×8" if name == "resolution" else getattr(PROTOCOL, name)
    assert reason == f"{UNLIKE[name]}: {mine} against {'9×9' if name == 'resolution' else 9}"


def test_all_differences_are_named():
    other = replace(PROTOCOL, num=5, reference="c")
    assert PROTOCOL.differs(other) == [
        "reference: b against c",
        "number of samples: 4 against 5",
    ]


def test_how_samples_were_made_is_no_difference():
    """Samplers, seeds and guidance are what is compared."""
    other = replace(
        PROTOCOL, seed=1, sampler=None, guidance=7.0, ema=None, tried=(), split="", left_out={}
    )
    assert PROTOCOL.differs(other) == []


def test_measures_are_compared_where_both_have_them():
    frechet, confirmed = PROTOCOL.measures.values()
    one, another = replace(PROTOCOL, measures={"frechet": frechet}), PROTOCOL
    assert one.differs(another) == another.differs(one) == []
    other = replace(PROTOCOL, measures={"confirmed": confirmed})
    assert one.differs(other) == ["measures: frechet against confirmed"]
    for change, words in (
        ({"options": {"k": 3}}, "options of frechet: {} against {'k': 3}"),
        ({"source": "mine.py"}, "source of frechet: fewstep against mine.py"),
    ):
        other = replace(PROTOCOL, measures={"frechet": replace(frechet, **change)})
        assert PROTOCOL.differs(other) == [words]


@pytest.mark.parametrize("name", ["features", "teacher"])
def test_what_was_measured_without_is_compared(name):
    other = replace(PROTOCOL, **{name: None})
    assert PROTOCOL.differs(other) == other.differs(PROTOCOL) == []


def test_files_keep_everything():
    text = json.dumps(PROTOCOL.plain())
    assert Protocol.of_plain(json.loads(text)) == PROTOCOL


def test_what_a_newer_file_says_is_told():
    """Whether it makes numbers unlike cannot be known: it is a difference unless both say it."""
    newer = Protocol.of_plain(PROTOCOL.plain() | {"crop": "centre"})
    assert newer.unknown == {"crop": "centre"}
    assert newer.plain() == PROTOCOL.plain() | {"crop": "centre"}
    assert newer.told()["crop (unknown to this fewstep)"] == "centre"
    for one, other in ((newer, PROTOCOL), (PROTOCOL, newer)):
        assert one.differs(other) == ["crop: in one alone, and unknown to this fewstep"]
    assert newer.differs(newer) == []
    another = replace(newer, unknown={"crop": "none"})
    assert newer.differs(another) == ["crop: centre against none"]


@pytest.mark.parametrize("name", ["features", "reference", "resolution", "num", "measures"])
def test_damaged_files_are_refused(name):
    plain = json.loads(json.dumps(PROTOCOL.plain()))
    with pytest.raises(ValueError, match=name):
        Protocol.of_plain({key: value for key, value in plain.items() if key != name})
    with pytest.raises(ValueError, match=name):
        Protocol.of_plain(plain | {name: [{}]})


def test_what_readers_are_told():
    told = PROTOCOL.told()
    assert told["features"] == "classifier a"
    assert told["reference"] == "b (5 images, split train)"
    assert (told["samples"], told["seed"], told["guidance"]) == ("4", "3", "1.5")
    assert told["left out"] == "diversity (the samples have no labels)"
    assert told["best of"] == "euler, heun"
    empty = replace(PROTOCOL, features=None, left_out={}, tried=(), seed=None, split="")
    assert not {"features", "left out", "best of", "seed"} & set(empty.told())
    assert empty.told()["reference"] == "b (5 images)"
