"""How guidance is asked for, and who can be asked."""

from types import SimpleNamespace

import pytest

from fewstep.diffusion.guidance import Guidance
from fewstep.learning.guidance import GuidanceRange

ANY = SimpleNamespace(conditioner=SimpleNamespace(null=True))
NEVER = SimpleNamespace(conditioner=SimpleNamespace(null=False))


@pytest.mark.parametrize("number", [3, 2.5, 1])
def test_a_number_alone_is_that_one_scale(number):
    assert GuidanceRange.parse(number) == GuidanceRange(float(number), float(number))
    assert GuidanceRange.parse(number).one_scale(ANY) == number


def test_a_range_is_spelled_out():
    found = GuidanceRange.parse({"low": 1, "high": 4, "embed": True})
    assert found == GuidanceRange(1.0, 4.0, embed=True)
    with pytest.raises(ValueError, match="low=3 is above high=2"):
        GuidanceRange(3.0, 2.0)
    for wrong in (True, -1, "strong"):
        with pytest.raises(ValueError, match=r"mapping|greater than|guidance_range"):
            GuidanceRange.parse(wrong)


@pytest.mark.parametrize("more", [GuidanceRange(1.0, 2.0), GuidanceRange(2.0, 2.0, embed=True)])
def test_methods_of_one_scale_take_one_scale(more):
    with pytest.raises(ValueError, match="learns one guidance scale"):
        more.one_scale(ANY)


def test_only_a_model_that_knows_no_label_can_be_guided():
    assert GuidanceRange().one_scale(NEVER) == 1
    with pytest.raises(ValueError, match='knows "no label"'):
        GuidanceRange(2.0, 2.0).one_scale(NEVER)


def test_what_it_means_to_the_student():
    assert GuidanceRange().meaning == Guidance()
    assert GuidanceRange(2.0, 2.0).meaning == Guidance("fixed", 2.0, 2.0, 2.0)
    assert GuidanceRange(1.0, 5.0).meaning == Guidance("fixed", 1.0, 5.0, 3.0)
    assert GuidanceRange(1.0, 5.0, embed=True).meaning == Guidance("input", 1.0, 5.0, 3.0)
