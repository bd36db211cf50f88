"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

One convention everywhere, the g-form: x0 = x0_null + g (x0_cond - x0_null); g = 1 is no guidance.
The w-form of some papers is g = 1 + w, converted where such numbers come in.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise, Denoiser
from fewstep.diffusion.types import Sample, Time, per_sample, to_device

Scale = float | Tensor | Callable[[Time], Time]


class Guidance(NamedTuple):
    """What a model's `guidance` argument means.

    doubled: two evaluations per step; input: the network reads the scale; fixed: it was distilled
    at `default`; none: the model has no unconditional side. low … high: the range that it was made
    for. fading: (full, none) of the dynamic guidance (`fading`) that it is sampled with where
    nobody says; None: the same scale at all times.
    """

    kind: Literal["doubled", "input", "fixed", "none"] = "none"
    low: float = 1.0
    high: float = 1.0
    default: float = 1.0
    fading: tuple[float, float] | None = None

    def told(self) -> dict[str, Any]:
        """As plain data; without `fading` where there is none."""
        told = self._asdict()
        if self.fading is None:
            del told["fading"]
        return told


def check_fading(fading: tuple[float, float]) -> None:
    """ValueError unless it goes from a time up to a noisier one."""
    full, none = fading
    if not full <= none or not (math.isfinite(full) and math.isfinite(none)):
        raise ValueError(f"fading goes from a time up to a noisier one, got {full:g}, {none:g}")


def guided(denoiser: Denoiser, scale: Scale) -> Denoise:
    """The denoiser with guidance `scale`: a number, one per sample, or a function of the time.

    Where the network reads "guidance" it is told the scale; otherwise the number 1 leaves the
    denoiser as it is, and any other scale evaluates one doubled batch (2 evaluations).
    """
    if "guidance" not in denoiser.inputs:
        alone = isinstance(scale, int | float) and scale == 1
        return denoiser if alone else doubled(denoiser, scale)

    def told(x_t: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        g = to_device(_at(scale, t), x_t.device)
        return denoiser(x_t, t, cond.with_values(guidance=g), s)

    return told


def doubled(denoiser: Denoiser, scale: Scale) -> Denoise:
    """The denoiser under guidance in one doubled batch, whatever it reads."""

    def both(x_t: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        both_s = None if s is None else torch.cat([s, s])
        x0, x0_null = denoiser(
            torch.cat([x_t, x_t]), torch.cat([t, t]), cond.doubled(), both_s
        ).chunk(2)
        return x0_null + per_sample(_at(scale, t), x_t) * (x0 - x0_null)

    return both


def _at(scale: Scale, t: Time) -> Tensor:
    """The scale of each row at its time."""
    g = scale(t) if callable(scale) else scale
    if isinstance(g, Tensor):
        return to_device(g, t.device, t.dtype).expand(t.shape)
    return torch.full_like(t, g)


def fading(scale: float, full: float, none: float) -> Callable[[Time], Time]:
    """Dynamic guidance (arXiv:2406.14539): `scale` at times up to `full`, 1 from `none` on, a line
    between the two.

    full = none switches: that time itself is still guided. Times in the process's own unit.
    """

    def at(t: Time) -> Time:
        share = ((none - t) / (none - full)).clamp(0, 1) if none > full else (t <= full).to(t.dtype)
        return 1 + (scale - 1) * share

    return at
