"""Samples that are noise, blank or all alike are seen beside real images; good ones pass."""

import pytest
import torch

from fewstep.data.digits import Digits
from fewstep.data.shapes import Shapes
from fewstep.models.folder import load
from fewstep.models.named import found
from fewstep.report.looks import looks, roughness

DATA = {"digits": Digits(limit=40), "shapes": Shapes(limit=40)}


@pytest.fixture(params=DATA)
def images(request):
    return DATA[request.param].dataset().floats(torch.arange(20))


def noise(images, spread=0.3):
    generator = torch.Generator().manual_seed(0)
    return (0.5 + spread * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def test_white_noise_has_roughness_1_and_pictures_far_less(images):
    assert roughness(noise(images, 0.1)) == pytest.approx(1, abs=0.05)
    assert roughness(images) < 0.5
    ramp = torch.linspace(0, 1, 101).expand(2, 1, 101, 101)
    step = 0.01**2 / 2  # along one of two axes
    assert roughness(ramp) == pytest.approx(step / (2 * ramp[0, 0].var().item()), rel=1e-4)


def test_real_images_look_right(images):
    assert looks(images[:10], images[10:]) == ""


def test_what_is_wrong_is_seen(images):
    real = images[10:]
    assert looks(noise(images), real).startswith("noise")
    assert looks(0.3 * images + 0.7 * noise(images, 0.5), real).startswith("noise")
    assert looks(0.5 + 0.05 * (images - 0.5), real).startswith("blank")
    assert looks(torch.full_like(images, 0.5), real).startswith("blank")
    assert looks(images[:1].expand_as(images), real) == "all alike"


def test_a_teacher_looks_right_at_its_own_steps():
    real = DATA["digits"].dataset().floats(torch.arange(20))
    model = load(found("digits_teacher"))
    assert looks(model.generate(num=20), real) == ""
    assert looks(model.generate(num=20, steps=2), real).startswith("noise")


def test_a_row_of_pixels_has_no_neighbours_to_compare():
    assert looks(torch.rand(4, 1, 1, 9), torch.rand(4, 1, 1, 9)) == ""
