"""What a run says before its first step."""

from typing import Any

import torch

from fewstep.choice import kind_of
from fewstep.learning.roles import networks
from fewstep.models.bundle import DiffusionModel
from fewstep.models.space import described
from fewstep.text import counted, in_one_line
from fewstep.training.plan import by_role
from fewstep.training.processes import local
from fewstep.training.start import goes_by_class, told_of, told_of_few_steps, told_of_teacher
from fewstep.training.threads import free

STATES = 2  # numbers of an optimizer for each parameter, as Adam has them


def first_lines(ready: Any, run: Any, told: bool = True) -> list[str]:
    """What a run that can begin says before: of its data, and of a teacher that cannot teach. told:
    also what is trained, where somebody looks on.
    """
    method = ready.trainer.method
    lines = summary(ready, run) if told else []
    lines += told_of(ready.stream.dataset, goes_by_class(method, ready.model))
    lines += told_of_teacher(method, ready.nets, run.teacher)
    return [*lines, *told_of_few_steps(method, ready.nets, ready.model)]


def summary(ready: Any, run: Any) -> list[str]:
    """What is trained on what, from what, and where: four lines. Activations are not counted: they
    are known when a step was made.
    """
    trainer, dataset = ready.trainer, ready.stream.dataset
    config, device = trainer.config, trainer.device
    sizes = []
    for name, network in networks(ready.nets).items():
        learns = name in trainer.state.roles.trains
        own = trainer.state.parameters[name].values() if learns else network.parameters()
        size = _shortened(sum(one.numel() for one in own))
        sizes.append(f"{name} learns {size}" if learns else f"{name} has {size}")
    kind, begins = kind_of(type(trainer.method)), run.start or run.teacher
    base = begins.told().get("base", "a new network")
    if isinstance(ready.model, DiffusionModel):
        spec: Any = ready.begin.denoiser.network.spec
        base += f" ({kind_of(type(spec))})"
    source = f"{kind_of(type(run.data))} {getattr(run.data, 'path', '')}".strip()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    if device.type == "cpu" and (config.threads or not free(trainer)):
        threads = config.threads or torch.get_num_threads()
        where += f", {counted(threads, 'thread')}"
    processes = f", {trainer.world.size} processes" if trainer.world.size > 1 else ""
    return [
        f"data: {in_one_line(source)}, {len(dataset):,} rows of {described(dataset.columns)}",
        f"{kind} of {in_one_line(base)}: {', '.join(sizes)} parameters",
        f"{counted(config.steps, 'step')} of {counted(config.batch, 'row')} in "
        f"{config.precision} on {where}{processes}",
        _memory(trainer),
    ]


def _memory(trainer: Any) -> str:
    """Of what stays in each process, as far as it is known before the first step."""
    held = sum(by_role(trainer, {}).values()) / 2**20
    learning = 0
    for group in trainer.state.parameters.values():
        learning += sum(local(one).nbytes for one in group.values())
    more = (1 + STATES) * learning / 2**20
    return (
        f"memory: weights and averages {held:,.0f} MiB, gradients and optimizer about {more:,.0f} "
        "MiB, activations beside them (fewstep plan)"
    )


def _shortened(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1000:.0f} k" if count >= 1000 else str(count)
