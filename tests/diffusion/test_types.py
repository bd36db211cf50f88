"""Coefficients and masks, one per sample."""

import torch

from fewstep.diffusion.types import per_sample, where_rows


def test_a_coefficient_takes_the_shape_and_the_type_of_what_it_multiplies():
    found = per_sample(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.ones(2, 3, 4))
    assert found.shape == (2, 1, 1)
    assert found.dtype == torch.float32


def test_whole_rows_come_from_one_or_the_other():
    a, b = torch.zeros(3, 2, 2), torch.full((3, 2, 2), torch.nan)
    found = where_rows(torch.tensor([True, False, True]), a, b)
    assert torch.equal(found[[0, 2]], a[[0, 2]])
    assert found[1].isnan().all()
    numbers = where_rows(torch.tensor([True, False]), torch.tensor([-1]), torch.tensor([5, 6]))
    assert numbers.tolist() == [-1, 6]
