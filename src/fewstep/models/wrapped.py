"""`from_network`: a model around any module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.choice import Choice, replaced
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Parameterization
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import Ode
from fewstep.errors import option_errors
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Codec
from fewstep.models.conditioner import Conditioner, Labels, Unconditional
from fewstep.models.network import TimeInput
from fewstep.models.outside import Nameless, OutsideModule, OutsideNetwork, labels_of
from fewstep.models.space import Space

C = TypeVar("C", bound=Choice)


def from_network(
    network: nn.Module | OutsideNetwork,
    *,
    process: Process | str,
    prediction: Parameterization | str,
    shape: Sequence[int],
    classes: int = 0,
    null: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    time_input: TimeInput | None = None,
    call: str | None = None,
    codec: Codec | str = "pixels",
    conditioner: Conditioner | None = None,
) -> DiffusionModel:
    """A model of your own network, to sample from and to distil.

    network: an `OutsideNetwork` of a file of yours, which can be saved and loaded, or a bare
    module. process: what its t means and how it was noised; prediction: what it gives (epsilon,
    velocity, flow, sample, edm). shape: of a sample, (channels, height, width). classes: how many
    labels it takes, 0 … classes - 1; null: whether `classes` itself means "any", which guidance
    needs. weights: the state_dict of your module. time_input: the unit of the time that it takes,
    t (identity), 1000 t (thousand) or 250 ln t (log_sigma). call: "x, timesteps=t, y=label", where
    the signature of `forward` does not show it. conditioner: in place of labels.

    Raises ValueError, in one line, for names that are unknown, weights of another module, and a
    module that fails, gives another shape than x, or is not finite at t_max.
    """
    found = _chosen(Process, process, "process")  # type: ignore[type-abstract]
    predicts = _chosen(Parameterization, prediction, "prediction")  # type: ignore[type-abstract]
    shape = tuple(int(n) for n in shape)
    if not shape or min(shape) < 1 or classes < 0:
        raise ValueError(
            f"a shape of whole numbers from 1 on, and classes from 0: {shape=} {classes=}"
        )
    coded = _chosen(Codec, codec, "codec")  # type: ignore[type-abstract]
    if conditioner is None:
        conditioner = Labels(classes, null) if classes else Unconditional()
    made = conditioner.build()
    space = Space(shape, made.columns)
    module = _module(network, space, time_input, call)
    if weights is not None:
        try:
            module.module.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"these weights are not the network's: {reason[:300]}") from None
    denoiser = Denoiser(module, found, predicts).eval()
    if set(made.columns) <= {"label"}:
        _refuse_unfit(denoiser, space)
    scale = Guidance("doubled", 1.0, 8.0, 1.0) if made.null else Guidance()
    return DiffusionModel(denoiser, coded.build(), made, shape, Ode(), scale)


def _module(
    network: nn.Module | OutsideNetwork,
    space: Space,
    time_input: TimeInput | None,
    call: str | None,
) -> OutsideModule:
    """The module in fewstep's call, with what was said of it."""
    told: dict[str, Any] = {}
    if time_input is not None:
        told["time_input"] = time_input
    if call is not None:
        told["call"] = call
    spec = network if isinstance(network, OutsideNetwork) else Nameless()
    try:
        spec = replaced(spec, **told)
    except ValueError as error:
        raise ValueError("; ".join(option_errors(error)) or str(error)) from None
    module = network if isinstance(network, nn.Module) else spec.module(space)
    return OutsideModule(spec, space, module)


def _refuse_unfit(denoiser: Denoiser, space: Space) -> None:
    """ValueError where the network says nothing of samples of the space."""
    network, top = denoiser.network, denoiser.own.t_max
    assert isinstance(network, OutsideModule)
    for label in labels_of(space):
        f = network.trial(label, top)
        if not torch.isfinite(f).all():
            name = type(network.module).__name__
            raise ValueError(f"{name} gives numbers that are not finite at t_max={top:g}")


def _chosen(family: type[C], value: C | str, name: str) -> C:
    """The choice of a name. ValueError, in one line, for others."""
    try:
        return family.parse(value)
    except ValueError as error:
        told = "; ".join(option_errors(error)) or str(error)
        raise ValueError(f"{name}: {told}") from None
