"""The training of an autoencoder: its loss, its scaling factor, what is saved and taken up."""

import pytest
import torch
from tests.tiny_parts import TINY_AUTOENCODER
from torch.distributions import Normal, kl_divergence

from fewstep import Run, distil, load
from fewstep.choice import replaced
from fewstep.cli.main import main
from fewstep.data.digits import Digits
from fewstep.data.shapes import Shapes
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.learning.batch import Batch
from fewstep.learning.losses import Features
from fewstep.learning.method import Clock
from fewstep.methods.diffusion import Diffusion
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.frechet import Frechet
from fewstep.models.folder import load_codec
from fewstep.models.source import Fresh
from fewstep.models.space import Text, data_space, image_space
from fewstep.parts.autoencoder import (
    Autoencoder,
    Autoencoding,
    FreshAutoencoder,
    divergence_from_noise,
)
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW

pytest.importorskip("diffusers")
GREY = replaced(
    TINY_AUTOENCODER, config={**TINY_AUTOENCODER.config, "in_channels": 1, "out_channels": 1}
)
DATA = Digits(limit=256)


def run_of(method=None, **changes):
    options = {
        "steps": 40,
        "batch": 32,
        "device": "cpu",
        "log_every": 1,
        "save_every": 20,
        "optimizer": AdamW(lr=3e-3),
        "ema": (0.9,),
    }
    method = method or Autoencoding(measured=512)
    config = TrainerConfig(**{**options, **changes})
    return Run(DATA, method, FreshAutoencoder(GREY), trainer=config)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return distil(run_of(), tmp_path_factory.mktemp("runs") / "run", progress=False)


@pytest.fixture(scope="module")
def batch():
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(Cond(), Draws(5, range(4)), (1, 8, 8), x)


def test_the_divergence_is_that_of_two_normals():
    """Against torch.distributions; 0 for the unit normal itself."""
    moments = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    mean, log_variance = moments.chunk(2, 1)
    one = Normal(mean, torch.exp(log_variance / 2))
    expected = kl_divergence(one, Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(divergence_from_noise(moments), expected, rtol=1e-5)
    assert divergence_from_noise(torch.zeros(2, 8, 4, 4)).tolist() == [0, 0]


def test_the_loss_is_what_it_says(batch):
    method = Autoencoding(kl=0.5, perceptual=Features(), perceptual_weight=2.0)
    model = FreshAutoencoder(GREY).load(image_space((1, 8, 8)), 0)
    nets = method.build_nets(model, None)
    found = method.loss(nets, batch, Clock(0, 1, 4))
    x, codec = batch.data, model.network
    moments = codec.moments(x / 2 + 0.5)
    mean, log_variance = moments.chunk(2, 1)
    noise = Draws(5, range(4)).fork("latents").normal(4, 4, 4)
    drawn = mean + torch.exp(log_variance / 2) * noise
    again = codec.module.decode(drawn).sample
    expected = {
        "reconstruction": (again - x).abs().flatten(1).mean(1),
        "divergence": 0.5 / 64 * divergence_from_noise(moments),
        "perceptual": 2 * Features()(again, x),
    }
    assert set(found.terms) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(found.terms[name], value, atol=1e-5), name
    assert "perceptual" not in Autoencoding().loss(nets, batch, Clock(0, 1, 4)).terms


def test_its_size():
    model = FreshAutoencoder(GREY).load(image_space((1, 8, 8)), 0)
    assert sum(parameter.numel() for parameter in model.network.parameters()) < 50_000


def test_reconstruction_improves(made):
    lines = read_log(made.folder / "log.jsonl")
    assert lines[-1]["reconstruction"] < 0.5 * lines[0]["reconstruction"]


def test_latents_have_unit_standard_deviation(made):
    """Drawn ones, of other noise and all training images; measured before it was saved."""
    images = DATA.dataset().floats()
    codec = load_codec(made.folder)
    latents = codec.encode(images, Draws(9, range(len(images))))
    assert latents.std().item() == pytest.approx(1, rel=0.02)
    assert codec.spec.config["scaling_factor"] == codec.module.config.scaling_factor
    assert codec.spec.config["scaling_factor"] != 0.18215
    assert torch.allclose(codec.decode(codec.encode(images)), images, atol=1)


class TestSaved:
    """One loader reads it as the codec of any model."""

    def test_as_a_codec(self, made):
        images = DATA.dataset().floats()[:4]
        for source in (made.folder, made.folder / "student", str(made.folder)):
            again = load_codec(source)
            assert again.spec == made.student.network.spec
            assert torch.equal(again.encode(images), made.student.network.encode(images))
            assert not any(parameter.requires_grad for parameter in again.parameters())

    def test_a_finished_run_is_read(self, made):
        again = distil(run_of(), made.folder, progress=False)
        assert again.already
        assert isinstance(again.student, Autoencoder)
        assert again.student.shape == (1, 8, 8)
        assert again.student.card == made.student.card
        state = made.student.network.state_dict()
        for name, tensor in again.student.network.state_dict().items():
            assert torch.equal(tensor, state[name])

    def test_it_is_no_diffusion_model(self, made):
        with pytest.raises(ValueError, match="does not describe a diffusion model"):
            load(made.folder)
        with pytest.raises(ValueError, match="holds no trained autoencoder"):
            Autoencoder.load("digits_teacher")

    def test_a_model_has_a_codec_to_load_too(self):
        assert type(load_codec("digits_teacher").spec).__name__ == "Pixels"

    def test_a_damaged_one(self, made, tmp_path):
        made.student.save(tmp_path / "copy")
        file = tmp_path / "copy" / "codec.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_codec(tmp_path / "copy")
        file.unlink()
        with pytest.raises(FileNotFoundError):
            load_codec(tmp_path / "copy")


def test_a_run_that_was_stopped_has_the_same_bits(tmp_path):
    def stop(seen):
        if seen.done == 2:
            raise KeyboardInterrupt

    run = run_of(steps=4, save_every=1, ema=(0.9, 0.99))
    straight = distil(run, tmp_path / "straight", progress=False)
    with pytest.raises(KeyboardInterrupt):
        distil(run, tmp_path / "stopped", observers=[stop], progress=False)
    again = distil(run, tmp_path / "stopped", progress=False)
    assert again.student.network.spec == straight.student.network.spec
    state = straight.student.network.state_dict()
    for name, tensor in again.student.network.state_dict().items():
        assert torch.equal(tensor, state[name])


class TestRefused:
    """What does not fit is said before anything is trained."""

    def test_other_models(self, tmp_path):
        with pytest.raises(ValueError, match="autoencoding does not train the model of teacher="):
            distil(Run(DATA, Autoencoding(), Fresh()), tmp_path / "run")
        with pytest.raises(ValueError, match="diffusion does not train the model of teacher="):
            distil(Run(DATA, Diffusion(), FreshAutoencoder(GREY)), tmp_path / "run")

    def test_data(self):
        with pytest.raises(ValueError, match="needs images, the data has caption"):
            FreshAutoencoder(GREY).load(data_space({"caption": Text()}), 0)
        with pytest.raises(ValueError, match="3 channels, not 1"):
            FreshAutoencoder().load(image_space((1, 8, 8)), 0)


class TestEvaluated:
    """`fewstep evaluate` measures reconstructions of the reference."""

    def test_a_run(self, made, capsys):
        words = ["evaluate", str(made.folder), "split=test", "--num", "64"]
        with pytest.raises(SystemExit) as ended:
            main([*words, "--measures", "frechet"])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert "reconstructions" in told
        images = Digits(split="test").dataset()
        again = made.student.reconstructed(images, 64)
        evaluation = Evaluation.against(images, measures=[Frechet()])
        value = evaluation.measured(again)[0]["frechet"]
        assert f"{value:.1f}" in told

    def test_rows_keep_their_columns(self, made):
        images = DATA.dataset()
        rows = made.student.reconstructed(images, 5)
        codec = made.student.network
        assert torch.equal(rows["label"], images.labels[:5])
        assert torch.allclose(rows["image"], codec.decode(codec.encode(images.floats()[:5])))

    def test_what_does_not_fit(self, made, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(made.folder), "--steps", "3"])
        assert ended.value.code == 2
        assert "holds an autoencoder: --steps" in capsys.readouterr().err
        with pytest.raises(ValueError, match=r"encodes images of shape \(1, 8, 8\)"):
            made.student.reconstructed(Shapes(num=4, split="all").dataset(), 4)
