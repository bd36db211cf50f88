"""No method waits for the device inside a step; what is meant to find waits finds each kind."""

import dataclasses

import pytest
import torch
from tests.training.tiny import Tokens
from tests.training.waits import WaitError, no_waits

from fewstep.choice import replaced
from fewstep.data.digits import Digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Edm
from fewstep.diffusion.process import VarianceExploding, VariancePreservingTable
from fewstep.diffusion.samplers import Ode
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Method
from fewstep.methods.diffusion import Diffusion
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Pixels
from fewstep.models.conditioner import Labels
from fewstep.models.dit import Dit
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training import trainer
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import Sgd

METHODS = {name: cls for name, cls in Method.kinds().items() if name in Method.offered()}
NETWORKS = {
    "unet": UNet(channels=4, multipliers=(1,), blocks=1, attention=(1,), head_channels=4, groups=2),
    "dit": Dit(width=8, depth=1, heads=2, patch=4),
}
EVERY_OPTION = {"precision": "fp16", "micro_batch": 2, "ema": (0.9, 0.5)}
FAR, NEAR = "meta", "cpu"
autocast = torch.autocast


@pytest.fixture(scope="module")
def digits():
    return Digits(limit=16).dataset()


@pytest.fixture(autouse=True)
def autocast_anywhere(monkeypatch):
    """PyTorch has no autocast for the device "meta"; the CPU's leaves its tensors as they are."""

    def anywhere(kind, dtype=None, enabled=True):
        return autocast(NEAR if kind == FAR else kind, dtype, enabled)

    monkeypatch.setattr(torch, "autocast", anywhere)


@pytest.fixture(autouse=True)
def a_device_without_values(monkeypatch):
    """A run asks its device for a value before it begins, once."""
    monkeypatch.setattr(trainer, "pick_device", torch.device)


class Labelled(Tokens):
    """Tokens that count as told the label, so that they can be guided."""

    inputs = ("label",)


def model_of(process):
    denoiser = Denoiser(Labelled(), process, Edm())
    guidance = Guidance("doubled", 1.0, 8.0, 1.0)
    return DiffusionModel(
        denoiser, Pixels().build(), Labels(10).build(), (1, 8, 8), Ode(), guidance
    )


def phases_without_waits(method, model, dataset, **config):
    """The phases of a run on the device, every step of which was taken without a wait."""
    steps = 4 if len(method.phases(100)) > 1 else 2
    chosen = {"steps": steps, "batch": 4, "optimizer": Sgd(), "ema": (0.5,), "device": FAR}
    run = Run(Digits(), method, trainer=TrainerConfig(**{**chosen, **config}))
    made = run.prepared(dataset, model=model).trainer
    with no_waits():
        seen = {step.clock.phase for step in made.steps()}
    assert {p.device.type for m in made.state.modules.values() for p in m.parameters()} == {FAR}
    return seen == set(range(len(made.phases) - 1))


@pytest.mark.parametrize(
    "process", [VarianceExploding(), VariancePreservingTable()], ids=["ve", "table"]
)
@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_no_method_waits_in_any_phase(cls, process, digits):
    assert phases_without_waits(cls(), model_of(process), digits)


FROM_DATA = {"consistency_training", "moment_matching", "easy_consistency"}
GUIDED = {
    name: cls
    for name, cls in METHODS.items()
    if "guidance" in {field.name for field in dataclasses.fields(cls)} and name not in FROM_DATA
}


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("cls", GUIDED.values(), ids=GUIDED)
def test_no_guided_method_waits(cls, embed, digits):
    """One scale, and a range that the student reads."""
    method = replaced(cls(), guidance=GuidanceRange(2.0, 2.0 + embed, embed))
    assert phases_without_waits(method, model_of(VarianceExploding()), digits)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_no_network_waits(network, digits):
    """In fp16 with a loss scale, several passes, two averages."""
    model = Fresh(network=network).load(digits.space, seed=0)
    assert phases_without_waits(Diffusion(), model, digits, **EVERY_OPTION)


def far():
    return torch.ones(3, device=FAR)


def set_one(x, value):
    x[0] = value


def backward_that_reads():
    """A gradient's hook is called inside a backward pass."""
    x = far().requires_grad_(True)
    x.register_hook(lambda gradient: bool(gradient.sum() > 0))
    x.sum().backward()


WAITS = {
    "to the device": lambda: torch.ones(3).to(FAR),
    "to another type on the device": lambda: torch.ones(3).to(FAR, torch.float16),
    "copied to the device": lambda: far().copy_(torch.ones(3)),
    "to the host": lambda: far().to(NEAR, non_blocking=True),
    "cpu": lambda: far().cpu(),
    "item": lambda: far()[0].item(),
    "float": lambda: float(far()[0]),
    "if": lambda: bool(far()[0] > 0),
    "tolist": lambda: far().tolist(),
    "all": lambda: bool((far() > 0).all()),
    "equal": lambda: torch.equal(far(), far()),
    "allclose": lambda: torch.allclose(far(), far()),
    "nonzero": lambda: far().nonzero(),
    "where without values": lambda: torch.where(far() > 0),
    "masked_select": lambda: far().masked_select(far() > 0),
    "unique": lambda: torch.unique(far()),
    "a mask as an index": lambda: far()[far() > 0],
    "several values at a mask": lambda: far().index_put_((far() > 0,), far()),
    "an index of the host": lambda: far()[torch.tensor([0, 1])],
    "a list as an index": lambda: far()[[0, 1]],
    "one number set": lambda: set_one(far(), 0.5),
    "one truth value set": lambda: set_one(far() > 0, False),
    "one number of the host": lambda: torch.where(far() > 0, far(), torch.tensor(0.5)),
    "tensor": lambda: torch.tensor([1.0, 2.0], device=FAR),
    "as_tensor": lambda: torch.as_tensor(0.5, device=torch.device(FAR)),
    "new_tensor": lambda: far().new_tensor([1.0]),
    "in a backward pass": backward_that_reads,
}
FREE = {
    "to the device, later": lambda: torch.ones(3).to(FAR, torch.float16, non_blocking=True),
    "copied to the device, later": lambda: far().copy_(torch.ones(3), non_blocking=True),
    "to another type": lambda: far().to(torch.float16),
    "made on the device": lambda: torch.full((3,), 0.5, device=FAR),
    "as_tensor of what is there": lambda: torch.as_tensor(far(), device=FAR),
    "a number of the host in a sum": lambda: far() + torch.tensor(0.5),
    "a number of Python's in a choice": lambda: torch.where(far() > 0, far(), 0.5),
    "a slice set": lambda: far()[1:].fill_(0.5),
    "one number at a mask": lambda: far().masked_fill_(far() > 0, 0.5),
    "an index on the device": lambda: far()[far().long()],
    "read on the host": lambda: float(torch.ones(3)[0]) + torch.ones(3)[[0, 1]].tolist()[0],
    "a tensor of the host": lambda: torch.tensor([1.0])[torch.tensor([True])],
}


@pytest.mark.parametrize("call", WAITS.values(), ids=WAITS)
def test_each_kind_of_wait_is_found(call):
    with pytest.raises(WaitError), no_waits():
        call()


@pytest.mark.parametrize("call", FREE.values(), ids=FREE)
def test_what_does_not_wait_goes_on(call):
    with no_waits():
        call()


def test_a_method_that_waits_is_found(digits, monkeypatch):
    """A real one, whose loss is made to read a value."""
    loss = Diffusion.loss

    def reading(self, nets, batch, clock):
        losses = loss(self, nets, batch, clock)
        assert float(losses.terms["denoising"].detach().mean()) >= 0
        return losses

    monkeypatch.setattr(Diffusion, "loss", reading)
    with pytest.raises(WaitError, match="a value is read"):
        phases_without_waits(Diffusion(), model_of(VarianceExploding()), digits)
