"""Weights over time of a distance in x0."""

from typing import Literal

import torch

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.process import Process
from fewstep.diffusion.types import Time

ByNoise = Literal["uniform", "snr", "snr_plus_one", "truncated_snr", "karras"]
Weighting = Literal[ByNoise, "output"]
IntervalWeighting = Literal[ByNoise, "gap", "level_gap"]
SIGMA_DATA = 0.5  # of images in [-1, 1], as published


def weight(kind: Weighting, denoiser: Denoiser, t: Time) -> Time:
    """One number per sample, `by_noise` or output: 1/out², so that a squared error counts in what
    the network itself predicts (EDM's lambda).
    """
    if kind == "output":
        return denoiser.coefficients(t).out ** -2
    return by_noise(kind, denoiser.process, t)


def interval_weight(kind: IntervalWeighting, process: Process, t: Time, s: Time) -> Time:
    """One number per interval t > s: `by_noise` at t, or one over the interval's length
    (arXiv:2310.14189).

    gap: the length t - s in the process's own time, for grids that may begin at pure noise, where
    sigma/alpha is infinite. level_gap: the length in sigma/alpha, for intervals that are chosen
    there: close to pure noise they are too short in any other time. For EDM the two are the same.
    """
    if kind == "gap":
        return 1 / (t - s)
    if kind == "level_gap":
        return 1 / (process.level(t) - process.level(s))
    return by_noise(kind, process, t)


def by_noise(kind: ByNoise, process: Process, t: Time) -> Time:
    """One number per sample, for SNR = (alpha/sigma)²:

    uniform 1; snr: the error in the noise; snr_plus_one: in v; truncated_snr max(SNR, 1): the
    larger of the errors in x0 and in the noise (arXiv:2202.00512); karras SNR + 1/0.5²: the error
    in what an EDM network of images says.
    """
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    if kind == "uniform":
        return torch.ones_like(snr)
    return {
        "snr": snr,
        "snr_plus_one": snr + 1,
        "truncated_snr": snr.clamp(min=1),
        "karras": snr + SIGMA_DATA**-2,
    }[kind]
