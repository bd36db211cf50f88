"""Numbers that are not finite never become images, figures or files."""

import math

import pytest
import torch
from torch import nn

from fewstep.errors import NotFiniteError
from fewstep.finite import bad_rows, bad_weight, check_images, check_saved, remedy

SPOILT = pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])


def network(dtype=torch.float32):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(dtype)
    net[1].running_mean.zero_()
    return net


@SPOILT
def test_one_number_spoils_its_image_and_no_other(spoilt):
    images = torch.rand(5, 3, 4, 4)
    check_images(images)
    images[1, 2, 3, 0] = images[4, 0, 0, 0] = spoilt
    assert bad_rows(images).tolist() == [False, True, False, False, True]
    with pytest.raises(NotFiniteError, match="2 of 5 images hold numbers that are not finite"):
        check_images(images)


@SPOILT
def test_a_weight_is_named(spoilt):
    net = network()
    assert bad_weight(net) is None
    with torch.no_grad():
        net[0].bias[1] = spoilt
    assert bad_weight(net) == "0.bias"
    with pytest.raises(NotFiniteError, match=r"0\.bias holds numbers that are not finite"):
        check_saved(net.state_dict())


def test_a_buffer_may_be_infinite_as_masks_are_but_not_nan():
    net = network()
    net[1].running_mean[0] = -math.inf
    assert bad_weight(net) is None
    net[1].running_mean[0] = math.nan
    assert bad_weight(net) == "1.running_mean"


def test_the_remedy_is_of_the_cause():
    assert "--dtype bf16 or fp32" in remedy(network(), torch.float16)
    assert "--dtype bf16 or fp32" in remedy(network(torch.float16), None)
    assert "--dtype" not in remedy(network(), torch.bfloat16)
    told = remedy(network(), None)
    assert "a lower learning rate helps where it diverged in training, else another sampler" in told
    net = network()
    net[0].weight.data[0, 0] = math.nan
    assert "its 0.weight is not finite either" in remedy(net, torch.float16)
