"""How pipelines of diffusers are told to sample as a model does: scheduler, times, guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fewstep.choice import kind_of
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import (
    ConsistencyBoundary,
    LcmBoundary,
    Parameterization,
    predicting,
)
from fewstep.diffusion.process import VariancePreservingTable
from fewstep.diffusion.samplers import FlowMap, Ode, Renoise, Sampler
from fewstep.diffusion.solvers import Dpmpp2m, Euler
from fewstep.diffusion.times import Strided, Times
from fewstep.models.bundle import DiffusionModel
from fewstep.models.diffusers_network import DiffusersModule
from fewstep.models.library import library_class
from fewstep.models.unet2d_condition import UNet2dConditionModule
from fewstep.training.trainer import Trainer

FAR = 1e6  # a timestep_scaling at which LCMScheduler's boundary is nowhere


@dataclass(frozen=True)
class Schedule:
    """A scheduler of diffusers and what its pipeline is called with.

    name, config: its class and configuration. call: arguments of the pipeline, beside the prompt.
    """

    name: str
    config: dict[str, Any]
    call: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The scheduler."""
        return library_class(f"diffusers.{self.name}")(**self.config)

    @property
    def times(self) -> list[int]:
        """Where the network is evaluated."""
        scheduler = self.build()
        if "timesteps" in self.call:
            scheduler.set_timesteps(timesteps=self.call["timesteps"])
        else:
            scheduler.set_timesteps(self.call["num_inference_steps"])
        return [int(t) for t in scheduler.timesteps]


def schedule_of(denoiser: Denoiser, sampler: Sampler) -> Schedule:
    """How it is said that a network is sampled so. ValueError for what diffusers cannot say."""
    _check(denoiser)
    process = denoiser.process
    assert isinstance(process, VariancePreservingTable)
    times = sampler.grid(process).tolist()[:-1]
    if any(t != round(t) for t in times):
        raise ValueError(
            "diffusers evaluates at whole indices, this sampler's lie between them: times of kind "
            "trailing are whole"
        )
    found = _named(denoiser, sampler, [round(t) for t in times])
    return Schedule(found.name, {**_table(denoiser), **found.config}, found.call)


def unsaid(trainer: Trainer, model: Any) -> list[str]:
    """A line for each student of a model of diffusers that it will not be able to sample: better
    now than when it is trained.
    """
    if not isinstance(model, DiffusionModel):
        return []
    lines, end = [], trainer.clock(trainer.config.steps - 1)
    for name in trainer.state.roles.exports:
        student: Any = trainer.state.modules[name]
        sampler: Any = trainer.method.sampler(end, name)
        if reason := obstacle(student, sampler):
            lines.append(f"warning: {name} will not be exported: {reason}")
            if "end=t_data" in reason and (words := _ending_at_the_data(trainer.method)):
                lines.append(f"warning: it will be with {words}")
    return lines


def obstacle(denoiser: Denoiser, sampler: Sampler) -> str:
    """Why diffusers cannot sample a network of its own so, '' where it can; of other networks the
    export says more.
    """
    network, process = denoiser.network, denoiser.process
    pixels = isinstance(network, DiffusersModule) and isinstance(process, VariancePreservingTable)
    if not pixels and not isinstance(network, UNet2dConditionModule):
        return ""
    try:
        schedule = schedule_of(denoiser, sampler)
        if pixels:
            check_told_by_steps(schedule)
    except ValueError as error:
        return str(error)
    return ""


def _ending_at_the_data(method: Any) -> str:
    """Options with which a method's times end at the data."""
    names = []
    for option in dataclasses.fields(method):
        times = getattr(method, option.name)
        if isinstance(times, Times) and times.end == "t_min":
            names.append(f"method.{option.name}.end=t_data")
    return " ".join(names)


def check_told_by_steps(schedule: Schedule) -> None:
    """ValueError where a pipeline would need to be told more than the number of steps, which those
    of pixels cannot.
    """
    if more := [name for name in schedule.call if name != "num_inference_steps"]:
        raise ValueError(
            f"pipelines of pixels are told the number of steps alone, and this sampler's "
            f"{schedule.name} needs {', '.join(more)}: times of kind trailing are those of the "
            "schedulers"
        )


def guidance_of(model: DiffusionModel) -> float:
    """What a pipeline is to be called with as guidance_scale: 1 where nothing is left to guide."""
    kind = model.guidance.kind
    if model.guidance.fading is not None:
        raise ValueError(
            "its guidance fades over the times, and pipelines know one scale for all of them"
        )
    return model.guidance.default if kind in ("doubled", "input") else 1.0


def _check(denoiser: Denoiser) -> None:
    process, prediction = denoiser.process, denoiser.parameterization
    if not isinstance(process, VariancePreservingTable) or denoiser.own != process:
        kind = kind_of(type(process))
        raise ValueError(f"the schedulers know tables of noise levels, this process is a {kind}")
    if process.t_max != process.size - 1 or process.t_min != 0:
        raise ValueError("the schedulers know whole tables, this process is a part of one")
    if isinstance(prediction, ConsistencyBoundary) and prediction.end == "t_min":
        raise ValueError(
            "no scheduler knows a student whose jumps end at t_min: with end=t_data in the options "
            "of its times (times, sample_times) they end at the data"
        )
    predicting(bare(prediction))


def bare(prediction: Parameterization) -> Parameterization:
    """What the network predicts, without LCM's boundary, which is the scheduler's, or one at the
    data, where no sampler evaluates: elsewhere it is the prediction itself.
    """
    if isinstance(prediction, ConsistencyBoundary) and prediction.end == "t_data":
        return prediction.of
    return prediction.of if isinstance(prediction, LcmBoundary) else prediction


def _table(denoiser: Denoiser) -> dict[str, Any]:
    """The noise levels and the prediction, in every scheduler's words."""
    process = denoiser.process
    assert isinstance(process, VariancePreservingTable)
    return {
        "num_train_timesteps": process.size,
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "beta_schedule": process.schedule,
        "rescale_betas_zero_snr": process.zero_snr,
        "steps_offset": 1,  # which leading times alone read, and pipelines warn of any other
        **predicting(bare(denoiser.parameterization)),
    }


def _named(denoiser: Denoiser, sampler: Sampler, times: Sequence[int]) -> Schedule:
    """The scheduler of a sampler that evaluates at these indices, without its table."""
    lcm = isinstance(denoiser.parameterization, LcmBoundary)
    if isinstance(sampler, Renoise) and (lcm or len(times) > 1):
        return _renoising(denoiser, sampler, times, 10.0 if lcm else FAR)
    if lcm:
        raise ValueError("LCM's boundary is known to diffusers in multistep sampling alone")
    if isinstance(sampler, FlowMap) and sampler.gamma:
        return _stochastic(denoiser, sampler, times)
    if isinstance(sampler, Ode) and sampler.churn:
        raise ValueError("no scheduler of text-to-image pipelines has EDM's churn")
    if isinstance(sampler, Ode) and isinstance(sampler.solver, Dpmpp2m):
        return _multistep(denoiser, sampler, times, order=2)
    if isinstance(sampler, Ode) and not isinstance(sampler.solver, Euler):
        kind = kind_of(type(sampler.solver))
        raise ValueError(f"no scheduler takes the steps of {kind}: euler, dpmpp_2m")
    return _deterministic(denoiser, sampler, times)


def _deterministic(denoiser: Denoiser, sampler: Sampler, times: Sequence[int]) -> Schedule:
    """DDIM where its own times are these, else DPM-Solver++ of first order, which is DDIM too and
    can be told any.
    """
    steps = len(times)
    config = {
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": sampler.times.end == "t_data",
    }
    ddim = Schedule("DDIMScheduler", config, {"num_inference_steps": steps})
    falls = {a - b for a, b in zip(times, times[1:])}
    # Its steps are all as long as the table's size allows, wherever the next index is.
    if falls <= {denoiser.process.size // steps} and ddim.times == list(times):  # type: ignore[attr-defined]
        return ddim
    return _multistep(denoiser, sampler, times, order=1)


def _multistep(denoiser: Denoiser, sampler: Sampler, times: Sequence[int], order: int) -> Schedule:
    config = {
        "algorithm_type": "dpmsolver++",
        "solver_order": order,
        "timestep_spacing": "trailing",
        "final_sigmas_type": "zero" if sampler.times.end == "t_data" else "sigma_min",
    }
    return _told("DPMSolverMultistepScheduler", config, {}, times)


def _renoising(
    denoiser: Denoiser, sampler: Renoise, times: Sequence[int], scaling: float
) -> Schedule:
    config = {
        "original_inference_steps": _intervals(sampler),
        "timestep_scaling": scaling,
        "clip_sample": False,
        "set_alpha_to_one": True,
    }
    return _told("LCMScheduler", config, {}, times)


def _stochastic(denoiser: Denoiser, sampler: FlowMap, times: Sequence[int]) -> Schedule:
    if sampler.shortens != "time":
        raise ValueError("no scheduler shortens the level of a jump: TCDScheduler does its time")
    if sampler.times.end != "t_min":
        raise ValueError("TCDScheduler ends at index 0, this sampler at the data")
    config = {
        "original_inference_steps": _intervals(sampler),
        "clip_sample": False,
    }
    return _told("TCDScheduler", config, {"eta": sampler.gamma}, times)


def _intervals(sampler: Sampler) -> int:
    return sampler.times.total if isinstance(sampler.times, Strided) else 50


def _told(
    name: str, config: dict[str, Any], call: dict[str, Any], times: Sequence[int]
) -> Schedule:
    """With the number of steps where that gives these times, else with the times."""
    by_number = Schedule(name, config, {"num_inference_steps": len(times), **call})
    try:
        if by_number.times == list(times):
            return by_number
    except ValueError:  # so many steps are none of its own
        pass
    return Schedule(name, config, {"timesteps": list(times), **call})
