"""What a run's teacher may be: a new network between parts that were trained before."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.tiny_diffusion import DATA, TINY, TINY_UNET

from fewstep.choice import replaced
from fewstep.models.folder import load
from fewstep.models.source import Fresh, ModelSource, Saved
from fewstep.training.start import content

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("made") / "model"
    TINY.load(DATA, seed=1).save(found)
    return str(found)


def test_codec_and_conditioner_of_another_model(folder):
    """Their weights are those of the folder, whatever the seed; the network's are the seed's."""
    one = load(folder)
    source = Fresh(network=TINY_UNET, codec_from=folder, conditioner_from=folder)
    made = source.load(DATA, seed=2)
    assert made.shape == one.shape == (4, 4, 4)
    for mine, theirs in ((made.codec, one.codec), (made.conditioner, one.conditioner)):
        assert mine.spec == theirs.spec
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], tensor)
    own, theirs = TINY.load(DATA, seed=2), one.denoiser.network
    for name, tensor in own.denoiser.network.state_dict().items():
        assert torch.equal(made.denoiser.network.state_dict()[name], tensor)
    assert not torch.equal(
        made.denoiser.network.module.conv_in.weight, theirs.module.conv_in.weight
    )


def test_what_is_taken_is_part_of_what_a_run_begins_with(folder, tmp_path):
    """Wherever it lies, by its weights."""
    source = Fresh(network=TINY_UNET, codec_from=folder, conditioner_from=folder)
    assert source.named
    assert Saved("x").named
    assert not TINY.named
    first = content(source.load(DATA, seed=2))
    other = load(folder)
    elsewhere = tmp_path / "moved"
    other.save(elsewhere)
    moved = replaced(source, codec_from=str(elsewhere))
    assert content(moved.load(DATA, seed=2)) == first
    with torch.no_grad():
        next(other.codec.parameters()).add_(1)
    other.save(tmp_path / "changed")
    changed = replaced(source, codec_from=str(tmp_path / "changed"))
    assert content(changed.load(DATA, seed=2))["weights"] != first["weights"]


def test_one_way_to_say_it():
    plain = {"kind": "fresh", "codec_from": "a", "codec": "autoencoder_kl"}
    with pytest.raises(ValueError, match="codec_from says which codec it is: leave codec out"):
        ModelSource.parse(plain)
    with pytest.raises(ValueError, match="conditioner_from says which"):
        dataclasses.replace(TINY, conditioner_from="a")


def test_a_home_is_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Fresh(codec_from="~/vae").codec_from == str(Path(tmp_path) / "vae")


def test_a_folder_without_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model or run"):
        Fresh(codec_from="nothing_there").load(DATA, 0)
    (tmp_path / "model.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="holds no conditioner"):
        Fresh(conditioner_from=str(tmp_path)).load(DATA, 0)
