"""The maximum mean discrepancy of two samples, in groups of rows, row by row."""

import torch
from torch import Tensor

from fewstep.diffusion.types import Sample, Time, to_device
from fewstep.learning.batch import Batch


def partners(batch: Batch, samples: int) -> tuple[Tensor, Tensor]:
    """(places, shares), both (batch, samples): where the rows of each row's group stand, and
    what each counts.

    A row that is not here (outside of training a group may be cut) counts nothing; one with
    another condition is no partner, but it counts in the mean.
    """
    place = {row: i for i, row in enumerate(batch.draws.rows)}
    members = []
    for row in place:
        first = row // samples * samples
        members.append([place.get(other, -1) for other in range(first, first + samples)])
    table = torch.tensor(members)
    places, here = (to_device(v, batch.data.device) for v in (table.clamp(min=0), table >= 0))
    shares = here / here.sum(1, keepdim=True)
    for value in batch.cond.values.values():
        rows = value.reshape(len(value), 1, -1)
        shares = shares * (rows == rows[places, 0]).all(2)
    return places, shares


def discrepancy(y_t: Sample, y_r: Sample, width: Time, places: Tensor, shares: Tensor) -> Tensor:
    """Each row's part of the V-statistic, (batch,): k(t, t') + k(r, r') - 2 k(t, r'), mean."""
    late, early = y_t.flatten(1), y_r.flatten(1)
    scale = (width * late.shape[1]).clamp(min=1e-12).to(late)[:, None]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.linalg.vector_norm(a[:, None] - b[places], dim=2) / scale)

    # Half of each k(t, r') belongs to the one row, half to the other.
    inside = kernel(late, late) + kernel(early, early)
    parts = inside - kernel(late, early) - kernel(early, late)
    return (parts * shares.to(late)).sum(1)
