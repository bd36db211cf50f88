"""Figures of a page."""

import warnings

import pytest

from fewstep.report.figures import curves


@pytest.mark.parametrize("values", [[-1.0, -2.0], [0.0, 0.0], []])
def test_numbers_without_a_logarithm_are_drawn_without_a_warning(values):
    lines = [{"step": step, "loss": value} for step, value in enumerate(values)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert curves(lines, ["loss"], "loss", log_scale=True).startswith("<svg")
