"""Conditions: what stays and what goes when a condition is taken away."""

import pytest
import torch

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws


def conditions(n):
    values = {
        "label": torch.arange(n),
        "text": torch.randn(n, 2, 3),
        "guidance": torch.arange(n) / n,
    }
    return Cond(values, {"label": torch.tensor([-1]), "text": torch.zeros(1, 2, 3)})


def test_the_unconditional_side_keeps_what_has_no_null():
    cond = conditions(4)
    bare = cond.unconditional()
    assert bare["label"].tolist() == [-1] * 4
    assert bare["text"].abs().sum() == 0
    assert torch.equal(bare["guidance"], cond["guidance"])
    assert cond["label"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_of_the_rows_is_dropped(share):
    n = 20_000
    cond = Cond({"label": torch.arange(n)}, {"label": torch.tensor([-1])})
    dropped = cond.dropped(share, Draws(0, range(n)))["label"]
    gone = dropped == -1
    assert torch.equal(dropped[~gone], torch.arange(n)[~gone])
    assert gone.double().mean().item() == pytest.approx(
        share, abs=4 * (share * (1 - share) / n) ** 0.5
    )


def test_a_row_is_dropped_in_all_its_values_and_whatever_its_batch():
    cond = conditions(64)
    dropped = cond.dropped(0.5, Draws(0, range(64)))
    gone = dropped["label"] == -1
    assert 0 < gone.sum() < 64
    assert torch.equal(dropped["text"].flatten(1).abs().sum(1) == 0, gone)
    assert torch.equal(dropped["guidance"], cond["guidance"])
    part = cond.select(10, 30).dropped(0.5, Draws(0, range(10, 30)))
    for name in ("label", "text", "guidance"):
        assert torch.equal(part[name], dropped[name][10:30])
    other = cond.dropped(0.5, Draws(1, range(64)))
    assert not torch.equal(other["label"], dropped["label"])


def test_dropping_nothing_and_everything():
    cond, draws = conditions(8), Draws(0, range(8))
    assert cond.dropped(0.0, draws) is cond
    assert draws.count == 0
    assert cond.dropped(1.0, draws)["label"].tolist() == [-1] * 8
    bare = Cond({"guidance": torch.ones(8)})
    assert bare.dropped(1.0, draws) is bare


def test_doubled_is_the_conditional_rows_and_then_the_others():
    cond = conditions(3)
    both = cond.doubled()
    assert both["label"].tolist() == [0, 1, 2, -1, -1, -1]
    assert torch.equal(both["text"], torch.cat([cond["text"], torch.zeros(3, 2, 3)]))
    assert torch.equal(both["guidance"], cond["guidance"].repeat(2))
    assert torch.equal(both.unconditional()["label"], torch.full((6,), -1))


def test_other_views_of_a_condition():
    cond = conditions(5)
    part = cond.select(1, 3)
    assert part["label"].tolist() == [1, 2]
    assert part.null["text"].shape == (1, 2, 3)
    assert part.unconditional()["text"].shape == (2, 2, 3)
    more = cond.with_values(guidance=torch.full((5,), 2.0), extra=torch.ones(5))
    assert more["guidance"].tolist() == [2.0] * 5
    assert more["extra"].sum() == 5
    assert "extra" not in cond.values
    assert torch.equal(more.unconditional()["label"], torch.full((5,), -1))
    assert cond.to("cpu")["label"].tolist() == [0, 1, 2, 3, 4]
    assert cond.to("meta").null["label"].device.type == "meta"


def test_a_row_is_null_when_all_that_has_a_null_is():
    cond = conditions(4)
    bare = cond.unconditional()
    label = torch.where(torch.tensor([True, False, True, False]), bare["label"], cond["label"])
    text = torch.where(torch.tensor([True, True, False, False])[:, None, None], bare["text"], 1.0)
    mixed = cond.with_values(label=label, text=text)
    assert mixed.is_null().tolist() == [True, False, False, False]
