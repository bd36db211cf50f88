"""What the configuration of a diffusers scheduler says of a model: its process, what its network
predicts, in which unit it takes the time, and how it is sampled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.diffusion.parameterization import (
    CmBoundary,
    Edm,
    Epsilon,
    LcmBoundary,
    Parameterization,
    Score,
    predicted,
)
from fewstep.diffusion.process import End, Process, VarianceExploding, VariancePreservingTable
from fewstep.diffusion.samplers import FlowMap, Ode, Renoise, Sampler
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun
from fewstep.diffusion.times import Karras, Strided, Trailing
from fewstep.models.library import class_options
from fewstep.models.network import TimeInput

FEW_STEP = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler")
"""Schedulers of models that were distilled."""
TABLES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True)
class Scheduled:
    """process, prediction, time_input: of the network. sampler: what its scheduler would do. unit:
    whether its images are those in [0, 1], not in [-1, 1].
    """

    process: Process
    prediction: Parameterization
    time_input: TimeInput
    sampler: Sampler
    unit: bool = False


def read(described: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class of a scheduler's configuration, and its options with the class's defaults.
    ValueError for one that diffusers does not have.
    """
    name = class_name(described)
    try:
        known = class_options(f"diffusers.{name}")
    except AttributeError:
        raise ValueError(f"diffusers has no scheduler {name[:60]!r}") from None
    return name, {**known, **plain(described)}


def scheduled(name: str, schedule: Mapping[str, Any]) -> Scheduled:
    """What a scheduler and all its options say of a model of pixels, or of latents. ValueError for
    those that are not known.
    """
    if name == "ScoreSdeVeScheduler":
        process = VarianceExploding(schedule["sigma_min"], schedule["sigma_max"])
        return Scheduled(process, Score(), "identity", Ode(40, solver=Heun()), unit=True)
    if name == "KarrasVeScheduler":
        # Its pipeline asks such a score network in [0, 1] for images in [-1, 1].
        process = VarianceExploding(schedule["sigma_min"] / 2, schedule["sigma_max"] / 2)
        return Scheduled(process, Score(), "identity", Ode(40, solver=Heun()), unit=True)
    if name == "CMStochasticIterativeScheduler":
        process = VarianceExploding(schedule["sigma_min"], schedule["sigma_max"])
        if schedule["s_noise"] != 1:
            raise ValueError(f"its scheduler adds noise times s_noise={schedule['s_noise']}")
        jumps = Renoise(1, Karras(schedule["rho"], "t_min"))
        return Scheduled(process, CmBoundary(schedule["sigma_data"]), "log_sigma", jumps)
    if name.startswith("EDM"):
        if predicted(schedule) != Epsilon():  # their word for EDM's own F
            raise ValueError("no EDM network is known whose F has another sign than EDM's own")
        process = VarianceExploding(schedule["sigma_min"], schedule["sigma_max"])
        sampler = Ode(18, Karras(schedule["rho"]), Heun())
        return Scheduled(process, Edm(schedule["sigma_data"]), "quarter_log_sigma", sampler)
    return Scheduled(
        table(schedule), prediction_of(name, schedule), "identity", sampler_of(name, schedule)
    )


def table(schedule: Mapping[str, Any]) -> VariancePreservingTable:
    """The noise levels of a scheduler's configuration. ValueError for those that are not known."""
    if "beta_schedule" not in schedule or schedule.get("trained_betas") is not None:
        raise ValueError(f"the noise levels of {class_name(schedule)} are no table of betas")
    kind = schedule["beta_schedule"]
    if kind not in TABLES:
        raise ValueError(f"no table of noise levels is known as {kind!r}: {', '.join(TABLES)}")
    return VariancePreservingTable(
        size=schedule["num_train_timesteps"],
        beta_start=schedule["beta_start"],
        beta_end=schedule["beta_end"],
        schedule=kind,
        zero_snr=bool(schedule.get("rescale_betas_zero_snr")),
    )


def prediction_of(scheduler: str, schedule: Mapping[str, Any]) -> Parameterization:
    """What the network predicts, with LCM's boundary around it where the scheduler has one."""
    of = predicted(schedule)
    return LcmBoundary(of) if scheduler == "LCMScheduler" else of


def sampler_of(scheduler: str, schedule: Mapping[str, Any]) -> Sampler:
    """What a model with a table is sampled with: a few-step model as its scheduler does it, DDIM
    where the folder says so, DPM-Solver++ for all others. All of them begin at the last index.
    """
    total = schedule.get("original_inference_steps") or 50
    if scheduler == "LCMScheduler":
        return Renoise(4, Strided(Trailing(), total))
    if scheduler == "TCDScheduler":  # which ends at index 0
        return FlowMap(4, Strided(Trailing("t_min"), total), gamma=0.3, shortens="time")
    if scheduler == "DDIMScheduler":
        end: End = "t_data" if schedule.get("set_alpha_to_one", True) else "t_min"
        return Ode(50, Trailing(end), Euler())
    return Ode(25, Trailing(), Dpmpp2m())


def clip_of(schedule: Mapping[str, Any]) -> float | None:
    """At what its pipeline cuts x0."""
    if schedule.get("clip_denoised"):
        return 1.0
    if schedule.get("clip_sample"):
        return float(schedule.get("clip_sample_range", 1.0))
    return None


def class_name(config: Mapping[str, Any]) -> str:
    """The class that a configuration names."""
    return str(config.get("_class_name", "its scheduler"))


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as its file has it."""
    found: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return found
