"""What a person asks of a model, checked once, and the answer."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fewstep.choice import flat
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoise, clipped
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import check_fading, fading, guided
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.diffusion.solvers import Solver
from fewstep.diffusion.times import Explicit
from fewstep.errors import NotFiniteError
from fewstep.finite import bad_rows, remedy
from fewstep.meant import did_you_mean
from fewstep.models.conditioner import length_of, rows_of

if TYPE_CHECKING:
    from fewstep.models.bundle import DiffusionModel

NUM = 16  # images where nobody says how many


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of a model; each field that is None is left to the model.

    asked: columns by name ({"label": [3, 5]}, {"caption": ["a cat"]}), one entry per image or one
    for all. negative: the same for what guidance leads away from, in place of "no condition".
    times: to evaluate at, first to last, in place of steps. sampler: one, or its name; the name of
    a solver stands for the ODE sampler with it. guidance: in g-form, 1 is none. fading: (full,
    none), dynamic guidance: the whole scale at times up to `full`, 1 from `none` on, a line between
    the two. batch: images at a time.
    """

    asked: Mapping[str, Any] = field(default_factory=dict)
    negative: Mapping[str, Any] = field(default_factory=dict)
    num: int | None = None
    steps: int | None = None
    times: Sequence[float] | None = None
    sampler: Sampler | str | None = None
    guidance: float | None = None
    seed: int = 0
    batch: int | None = None
    fading: tuple[float, float] | None = None


class Seen(NamedTuple):
    """Where the sampling of some images stands: x (batch, *shape) at `time`, after `step` of
    `steps` steps; `rows` are the images' numbers.
    """

    rows: range
    step: int
    steps: int
    time: float
    x: Tensor


Look = Callable[[Seen], None]


@contextmanager
def _nobody(answer: Answer) -> Iterator[Look]:
    yield lambda seen: None


LOOKING_ON: ContextVar[Callable[[Answer], AbstractContextManager[Look]]] = ContextVar(
    "LOOKING_ON", default=_nobody
)
"""Who is shown how far images are that are being made."""


class Answer:
    """A request that the model can serve: what will be done, and the doing of it.

    asked: the columns in full, one entry per image. sampler, guidance, num, batch: as they will be
    used. evaluations: of the network, for one image. Raises ValueError for what cannot be served.
    """

    def __init__(self, model: DiffusionModel, request: Request):
        self.model, self.seed = model, request.seed
        self.num = self._number(request)
        told = {"the number of images": self.num, "steps": request.steps, "batch": request.batch}
        for name, value in told.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.asked = self._columns(request.asked)
        self.negative = dict(request.negative)
        self.sampler = self._sampler(request)
        # A grid that cannot be made fails before the first image.
        self.sampler.grid(model.denoiser.process)
        self.guidance = self._guidance(request.guidance)
        self.doubles = model.guidance.kind == "doubled" and self.guidance != 1
        if self.negative and not self.doubles:
            why = f"this model has {model.guidance.default:g} in it from its training"
            if model.guidance.kind == "doubled":
                why = "this one is not asked for: a scale above 1 does"
            elif model.guidance.kind != "fixed":
                why = "this model has none"
            raise ValueError(
                f"a negative condition needs guidance in two evaluations; {why}: leave it out"
            )
        self.fading = self._fading(request.fading)
        self.evaluations = model.evaluations(self.sampler, self.guidance)
        pixels = model.shape[-1] * model.shape[-2] if len(model.shape) > 1 else 1
        self.batch = request.batch or max(16, min(256, 32768 // pixels))
        model.conditioner.check(self.asked)  # all of it, before the first image
        if self.negative:
            model.conditioner.check(self.negative)
        self._warn_untrained()
        self._warn_unconditional()
        self.seconds = math.nan

    def images(self) -> Tensor:
        """Images, float32 in [0, 1], (num, channels, height, width), on the CPU.

        Image i depends on (seed, i) alone, up to the rounding of the arithmetic. `seconds` is then
        how long they took. NotFiniteError where numbers of a sample, or of its image, are not.
        """
        started = time.perf_counter()
        parts = []
        with LOOKING_ON.get()(self) as look:
            for seen in self.walk():
                look(seen)
                if seen.step == seen.steps:
                    parts.append(self._checked(seen))
        self.seconds = time.perf_counter() - started
        return torch.cat(parts)

    @torch.no_grad()
    def walk(self) -> Iterator[Seen]:
        """The same step by step, batch by batch; the last of each batch holds its x0."""
        model = self.model
        model.denoiser.eval()
        denoise = self.denoise()
        for first in range(0, self.num, self.batch):
            rows = range(first, min(self.num, first + self.batch))
            draws = Draws(self.seed, rows, stream="sample", device=model.device)
            noise = draws.fork("noise").normal(*model.shape)
            walk = self.sampler.walk(
                denoise, model.denoiser.process, noise, self.cond(rows), draws.fork("sampler")
            )
            for step, (t, x) in enumerate(walk, 1):
                yield Seen(rows, step, self.sampler.steps, float(t[0]), x)

    @torch.no_grad()
    def decoded(self, x: Tensor) -> Tensor:
        """Samples in model space as images on the CPU."""
        return self.model.codec.decode(x).float().cpu()

    def _checked(self, seen: Seen) -> Tensor:
        images = self.decoded(seen.x)
        # A codec that clamps makes an ordinary white of infinity.
        if bad := int((bad_rows(seen.x) | bad_rows(images)).sum()):
            denoiser = self.model.denoiser
            raise NotFiniteError(
                f"{bad} of the first {seen.rows.stop} images hold numbers that are not finite; "
                f"{remedy(denoiser, denoiser.autocast)}"
            )
        return images

    def _number(self, request: Request) -> int:
        given = length_of(request.asked)
        if request.num is None:
            return given if request.asked else NUM
        if given > 1 and given != request.num:
            told = ", ".join(f"{len(value)} {name}s" for name, value in request.asked.items())
            raise ValueError(f"{told} for {request.num} images")
        return request.num

    def _columns(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One entry for each image; what nobody says comes from the model's examples."""
        reads = self.model.conditioner.spec.reads
        if unknown := sorted(set(asked) - set(reads)):
            raise ValueError(f"this model knows no {' or '.join(f'{name}s' for name in unknown)}")
        if not asked:
            return self.model.asked_of(0, self.num)
        full = {}
        for name, column in asked.items():
            if len(column) == 1 and self.num > 1:
                index = [0] * self.num
                column = column[index] if isinstance(column, Tensor) else [column[0]] * self.num
            full[name] = column
        return full

    def _sampler(self, request: Request) -> Sampler:
        chosen = request.sampler or self.model.sampler
        if isinstance(chosen, str):
            chosen = named_sampler(chosen, self.model.sampler.steps)
        if request.times is not None:
            if request.steps is not None:
                raise ValueError("times say how many steps there are: give them without steps")
            return self._at(chosen, tuple(request.times))
        return chosen if request.steps is None else chosen.with_steps(request.steps)

    def _at(self, sampler: Sampler, points: tuple[float, ...]) -> Sampler:
        """The sampler with these times, the first of which must be where the noise begins."""
        top = self.model.denoiser.process.t_max
        if not points or not abs(points[0] - top) <= 1e-6 * top:
            got = f"{points[0]:g}" if points else "none"
            raise ValueError(
                f"times must begin at {top:g}, where this model's noise begins, got {got}"
            )
        times = Explicit(between=(points[1:],), end=sampler.times.end)
        return replace(sampler, steps=len(points), times=times)  # type: ignore[type-var]

    def _guidance(self, asked: float | None) -> float:
        kind, low, high, default, _ = self.model.guidance
        if asked is None:
            return default
        if not math.isfinite(asked):
            raise ValueError(f"guidance must be a finite number, got {asked}")
        if kind in ("none", "fixed") and asked != default:
            if kind == "none":
                reason = "has no unconditional side"
            else:
                reason = f"was distilled at guidance {default:g}"
            raise ValueError(f"this model {reason}: guidance {asked:g} cannot be applied")
        if kind != "fixed" and not low <= asked <= high:
            warnings.warn(
                f"guidance {asked:g} is outside {low:g} to {high:g}, which this model was made for",
                stacklevel=5,
            )
        return asked

    def _warn_untrained(self) -> None:
        """Of classes that the model was trained on no image of."""
        trained = self.model.examples.get("label")
        if trained and "label" in self.asked:
            asked = set(torch.as_tensor(self.asked["label"]).tolist())
            if strange := sorted(asked - set(trained)):
                told = ", ".join(map(str, strange[:5]))
                warnings.warn(f"this model was trained on no image of class {told}", stacklevel=5)

    def _fading(self, asked: tuple[float, float] | None) -> tuple[float, float] | None:
        if asked is None:
            return self.model.guidance.fading
        check_fading(asked)
        if not self.doubles and self.model.guidance.kind != "input":
            raise ValueError(
                f"fading needs guidance that can be changed and a scale other than 1: it is "
                f"{self.model.guidance.kind}, the scale {self.guidance:g}"
            )
        return asked

    def _warn_unconditional(self) -> None:
        """Only the unconditional side of a model that is guided by it was trained for sure."""
        columns = [c for c in self.asked.values() if not isinstance(c, Tensor)]
        if self.model.guidance.kind != "doubled" and any(None in column for column in columns):
            warnings.warn(
                "this model may not have been trained for images without a condition",
                stacklevel=5,
            )

    def denoise(self) -> Denoise:
        """The network under the guidance that is asked for, its x0 cut where the model says so."""
        found, largest = self._guided(), self.model.clip
        return found if largest is None else clipped(found, largest)

    def _guided(self) -> Denoise:
        if self.model.guidance.kind != "input" and not self.doubles:
            return self.model.denoiser
        if self.fading is None:
            return guided(self.model.denoiser, self.guidance)
        return guided(self.model.denoiser, fading(self.guidance, *self.fading))

    def cond(self, rows: range) -> Cond:
        """The condition of these images, on the model's device."""
        conditioner = self.model.conditioner
        cond = conditioner(rows_of(self.asked, rows.start, rows.stop)).to(self.model.device)
        if not self.negative:
            return cond
        away = conditioner(self.negative).to(self.model.device)
        if any(len(value) != 1 for value in away.values.values()):
            raise ValueError("one negative condition is for all images")
        return Cond(cond.values, away.values)


def named_sampler(name: str, steps: int) -> Sampler:
    """A sampler by its name, or the ODE sampler by its solver's. ValueError for others."""
    samplers = {key: kind for key, kind in Sampler.kinds().items() if kind is not Ode}
    solvers = Solver.kinds()
    for key, solver in {**solvers, "ddim": solvers["euler"]}.items():
        if flat(key) == flat(name):
            return Ode(steps=steps, solver=solver())
    for key, sampler in samplers.items():
        if flat(key) == flat(name):
            return sampler().with_steps(steps)
    raise ValueError(f"no sampler {name!r}{did_you_mean(name, [*solvers, *samplers])}")
