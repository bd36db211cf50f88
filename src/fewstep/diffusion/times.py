"""Times: grids for samplers and training, in float64."""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from fewstep.choice import Choice, Count, Positive, Rho
from fewstep.diffusion.process import PURE_NOISE, End, Process
from fewstep.diffusion.types import Grid


def _spaced(start: float, stop: float, points: int) -> Grid:
    """Even points. ValueError for more than a million: no memory is taken for them."""
    if points > 1_000_000:
        raise ValueError(f"{points} times are more than a grid of 1,000,000 can hold")
    return torch.linspace(start, stop, points, dtype=torch.float64)


class Times(Choice, ABC):
    """A decreasing grid: n intervals, n + 1 float64 times on the CPU, t_max first; `end` says where
    it ends.
    """

    end: End = "t_data"
    """Where the grid ends: at the data, or at the smallest time of the networks."""

    @abstractmethod
    def __call__(self, process: Process, n: int) -> Grid:
        """The grid of n >= 1 intervals."""

    def for_solver(self, process: Process, n: int) -> Grid:
        """The grid of a solver of higher order: the same, but of `Auto` on a table."""
        return self(process, n)


@dataclass(frozen=True)
class Karras(Times):
    """Even steps in t^(1/rho), in units of sigma/alpha (arXiv:2206.00364, eq. 5).

    end="t_data": n such points from t_max to t_min, then the data, as EDM's sampler has it; n = 1
    is (t_max, t_data). end="t_min": n + 1 points, the last at t_min, as consistency models train
    on.
    """

    rho: Rho = 7.0
    """Steps are even in the rho-th root of the level: the larger, the more times near the data."""
    end: End = "t_data"

    def __call__(self, process: Process, n: int) -> Grid:
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        high, low = process.level(ends).tolist()
        if high >= PURE_NOISE:
            name = type(process).__name__
            raise ValueError(
                f"{name} has no finite sigma/alpha at t_max={process.t_max:g}; use uniform or "
                f"linspace times"
            )
        points = n if self.end == "t_data" else n + 1
        levels = _spaced(high ** (1 / self.rho), low ** (1 / self.rho), points) ** self.rho
        times = process.at_level(levels)
        times[0] = process.t_max  # not through the rounding of tan and atan
        if self.end == "t_data":
            return torch.cat([times, torch.tensor([process.t_data], dtype=torch.float64)])
        times[-1] = process.t_min
        return times


@dataclass(frozen=True)
class Linspace(Times):
    """Even steps in t from t_max to the end; whole numbers (half to even) for a table with
    whole=True.
    """

    end: End = "t_data"
    whole: bool = False
    """Rounds to whole numbers, for a table."""

    def __call__(self, process: Process, n: int) -> Grid:
        times = _spaced(process.t_max, process.end(self.end), n + 1)
        return times.round() if self.whole else times


@dataclass(frozen=True)
class Trailing(Times):
    """A table's indices round(T - i T/n) - 1, then the end: starts at the last index
    (arXiv:2305.08891).

    For a continuous process the same without rounding: even steps in t. Trailing("t_min") in 50
    steps is the grid on which latent consistency models train: 999, 979, …, 19, 0.
    """

    end: End = "t_data"

    def __call__(self, process: Process, n: int) -> Grid:
        size = process.t_max - process.t_data
        times = size - _spaced(0.0, float(n), n + 1) * size / n
        if process.discrete:
            times = times.round()
        times = times + process.t_data
        times[0] = process.t_max  # not through the rounding of the division
        times[-1] = process.end(self.end)
        return times


@dataclass(frozen=True)
class Uniform(Times):
    """Even steps of the angle atan2(sigma, alpha), in any process: TrigFlow's linear grid for data
    of sigma_data = 1 (linspace is it for every sigma_data). On a table the times lie between the
    indices, and those of more than about 50 steps to the data also below index 0; with whole=True
    they are the nearest indices, which diffusers can be told.
    """

    end: End = "t_data"
    whole: bool = False
    """Rounds to whole numbers, for a table."""

    def __call__(self, process: Process, n: int) -> Grid:
        ends = torch.tensor([process.t_max, process.end(self.end)], dtype=torch.float64)
        high, low = process.angle(ends).tolist()
        times = process.time_of(_spaced(high, low, n + 1))
        if self.whole:
            times = times.round()
        times[0], times[-1] = process.t_max, process.end(self.end)
        return times


@dataclass(frozen=True)
class Auto(Times):
    """What the process is used with: Karras where sigma/alpha is finite at t_max, trailing indices
    for a table (down to t_min even whole steps, but with trailing=True), else even steps in t
    (rectified flow and TrigFlow begin at pure noise, which has no place on a Karras grid).

    A second-order solver goes along a table in even steps of the angle (`uniform`), or on trailing
    indices with trailing=True. Of even indices the last step is so long (1/√n in sigma/alpha) that
    every solver is of first order.
    """

    end: End = "t_data"
    rho: Rho = 7.0
    """rho of the Karras grid."""
    trailing: bool = False
    """Trailing indices on a table, also down to t_min and for solvers."""

    def __call__(self, process: Process, n: int) -> Grid:
        top = process.level(torch.tensor([process.t_max], dtype=torch.float64))
        times: Times
        if process.discrete and (self.end == "t_data" or self.trailing):
            times = Trailing(self.end)
        elif process.discrete:
            times = Linspace("t_min", whole=True)
        elif top < PURE_NOISE:
            times = Karras(self.rho, self.end)
        else:
            times = Linspace(self.end)
        return times(process, n)

    def for_solver(self, process: Process, n: int) -> Grid:
        if process.discrete and not self.trailing:
            return Uniform(self.end)(process, n)
        return self(process, n)


@dataclass(frozen=True)
class Strided(Times):
    """n points of a finer grid of `total` intervals, indices ⌊i total/n⌋, then its end: a student's
    steps nest in its teacher's. Strided(Trailing(), 50) is the grid of latent consistency models:
    999, 759, 499, 259 for n = 4.
    """

    of: Times = dataclasses.field(default_factory=Trailing)
    """The finer grid."""
    total: Count = 50
    """Intervals of the finer grid."""
    last: End | None = None
    """Where it ends, behind times that are the finer grid's; null: where that does."""

    @property
    def end(self) -> End:  # type: ignore[override]
        """Where it ends."""
        return self.last or self.of.end

    def __call__(self, process: Process, n: int) -> Grid:
        if n > self.total:
            raise ValueError(f"{n} steps are more than the {self.total} of the finer grid")
        grid = self.of(process, self.total)[[i * self.total // n for i in range(n + 1)]]
        grid[-1] = process.end(self.end)
        return grid


@dataclass(frozen=True)
class Segments(Times):
    """n segments of a finer grid of `total` intervals: the boundaries at which the jumps of a
    student end.

    Counted from the clean end, each segment has ⌈total/n⌋ intervals and the noisiest the rest
    (arXiv:2406.14539), or, with even=True and where such n segments do not exist, boundary k lies
    ⌊k total/n⌋ intervals up (arXiv:2405.18407). Chosen boundaries serve their own number. A lifted
    grid is one on which a way upwards can start: the end may have no noise.
    """

    of: Times = dataclasses.field(default_factory=Auto)
    """The finer grid."""
    total: Count = 50
    """Intervals of the finer grid."""
    even: bool = False
    """Boundaries at whole parts of the grid, in the place of segments of equal length."""
    between: tuple[float, ...] = ()
    """Chosen boundaries, decreasing, moved to the nearest time of the finer grid."""
    lifted: bool = False
    """The lowest segment ends one interval higher."""

    @property
    def end(self) -> End:  # type: ignore[override]
        """Where the finer grid ends."""
        return self.of.end

    def __call__(self, process: Process, n: int) -> Grid:
        if n > self.total:
            raise ValueError(
                f"{n} segments are more than the {self.total} intervals of the finer grid"
            )
        fine, size = self.of(process, self.total), -(-self.total // n)
        if self.between and n == len(self.between) + 1:
            inner = [int((fine - t).abs().argmin()) for t in self.between]
        elif self.even or (n - 1) * size >= self.total:
            inner = [self.total - k * self.total // n for k in range(n - 1, 0, -1)]
        else:
            inner = [self.total - k * size for k in range(n - 1, 0, -1)]
        places = [0, *inner, self.total - self.lifted]
        if any(a >= b for a, b in zip(places, places[1:])):
            raise ValueError(
                f"boundaries {self.between} do not fall from one time of the finer grid to another"
            )
        return fine[places]


@dataclass(frozen=True)
class Explicit(Times):
    """Chosen times: t_max, the numbers given, the end. Each entry of `between` serves its own
    number of steps.

    between=((0.8,), (2.5, 0.8, 0.3)): 2 steps evaluate at t_max and 0.8, 4 steps at t_max, 2.5,
    0.8, 0.3; any other number falls back to `otherwise`.
    """

    between: tuple[tuple[float, ...], ...] = ()
    """Lists of the times between t_max and the end, one for each number of steps."""
    end: End = "t_min"
    otherwise: Times = dataclasses.field(default_factory=lambda: Auto(end="t_min"))
    """The grid for any other number of steps."""

    def __post_init__(self) -> None:
        for times in self.between:
            if any(a <= b for a, b in zip(times, times[1:])):
                raise ValueError(f"times must decrease, got {', '.join(f'{t:g}' for t in times)}")
        if len({len(times) for times in self.between}) < len(self.between):
            raise ValueError(
                f"two entries of between={self.between} are for the same number of steps"
            )

    def __call__(self, process: Process, n: int) -> Grid:
        for times in self.between:
            if len(times) == n - 1:
                if times and not process.t_min < times[-1] <= times[0] < process.t_max:
                    raise ValueError(
                        f"times must lie between {process.t_min:g} and {process.t_max:g}, got "
                        f"{times}"
                    )
                ends = process.t_max, process.end(self.end)
                return torch.tensor([ends[0], *times, ends[1]], dtype=torch.float64)
        return self.otherwise(process, n)


@dataclass(frozen=True)
class Above(Times):
    """`of`, for the process cut off where sigma/alpha is `low`, then one jump to the end: for a
    student that knows only the noisier times (arXiv:2410.14895). For 2 steps t_max, the cut, the
    end; for 1 step t_max, the end.
    """

    low: Positive = 1.0
    """The level sigma/alpha at which the process is cut off."""
    of: Times = dataclasses.field(default_factory=lambda: Auto("t_min"))
    """The grid above the cut."""
    end: End = "t_min"

    def __call__(self, process: Process, n: int) -> Grid:
        cut = process.at_level(torch.tensor([self.low], dtype=torch.float64)).item()
        if process.discrete:
            cut = float(math.ceil(cut))
        upper = dataclasses.replace(process, t_min=cut)  # type: ignore[type-var]
        top = self.of(upper, n - 1) if n > 1 else torch.tensor([process.t_max], dtype=torch.float64)
        return torch.cat([top, torch.tensor([process.end(self.end)], dtype=torch.float64)])
