"""`Batch`: what a loss sees of the data."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.types import Sample, where_rows


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of the global batch, in model space.

    draws.rows are the rows' places in the global batch. x0 is None where there are only conditions.
    """

    cond: Cond
    draws: Draws
    shape: tuple[int, ...]
    x0: Sample | None = None

    def noise(self) -> Sample:
        """Fresh unit noise, (batch, *shape)."""
        return self.draws.normal(*self.shape)

    @property
    def data(self) -> Sample:
        """x0, for methods that declare that they need it."""
        assert self.x0 is not None, "the method reads x0 without naming it in `needs`"
        return self.x0


@dataclass(frozen=True, eq=False)
class Continued(Batch):
    """A batch in which the rows `own` go on with the noise `kept`, as deterministic samplers do."""

    own: Tensor | None = None
    kept: Sample | None = None

    def noise(self) -> Sample:
        assert self.own is not None
        assert self.kept is not None
        return where_rows(self.own, self.kept, super().noise())
