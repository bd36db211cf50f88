"""`Denoiser`: a network, its process and its parameterization behind one question, "what is
x0?".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fewstep.choice import kind_of
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.parameterization import Coefficients, Parameterization
from fewstep.diffusion.process import Process
from fewstep.diffusion.types import Sample, Time, per_sample, time_dtype, to_device


@runtime_checkable
class Denoise(Protocol):
    """What solvers and samplers call: a denoiser, guided or not."""

    def __call__(self, x_t: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        """The clean sample expected behind x_t."""
        ...


def clipped(denoise: Denoise, largest: float) -> Denoise:
    """With x0 cut at ±largest, as pipelines of pixels do it in sampling."""

    def cut(x_t: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        return denoise(x_t, t, cond, s).clamp(-largest, largest)

    return cut


# A prediction with a coefficient above it says nothing of the data: 1/alpha where alpha is 0.
LARGEST = 1e6


class _LastTapReachedError(Exception):
    """Ends a forward pass whose remaining layers nobody asked for."""


class Denoiser(nn.Module):
    """x0 of x_t.

    network: called as network(x, t, cond, s) with t (and s) in the unit of `own`; names in
    `network.inputs` what it reads of the condition. process: the one that callers speak. own: the
    network's process, where it differs. Coefficients are computed in float64 and x0 in float32 (or
    the dtype of x_t, if higher); autocast surrounds the network alone, in the dtype `autocast`
    (None: off). Raises ValueError for a prediction that is undefined at t_max or t_min: epsilon
    where alpha is 0.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterization: Parameterization,
        own: Process | None = None,
    ):
        super().__init__()
        self.network, self.process, self.parameterization = network, process, parameterization
        self.own = own or process
        self.autocast: torch.dtype | None = None
        self._compiled: Callable[..., Tensor] | None = None
        self._refuse_undefined()

    def prepare(self, compiled: bool, checkpointing: bool) -> None:
        """How the network runs: compiled, in a second callable beside it (`features` needs the
        eager one, whose hooks fire), and recomputing activations in the backward pass.
        """
        self._compiled = torch.compile(self.network.forward) if compiled else None
        self.network.checkpointing = checkpointing  # type: ignore[assignment]

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the network reads beside x_t and t: "label", "text", "guidance", "s"."""
        return tuple(self.network.inputs)  # type: ignore[arg-type]

    def forward(
        self, x_t: Sample, t: Time, cond: Cond, s: Time | None = None, eager: bool = False
    ) -> Sample:
        """The expected clean sample, (batch, *shape). s: the target time of a flow map, where the
        network reads it. eager: not through the compiled network, in which no hook fires.
        """
        c, own_t, own_s = self._own(t, s)
        return self._affine(x_t, own_t, cond, own_s, c, eager)

    def velocity(self, x_t: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        """dx_t/dt of the probability flow on [t_min, t_max], in the caller's process.

        With x0 = skip·x + out·F it is (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) x0, composed
        in float64 before it touches x: near the data both terms grow as 1/sigma and cancel.
        """
        c, own_t, own_s = self._own(t, s)
        t = t.to(time_dtype(t.device))
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        alpha_rate, sigma_rate = self.process.rates(t)
        growth = sigma_rate / sigma
        pull = alpha_rate - alpha * growth
        composed = Coefficients(growth + pull * c.skip, pull * c.out, c.inp)
        return self._affine(x_t, own_t, cond, own_s, composed)

    def coefficients(self, t: Time) -> Coefficients:
        """skip, out and inp at t, for an x_t of the caller's process; float64."""
        return self._own(t, None)[0]

    def features(
        self,
        x_t: Sample,
        t: Time,
        cond: Cond,
        layers: Sequence[str],
        until_last: bool = True,
        s: Time | None = None,
    ) -> tuple[Sample | None, dict[str, Tensor]]:
        """(x0, outputs of the named sub-modules of the network) of one pass; keys in the order of
        `layers`.

        until_last: stop behind the last of them, x0 is then None. A layer that runs twice gives its
        first output.
        """
        taps: dict[str, Tensor] = {}

        def tap(name: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
                taps.setdefault(name, output)
                if until_last and len(taps) == len(set(layers)):
                    raise _LastTapReachedError

            return hook

        # A wrong name fails before any hook is there.
        modules = [self.network.get_submodule(name) for name in layers]
        handles = [module.register_forward_hook(tap(name)) for name, module in zip(layers, modules)]
        x0 = None
        try:
            x0 = self(x_t, t, cond, s, eager=True)
        except _LastTapReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return x0, {name: taps[name] for name in layers}

    def under(self, process: Process) -> Denoiser:
        """The same network seen from another process. ValueError where the network's range ends
        before that one's.
        """
        ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
        low, high = process.angle(ends).tolist()
        own = torch.tensor([self.own.t_min, self.own.t_max], dtype=torch.float64)
        own_low, own_high = self.own.angle(own).tolist()
        if low < own_low * (1 - 1e-9) or high > own_high * (1 + 1e-9):
            raise ValueError(
                f"the network knows noise levels of angle {own_low:.4g} to {own_high:.4g}, the "
                f"process asks for "
                f"{low:.4g} to {high:.4g}; narrow it first: process.within(denoiser.own)"
            )
        other = Denoiser(self.network, process, self.parameterization, self.own)
        other.autocast, other._compiled = self.autocast, self._compiled
        return other

    def _refuse_undefined(self) -> None:
        """ValueError where a coefficient at an end of the process is not finite, or too large."""
        for t in (self.process.t_min, self.process.t_max):
            time = torch.tensor([t], dtype=torch.float64, device="cpu")
            skip, out, inp = self.coefficients(time)
            # Where noise explodes, what is made of it may be as large.
            noise = max(1.0, self.process.sigma(time).item())
            worst = torch.cat([skip, out, inp]).abs().max().item() / noise
            if not worst <= LARGEST:
                prediction, process = (
                    kind_of(type(one)) for one in (self.parameterization, self.process)
                )
                raise ValueError(
                    f"parameterization {prediction} says nothing of the data at t={t:g} of process "
                    f"{process}: a coefficient of its x0 is {worst:g}. Where no data is left "
                    f"choose another one (velocity, flow, sample_prediction, edm), or a smaller "
                    f"t_max"
                )

    def _own(self, t: Time, s: Time | None) -> tuple[Coefficients, Time, Time | None]:
        """Coefficients on the caller's x_t, and the times in the network's own process."""
        t = t.to(time_dtype(t.device))
        if self.own == self.process:
            return self.parameterization(self.process, t), t, s
        own_t = self.own.time_of(self.process.angle(t))
        own_s = None if s is None else self.own.time_of(self.process.angle(s.to(t.dtype)))
        c = self.parameterization.seen_from(self.process, t, self.own, own_t)
        return c, own_t, own_s

    def _affine(
        self,
        x_t: Sample,
        t: Time,
        cond: Cond,
        s: Time | None,
        c: Coefficients,
        eager: bool = False,
    ) -> Sample:
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        t = to_device(t, x_t.device)
        s = None if s is None else to_device(s, x_t.device)
        x = per_sample(c.inp, x_t) * x_t
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            network = self.network if eager or self._compiled is None else self._compiled
            f = network(x, t, cond, s)
        return per_sample(c.skip, x_t) * x_t + per_sample(c.out, x_t) * f.to(x_t.dtype)
