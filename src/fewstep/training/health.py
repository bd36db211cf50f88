"""Signs of life that a loss curve does not give, measured on fixed seeds while a run goes on."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.data.dataset import Dataset
from fewstep.data.stream import Stream
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import guided
from fewstep.diffusion.samplers import Ode
from fewstep.learning.dropout import seeded
from fewstep.learning.method import Clock, Method
from fewstep.learning.roles import networks
from fewstep.models.bundle import DiffusionModel
from fewstep.training.seen import Seen

SEED = 271828
IMAGES = 64
HELD_OUT = 256
WRONG = (0.3, 3.0)
"""Multiples of the teacher's spread beyond which samples are no images."""


class Health:
    """Measures the averaged networks every so many steps; its numbers go into the log, keys
    `health.…`. All networks are as when they are used: without dropout, and what draws from the
    global random state does so from the same seed; so the numbers are those of the weights alone.

    held_out_loss: the first update's loss on images that training never sees. With a teacher also,
    from the same noises and under the student's guidance: distance: root mean square between the
    student's samples and the teacher's (in model space); contrast and diversity: the samples'
    spread over pixels and over images, relative to the teacher's.
    """

    def __init__(
        self,
        method: Method,
        nets: Any,
        stream: Stream,
        held_out: Dataset | None,
        teacher: DiffusionModel | None,
        device: torch.device,
        every: int = 1,
    ):
        self.method, self.nets, self.device, self.every = method, nets, device, every
        self.held_out = None
        if held_out is not None:
            self.rows = range(min(HELD_OUT, len(held_out)))
            self.held_out = stream.on(held_out, SEED, len(self.rows))
        self.teacher = teacher
        if teacher is not None:
            self.draws = Draws(SEED, range(IMAGES), stream="health", device=device)
            self.guidance = method.student_guidance(teacher.guidance)
            self.noise = self.draws.fork("noise").normal(*teacher.shape)
            self.cond = teacher.conditioner(teacher.asked_of(0, IMAGES)).to(device)
            with evaluating([teacher.denoiser]), seeded(SEED, device):
                denoiser = teacher.denoiser.to(device)
                self.goal = self._sampled(denoiser, teacher.guidance.kind, teacher.sampler)

    def __call__(self, seen: Seen) -> None:
        """Adds the numbers to those of the step, where it is due."""
        if seen.due(self.every):
            seen.numbers |= self.measured(seen.clock, seen.exported)

    @torch.no_grad()
    def measured(self, clock: Clock, exported: Mapping[str, nn.Module]) -> dict[str, float]:
        """The numbers of these networks at this step."""
        with evaluating(networks(self.nets).values()), seeded(SEED, self.device):
            numbers = self._measured(clock, exported)
        return {f"health.{key}": value for key, value in numbers.items()}

    def _measured(self, clock: Clock, exported: Mapping[str, nn.Module]) -> dict[str, float]:
        numbers = {}
        if self.held_out is not None:
            nets = dataclasses.replace(self.nets, **exported)
            draws = Draws(SEED, self.rows, stream="health", device=self.device)
            batch = self.held_out(0, self.rows, draws)
            losses = self.method.updates(clock)[0].loss(nets, batch, clock)
            numbers["held_out_loss"] = sum(term.mean().item() for term in losses.terms.values())
        for name, net in exported.items():
            sampler = self.method.sampler(clock, name)
            if self.teacher is None or sampler is None or not isinstance(net, Denoiser):
                continue
            # A map to the data is judged by one jump; what goes along the ODE by the steps it has
            # learned so far.
            chosen = sampler if isinstance(sampler, Ode) else sampler.with_steps(1)
            x = self._sampled(net, self.guidance.kind, chosen)
            prefix = "" if name == "student" else f"{name}."
            numbers[f"{prefix}distance"] = (x - self.goal).square().mean().sqrt().item()
            numbers[f"{prefix}contrast"] = (_contrast(x) / _contrast(self.goal)).item()
            numbers[f"{prefix}diversity"] = (_diversity(x) / _diversity(self.goal)).item()
        return numbers

    @torch.no_grad()
    def _sampled(self, denoiser: Denoiser, kind: str, sampler: Any) -> Tensor:
        """Samples at the student's default guidance, where the network can be asked for it."""
        can = kind in ("doubled", "input")
        asked = guided(denoiser, self.guidance.default) if can else denoiser
        return sampler(asked, denoiser.process, self.noise, self.cond, self.draws.fork("sampler"))


@contextmanager
def evaluating(networks: Iterable[nn.Module]) -> Iterator[None]:
    """The networks in evaluation mode; behind the block each of their modules as it was."""
    modules = [module for network in networks for module in network.modules()]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _contrast(x: Tensor) -> Tensor:
    return x.flatten(1).std(1).mean()


def _diversity(x: Tensor) -> Tensor:
    return x.std(0).mean()


def verdict(lines: list[dict[str, Any]]) -> str:
    """What the health numbers of a run's log say, in a sentence."""
    measured = []
    for line in lines:
        found = {k.removeprefix("health."): v for k, v in line.items() if k.startswith("health.")}
        if found:
            measured.append(found)
    if not measured:
        return "No health was measured (trainer.health_every)."
    said = [_spread(measured[-1], "contrast"), _spread(measured[-1], "diversity")]
    if len(measured) > 1:
        said = [
            _trend(measured, "held_out_loss", "held-out loss"),
            _trend(measured, "distance", "distance to the teacher"),
            *said,
        ]
    elif not any(said):
        said = ["health was measured once, which shows no trend"]
    skipped = sum(line.get("skipped", 0) for line in lines)
    if skipped:
        said.append(f"{int(skipped)} steps were skipped for non-finite numbers")
    return ("; ".join(part for part in said if part) + ".").capitalize()


def _trend(measured: list[dict[str, float]], key: str, word: str) -> str:
    """From what to what a number went, and the best of it; nothing where it was not measured."""
    first, last = measured[0].get(key), measured[-1].get(key)
    if first is None or last is None:
        return ""
    if not math.isfinite(last):
        return f"the {word} is not a finite number at the end"
    best = min(numbers[key] for numbers in measured if math.isfinite(numbers.get(key, math.nan)))
    trend = "rose" if last >= first else "fell"
    return f"the {word} {trend} from {first:.3g} to {last:.3g} (best {best:.3g})"


def _spread(last: dict[str, float], key: str) -> str:
    """A warning where the spread is far from the teacher's."""
    value = last.get(key)
    if value is None or 0.85 <= value <= 1.15:
        return ""
    if not math.isfinite(value):
        return f"{key} is not a finite number: look at the samples"
    if not WRONG[0] <= value <= WRONG[1]:
        return f"{key} is {value:.0%} of the teacher's: the samples are blank, all alike or noise"
    return f"{key} is {value:.0%} of the teacher's: look at the samples"
