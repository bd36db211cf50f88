"""Ranges that a process does not have, predictions that say nothing of the data somewhere: refused
where they are named.
"""

import dataclasses
import math

import pytest
import torch
from tests.diffusion.cases import PARAMETERIZATIONS, PROCESSES, every, f64, narrowed
from torch import nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm, Epsilon, Score
from fewstep.diffusion.process import (
    Process,
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreservingTable,
)
from fewstep.diffusion.times import Trailing

VE = VarianceExploding()


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("variance_preserving_table", {"size": 4000, "t_max": 4000}, "beyond 3999"),
        ("variance_preserving_table", {"size": 100, "t_max": 999.0}, "beyond 99"),
        ("variance_preserving_table", {"t_min": -5}, "t_min=-5 must be above -1"),
        ("variance_preserving_table", {"t_min": -0.5}, "below 0, the first row"),
        ("variance_preserving_table", {"t_min": 999.0}, "below t_max=999"),
        ("variance_preserving_table", {"size": 1}, "greater than or equal to 2"),
        ("variance_preserving_table", {"size": 10**12}, "less than or equal to"),
        ("variance_preserving_table", {"beta_end": 1.5}, "make no table"),
        ("variance_preserving_table", {"beta_end": 1e300}, "make no table"),
        ("rectified_flow", {"t_max": 1.5}, "t_max=1.5 is beyond 1,"),
        ("rectified_flow", {"t_min": 0.0}, "greater than 0"),
        ("rectified_flow", {"t_min": 0.5, "t_max": 0.5}, "below t_max=0.5"),
        ("trig", {"t_max": 2}, r"t_max=2 is beyond 1\.5708,"),
        ("trig", {"t_min": -1.0}, "greater than 0"),
        ("trig", {"sigma_data": 1e300}, "less than or equal to"),
        ("variance_preserving", {"t_max": 1.01}, r"t_max=1\.01 is beyond 1,"),
        ("variance_preserving", {"beta_max": 1e300}, "more noise at t_max"),
        ("variance_exploding", {"t_max": 1e300}, "beyond 1e"),
        ("variance_exploding", {"t_max": math.inf}, "less than inf"),
        ("variance_exploding", {"t_min": 90.0}, "t_min=90 must be below t_max=80"),
        ("variance_exploding", {"t_max": math.nan}, "less than inf"),
    ],
)
def test_a_range_that_a_process_does_not_have_is_refused(kind, options, told):
    with pytest.raises(ValueError, match=told):
        Process.parse({"kind": kind} | options)


@every("process", PROCESSES)
def test_so_is_one_that_is_built_in_python(process):
    for wrong in (
        {"t_min": process.t_data},
        {"t_min": -3.0},
        {"t_max": process.t_max, "t_min": process.t_max},
        {"t_max": max(process.t_max * 2, 2e6)},
        {"t_max": math.nan},
        {"t_min": math.nan},
    ):
        with pytest.raises(ValueError, match=r"t_min|t_max"):
            dataclasses.replace(process, **wrong)
    for narrower in ({"t_min": process.t_max / 4}, {"t_max": process.t_max / 2}):
        dataclasses.replace(process, **narrower)


@pytest.mark.parametrize("size", [2, 100, 1000, 4000])
def test_a_table_ends_at_its_last_row(size):
    table = VariancePreservingTable(size=size)
    assert table.t_max == size - 1
    assert table.dump()["t_max"] == size - 1
    assert Process.parse(table.dump()) == table
    assert VariancePreservingTable.parse({"size": size, "t_max": None}) == table
    assert (Trailing()(table, 2) == f64(size - 1, round(size / 2) - 1, -1)).all()


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_a_prediction_without_the_data_at_t_max_is_refused(parameterization, process):
    """Epsilon, the score and all that is made of them, where alpha is 0; the coefficients of all
    others are below 1e6.
    """
    epsilon = isinstance(parameterization.prediction, Epsilon | Score)
    pure_noise = process.alpha(f64(process.t_max)).item() < 1e-12
    told = r"at t=1\S* of process (rect|trig).*choose another"
    for one in (parameterization, parameterization.boundary()):
        if epsilon and pure_noise:
            with pytest.raises(ValueError, match=told):
                Denoiser(nn.Identity(), process, one)
            continue
        made = Denoiser(nn.Identity(), process, one)
        largest = torch.stack(made.coefficients(f64(process.t_min, process.t_max))).abs().max()
        assert largest < 1e6
    Denoiser(nn.Identity(), narrowed(process), parameterization)  # as the message says


@pytest.mark.parametrize(
    ("process", "parameterization"),
    [
        (VE, Edm(sigma_data=1e300)),
        (VE, Edm(sigma_data=1e300).boundary()),
        (Trig(sigma_data=1e-12), Edm()),
        (RectifiedFlow(t_max=1 - 1e-8), Epsilon()),
        (VariancePreservingTable(size=4000, beta_end=0.02), Epsilon()),
    ],
    ids=str,
)
def test_numbers_beyond_all_measure_are_refused(process, parameterization):
    with pytest.raises(ValueError, match="a coefficient of its x0 is"):
        Denoiser(nn.Identity(), process, parameterization)


def test_a_denoiser_can_be_made_where_new_tensors_have_no_numbers():
    """As plans are made: the ends are looked at on the CPU."""
    table = VariancePreservingTable()
    with torch.device("meta"):
        Denoiser(nn.Identity(), table, Epsilon())
    assert table.alpha(f64(0)).item() == pytest.approx(0.99957, abs=1e-5)
