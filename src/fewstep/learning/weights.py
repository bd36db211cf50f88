"""Weights over time of a squared error in x0."""

from typing import Literal

import torch

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.types import Time

Weighting = Literal["uniform", "snr", "snr_plus_one", "truncated_snr", "output"]


def weight(kind: Weighting, denoiser: Denoiser, t: Time) -> Time:
    """One number per sample, for SNR = (alpha/sigma)²:

    uniform 1; snr: the error in the noise; snr_plus_one: in v; truncated_snr max(SNR, 1): the larger of the errors in
    x0 and in the noise (arXiv:2202.00512); output 1/out²: in what the network itself predicts (EDM's lambda).
    """
    if kind == "output":
        return denoiser.coefficients(t).out ** -2
    snr = (denoiser.process.alpha(t) / denoiser.process.sigma(t)) ** 2
    if kind == "uniform":
        return torch.ones_like(snr)
    return {"snr": snr, "snr_plus_one": snr + 1, "truncated_snr": snr.clamp(min=1)}[kind]
