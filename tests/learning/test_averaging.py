"""Moving averages, against torch's own and against their closed form."""

import copy

import pytest
import torch
from tests.training.tiny import SHAPE, Phased, Single, config, part, state, trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fewstep.learning.averaging import decay_of, ema_update, lerp, share_of_start
from fewstep.training.optimizers import Sgd


def network(seed):
    """With buffers of both kinds: numbers that training moves, and a counter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def moved(net, seed):
    """Something like a training step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    net(torch.randn(4, 1, 4, 4, generator=generator))  # moves the statistics of the batch norm


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 0.9999])
def test_it_is_torchs_average(decay):
    net = network(0)
    target = copy.deepcopy(net)
    oracle = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay))
    oracle.update_parameters(net)  # its first call copies
    for seed in range(5):
        moved(net, seed)
        ema_update(target, net, decay)
        oracle.update_parameters(net)
        found, expected = target.state_dict(), oracle.module.state_dict()
        assert found.keys() == expected.keys()
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def test_buffers_are_copied_not_averaged():
    net, target = network(0), network(1)
    moved(net, 0)
    ema_update(target, net, 0.9)
    for (key, mine), theirs in zip(target.named_buffers(), net.buffers(), strict=True):
        assert torch.equal(mine, theirs), key
        assert mine.data_ptr() != theirs.data_ptr()
    assert target[1].num_batches_tracked == 1


def test_decay_zero_copies_and_shares_nothing():
    net, target = network(0), network(1)
    ema_update(target, net, 0.0)
    for mine, theirs in zip(target.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        assert mine.grad is None
        assert mine.requires_grad


def test_the_source_and_its_graph_stay_as_they_are():
    net, target = network(0), network(1)
    before = copy.deepcopy(net.state_dict())
    ema_update(target, net, 0.3)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert all(p.grad_fn is None and p.is_leaf for p in target.parameters())


def test_lerp_moves_by_its_weight():
    targets, sources = (
        [torch.zeros(2), torch.ones(3)],
        [torch.full((2,), 4.0), torch.full((3,), 5.0)],
    )
    lerp(targets, sources, 0.25)
    assert targets[0].tolist() == [1.0, 1.0]
    assert targets[1].tolist() == [2.0, 2.0, 2.0]


def recorded(method, **changes):
    """The states behind each step, the first one from before the run."""
    one = trainer(method, None, config(optimizer=Sgd(lr=0.3), **changes))
    states = [state(one)]
    one.fit(lambda seen: states.append(state(one)))
    return one, states


def closed_form(weights, decay, warmup):
    """The average behind weights w_0, w_1, … w_n: of w_k it holds (1 - d_k) d_(k+1) … d_n."""
    found = weights[0]
    for k, now in enumerate(weights[1:]):
        kept = min(decay, k / (k + 9)) if warmup else decay
        found = kept * found + (1 - kept) * now
    return found


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.9, 0.5, 0.2, 0.0])
def test_the_trainers_average_has_the_closed_form(decay, warmup):
    _, states = recorded(Single(), ema=(decay, 0.99), ema_warmup=warmup)
    for key, found in part(states[-1], f"ema/student/{decay}/").items():
        weights = [s[key.replace(f"ema/student/{decay}", "net/student")].double() for s in states]
        expected = closed_form(weights, decay, warmup)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
        assert (weights[-1] - weights[0]).abs().max() > 1e-2  # so the tolerance means something


@pytest.mark.parametrize("method", [Single(), Phased()])
@pytest.mark.parametrize("decay", [0.5, 0.999, 0.999999])
def test_nothing_of_the_first_weights_of_a_phase_is_in_an_average(method, decay):
    """Whatever they were: the first update takes the weights behind the step as they are."""
    one = trainer(method, None, config(ema=(decay,)))
    for seen in one.steps():
        if seen.clock.phase_step == 0:
            for key, value in one.state.averages["student"][decay].items():
                assert torch.equal(value, one.state.leaves["student"][key])


@pytest.mark.parametrize("decay", [0.9, 0.98, 0.999, 0.9999])
@pytest.mark.parametrize("updates", [1, 2, 5, 100, 3000])
def test_what_an_average_holds_of_the_steps_of_a_run(decay, updates):
    """Nothing from before it; in a long run what the plain average holds, up to what that still
    holds of the beginning; in a short one the last tenth.
    """
    held = torch.zeros(updates + 1, dtype=torch.float64)  # by the update that brought it
    held[0] = 1
    for k in range(updates):
        held[: k + 1] *= decay_of(decay, k)
        held[k + 1] = 1 - decay_of(decay, k)
    assert held.sum() == pytest.approx(1)
    assert held[0] == 0 == share_of_start(decay, updates)
    assert share_of_start(decay, updates, warmup=False) == decay**updates
    age = (held * torch.arange(updates, -1, -1)).sum().item()
    assert age <= min(decay / (1 - decay), updates / 10) + 1e-6
    if updates > 30 / (1 - decay):
        assert age == pytest.approx(decay / (1 - decay), rel=1e-3)


def test_every_decay_has_its_own_average():
    _, states = recorded(Single(), ema=(0.0, 0.5, 0.99))
    last = states[-1]
    for key, weight in part(last, "net/student").items():
        name = key.removeprefix("net/student/")
        fast, middle, slow = (last[f"ema/student/{d}/{name}"] for d in (0.0, 0.5, 0.99))
        assert torch.equal(fast, weight)
        assert 0 < (middle - weight).norm() < (slow - weight).norm()


@pytest.mark.parametrize("warmup", [True, False])
def test_a_phase_begins_its_average_anew_at_its_border(warmup):
    _, states = recorded(Phased(), ema=(0.9,), ema_warmup=warmup)
    for key, found in part(states[-1], "ema/student/0.9/").items():
        # The last of three phases begins at step 8 of 12.
        weights = [s[key.replace("ema/student/0.9", "net/student")].double() for s in states[8:]]
        expected = closed_form(weights, 0.9, warmup)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_the_exported_network_carries_the_average_and_is_a_copy():
    one, states = recorded(Single(dropout=0.5))
    exported, other = one.state.exported("student"), one.state.exported("student", 0.5)
    for key, value in exported.state_dict().items():
        assert torch.equal(value, states[-1][f"ema/student/0.9/{key}"])
        assert torch.equal(other.state_dict()[key], states[-1][f"ema/student/0.5/{key}"])
    assert not exported.training
    assert not any(p.requires_grad for p in exported.parameters())
    x = torch.randn(3, *SHAPE)
    assert torch.equal(exported(x), exported(x))  # without dropout
    with torch.no_grad():
        for p in exported.parameters():
            p.zero_()
    after = state(one)
    assert all(torch.equal(after[key], value) for key, value in states[-1].items())
    assert one.state.modules["student"].training
