"""How guidance is asked for, and who can be asked."""

from types import SimpleNamespace

import pytest

from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import CmBoundary, Edm
from fewstep.learning.guidance import GuidanceRange, learned


@pytest.mark.parametrize("number", [3, 2.5, 1])
def test_a_number_alone_is_that_one_scale(number):
    assert GuidanceRange.parse(number) == GuidanceRange(float(number), float(number))


def test_a_range_is_spelled_out():
    found = GuidanceRange.parse({"low": 1, "high": 4, "embed": True})
    assert found == GuidanceRange(1.0, 4.0, embed=True)
    with pytest.raises(ValueError, match="low=3 is above high=2"):
        GuidanceRange(3.0, 2.0)
    for wrong in (True, -1, "strong"):
        with pytest.raises(ValueError, match=r"mapping|greater than|guidance_range"):
            GuidanceRange.parse(wrong)


def model(kind="doubled", low=1.0, high=8.0, default=1.0, null=True, told=False, of=None):
    """A teacher, as far as its guidance goes."""
    inputs = ("label", "guidance") if told else ("label",)
    return SimpleNamespace(
        guidance=Guidance(kind, low, high, default),
        conditioner=SimpleNamespace(null=null),
        denoiser=SimpleNamespace(inputs=inputs, parameterization=of or Edm()),
    )


def test_only_a_model_that_knows_no_label_can_be_guided():
    assert GuidanceRange().inputs(model(null=False)) == frozenset()
    with pytest.raises(ValueError, match='knows "no label"'):
        GuidanceRange(2.0, 2.0).inputs(model(null=False))


@pytest.mark.parametrize(
    ("teacher", "scales"),
    [
        (model(), GuidanceRange()),
        (model(default=3.0), GuidanceRange(3.0, 3.0)),
        (model("none"), GuidanceRange()),
        (model("fixed", 3.0, 3.0, 3.0), GuidanceRange()),
        (model("input", 1.0, 5.0, 2.0, told=True), GuidanceRange(1.0, 5.0, embed=True)),
    ],
)
def test_where_nobody_says_it_is_the_teachers_own(teacher, scales):
    assert learned(None, teacher, "teacher", "x") == scales


@pytest.mark.parametrize(
    ("asked", "teacher", "by", "says"),
    [
        (GuidanceRange(3.0, 3.0), model("none"), "teacher", "no unconditional side"),
        (GuidanceRange(3.0, 3.0), model("fixed", 3.0, 3.0, 3.0), "teacher", "at guidance 3"),
        (GuidanceRange(), model("fixed", 3.0, 3.0, 3.0), "teacher", "cannot be guided again"),
        (GuidanceRange(3.0, 3.0), model(), "nothing", "x asks no teacher .* must be 1"),
        (None, model(default=3.0), "nothing", "with guidance 3, which x cannot"),
        (None, model("input", told=True), "nothing", "reads its guidance, which x cannot"),
        (None, model(of=CmBoundary()), "teacher", "consistency model"),
    ],
)
def test_what_cannot_be_learned_is_refused_by_name(asked, teacher, by, says):
    with pytest.raises(ValueError, match=says):
        learned(asked, teacher, by, "x")


def test_the_data_can_be_learned_beside_a_guided_teacher():
    for teacher in (model(default=3.0), model("fixed", 3.0, 3.0, 3.0)):
        assert learned(GuidanceRange(), teacher, "nothing", "x") == GuidanceRange()
    assert learned(GuidanceRange(2.0, 2.0), model("none"), "student", "x").low == 2.0


def test_what_it_means_to_the_student():
    assert GuidanceRange().meaning == Guidance()
    assert GuidanceRange(2.0, 2.0).meaning == Guidance("fixed", 2.0, 2.0, 2.0)
    assert GuidanceRange(1.0, 5.0).meaning == Guidance("fixed", 1.0, 5.0, 3.0)
    assert GuidanceRange(1.0, 5.0, embed=True).meaning == Guidance("input", 1.0, 5.0, 3.0)
