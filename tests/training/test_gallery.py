"""Which grids are drawn while a run goes on."""

import math
from types import SimpleNamespace

import pytest
import torch

from fewstep.diffusion.guidance import Guidance
from fewstep.learning.method import Clock
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.mean_flow import MeanFlow
from fewstep.methods.progressive import Progressive
from fewstep.training.gallery import Gallery


@pytest.mark.parametrize(
    ("method", "asked", "drawn"),
    [
        (MeanFlow(), (1, 2, 4), [1, 2, 4]),
        (DMD2(steps=2), (1, 2, 4), [2]),
        (DMD2(steps=3), (1, 2, 4), [3]),
        (Progressive(start=32, end=4), (1, 2, 4), [4]),
    ],
)
def test_grids_are_of_steps_that_the_student_serves(tmp_path, method, asked, drawn):
    made = []

    def generate(num, steps):
        made.append(steps)
        return torch.zeros(num, 1, 4, 4)

    model = SimpleNamespace(
        with_student=lambda *_: SimpleNamespace(generate=generate), guidance=Guidance()
    )
    gallery = Gallery(
        method,
        model,
        tmp_path,
        1,
        asked,
        SimpleNamespace(is_leader=True),
    )
    seen = SimpleNamespace(
        due=lambda every: True, exported={"student": None}, clock=Clock(5, 10, 8), done=6
    )
    gallery(seen)
    assert made == drawn
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [f"step-00000006-{n}.png" for n in drawn]


def test_a_grid_of_numbers_that_are_not_finite_is_not_drawn_and_the_run_goes_on(tmp_path):
    said = []

    def generate(num, steps):
        return torch.full((num, 1, 4, 4), math.nan if steps == 2 else 0.5)

    model = SimpleNamespace(
        with_student=lambda *_: SimpleNamespace(generate=generate), guidance=Guidance()
    )
    world = SimpleNamespace(is_leader=True)
    gallery = Gallery(MeanFlow(), model, tmp_path, 1, (1, 2, 4), world, said.append)
    gallery(
        SimpleNamespace(
            due=lambda every: True, exported={"student": None}, clock=Clock(5, 10, 8), done=6
        )
    )
    assert [path.name[-5] for path in sorted(tmp_path.iterdir())] == ["1", "4"]
    assert [line[:41] for line in said] == ["warning: no grid step-00000006-2.png: 40 "]
