"""diffusers' autoencoder as a codec: what it computes is theirs, what it draws has the moments."""

import math

import pytest
import torch
from tests.tiny_parts import TINY_AUTOENCODER

from fewstep.choice import replaced
from fewstep.diffusion.draws import Draws
from fewstep.models.autoencoder_kl import AutoencoderKl
from fewstep.models.codec import Codec

pytest.importorskip("diffusers")


def with_options(**options):
    return replaced(TINY_AUTOENCODER, config={**TINY_AUTOENCODER.config, **options})


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(1)
    return with_options(scaling_factor=0.5, shift_factor=0.25).build()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def test_latents_are_theirs_moved_and_scaled(codec, images):
    with torch.no_grad():
        theirs = codec.module.encode(images * 2 - 1).latent_dist
        assert torch.equal(codec.encode(images), (theirs.mean - 0.25) * 0.5)
    moments = codec.moments(images)
    assert moments.shape == (3, 8, 4, 4)
    assert torch.equal(moments.chunk(2, 1)[0], theirs.mean)


def test_decoding_undoes_scale_and_shift(codec, images):
    with torch.no_grad():
        theirs = codec.module.decode(codec.module.encode(images * 2 - 1).latent_dist.mean).sample
        mine = codec.decode(codec.encode(images))
    assert torch.allclose(mine, (theirs / 2 + 0.5).clamp(0, 1), atol=1e-6)
    assert torch.allclose(codec.unclamped(codec.encode(images)), theirs, atol=1e-5)


def test_images_are_clamped(codec):
    with torch.no_grad():
        found = codec.decode(torch.full((1, 4, 4, 4), 100.0))
    assert found.min() >= 0
    assert found.max() <= 1


def test_what_is_drawn_has_the_moments(codec, images):
    """20,000 draws of one image: the mean within 5 standard errors, the variance within 5 %."""
    count = 20_000
    moments = codec.moments(images[:1])
    mean, log_variance = moments.chunk(2, 1)
    drawn = codec.latents(moments.expand(count, -1, -1, -1), Draws(3, range(count)))
    error = (drawn.mean(0) - (mean[0] - 0.25) * 0.5).abs()
    std = torch.exp(log_variance[0] / 2) * 0.5
    assert (error < 5 * std / math.sqrt(count)).all()
    assert torch.allclose(drawn.var(0), std.square(), rtol=0.05)


def test_extreme_variances_are_bounded_as_theirs(codec):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = torch.zeros(1, 8, 4, 4)
    moments[:, 4:] = torch.linspace(-100, 100, 64).view(1, 4, 4, 4)
    std = DiagonalGaussianDistribution(moments).std
    noise = Draws(3, range(1)).normal(4, 4, 4)
    found = codec.latents(moments, Draws(3, range(1)))
    assert torch.allclose(found, (std * noise - 0.25) * 0.5)


def test_draws_are_of_the_row(codec, images):
    """Whatever else is in the batch."""
    all_of_them = codec.encode(images, Draws(3, range(3)))
    last = codec.encode(images[2:], Draws(3, range(2, 3)))
    assert torch.allclose(all_of_them[2:], last, atol=1e-6)
    assert not torch.equal(all_of_them, codec.encode(images))


def test_half_precision_weights_give_float32(images):
    torch.manual_seed(1)
    codec = TINY_AUTOENCODER.build().to(torch.bfloat16)
    assert codec.encode(images).dtype == torch.float32
    assert codec.decode(codec.encode(images)).dtype == torch.float32


def test_shapes():
    spec = with_options()
    assert spec.shape((3, 8, 12)) == (4, 4, 6)
    assert spec.image_shape((4, 4, 6)) == (3, 8, 12)
    assert AutoencoderKl().shape((3, 64, 64)) == (4, 64, 64)
    with pytest.raises(ValueError, match="multiples of 2, not 8×9"):
        spec.shape((3, 8, 9))
    with pytest.raises(ValueError, match="3 channels, not 1"):
        spec.shape((1, 8, 8))


def test_it_is_frozen_and_names_are_theirs():
    from diffusers import AutoencoderKL

    codec = TINY_AUTOENCODER.build()
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert sum(parameter.numel() for parameter in codec.parameters()) < 50_000
    theirs = AutoencoderKL(**TINY_AUTOENCODER.config).state_dict()
    assert list(codec.state_dict()) == [f"module.{name}" for name in theirs]


def test_options_travel_as_plain_data():
    assert Codec.parse(TINY_AUTOENCODER.dump()) == TINY_AUTOENCODER


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"latent_chanels": 4}, "no option 'latent_chanels'; did you mean latent_channels?"),
        ({"norm_num_groups": 3}, "divisible"),
        ({"latents_mean": [0.0]}, "latents_mean is not known here"),
        ({"block_out_channels": "wide"}, "diffusers.AutoencoderKL: "),
    ],
)
def test_wrong_options_are_one_line(options, says):
    with pytest.raises(ValueError, match=says) as caught:
        with_options(**options).build()
    assert "\n" not in str(caught.value)
