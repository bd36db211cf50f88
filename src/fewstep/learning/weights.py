"""Weights over time of a distance in x0."""

from typing import Literal

import torch

from fewstep.diffusion.denoiser import Denoise, Denoiser
from fewstep.diffusion.densities import FAR, TOP
from fewstep.diffusion.parameterization import Edm
from fewstep.diffusion.process import Process, Trig
from fewstep.diffusion.types import Time

ByNoise = Literal["uniform", "snr", "root_snr", "snr_plus_one", "truncated_snr", "karras"]
Weighting = Literal[ByNoise, "output"]
IntervalWeighting = Literal[ByNoise, "gap", "level_gap"]
SIGMA_DATA = 0.5  # of images in [-1, 1], as published


def sigma_data_of(denoiser: Denoise | None) -> float:
    """The standard deviation of the data, as the denoiser's prediction or process states it; 0.5
    where nobody does.
    """
    if not isinstance(denoiser, Denoiser):
        return SIGMA_DATA
    for part in (denoiser.parameterization.prediction, denoiser.own, denoiser.process):
        if isinstance(part, Edm | Trig):
            return part.sigma_data
    return SIGMA_DATA


def data_share(process: Process, t: Time) -> Time:
    """alpha, but at least what it is where EDM begins (sigma/alpha = 80) where sigma/alpha is above
    200: at pure noise, where students begin, a weight by alpha would be 0.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    return torch.where(sigma > FAR * alpha, sigma / TOP, alpha)


def counted_level(process: Process, t: Time) -> Time:
    """sigma/alpha; 80 where it is above 200."""
    level = process.level(t)
    return torch.where(level > FAR, TOP, level)


def weight(kind: Weighting, denoiser: Denoiser, t: Time) -> Time:
    """One number per sample, `by_noise` or output: 1/out², so that a squared error counts in what
    the network itself predicts (EDM's lambda).
    """
    if kind == "output":
        return denoiser.coefficients(t).out ** -2
    return by_noise(kind, denoiser.process, t, denoiser)


def interval_weight(
    kind: IntervalWeighting, process: Process, t: Time, s: Time, of: Denoise | None = None
) -> Time:
    """One number per interval t > s: `by_noise` at t, or one over the interval's length
    (arXiv:2310.14189). of: the denoiser whose sigma_data counts.

    gap: the length t - s in the process's own time, for grids that may begin at pure noise, where
    sigma/alpha is infinite. level_gap: the length in sigma/alpha, for intervals that are chosen
    there: close to pure noise they are too short in any other time. For EDM the two are the same.
    An interval from above 200 begins at 80 for it.
    """
    if kind == "gap":
        return 1 / (t - s)
    if kind == "level_gap":
        end = process.level(s)
        start = torch.where(end < TOP, counted_level(process, t), process.level(t))
        return 1 / (start - end)
    return by_noise(kind, process, t, of)


def by_noise(kind: ByNoise, process: Process, t: Time, of: Denoise | None = None) -> Time:
    """One number per sample, for SNR = (alpha/sigma)², which counts as at sigma/alpha = 80 where
    that is above 200:

    uniform 1; snr: the error in the noise; root_snr √SNR: the same for a distance that grows with
    the error and not its square (Huber's, far from 0); snr_plus_one: in v; truncated_snr
    max(SNR, 1): the larger of the errors in x0 and in the noise (arXiv:2202.00512); karras
    SNR + 1/sigma_data²: the error in what an EDM network says, with the sigma_data that the
    denoiser `of` states.
    """
    snr = (data_share(process, t) / process.sigma(t)) ** 2
    if kind == "uniform":
        return torch.ones_like(snr)
    if kind == "karras":
        return snr + sigma_data_of(of) ** -2
    return {
        "snr": snr,
        "root_snr": snr.sqrt(),
        "snr_plus_one": snr + 1,
        "truncated_snr": snr.clamp(min=1),
    }[kind]
