"""Models by their name on the hub, of which nothing is asked in a test."""

import socket
from types import SimpleNamespace

import pytest
import torch
from tests.tiny_diffusion import tiny_pipeline

from fewstep.models import hub
from fewstep.models.folder import load, load_codec

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
constants = pytest.importorskip("huggingface_hub.constants")
errors = pytest.importorskip("huggingface_hub.errors")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of downloads, empty; the current folder, too."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "hub"


def kept(cache, name="owner/tiny"):
    """A pipeline as a download leaves it."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    tiny_pipeline().save_pretrained(home / "snapshots" / "abc")
    return home / "snapshots" / "abc"


def test_what_can_be_a_name(tmp_path):
    assert hub.is_name("stable-diffusion-v1-5/stable-diffusion-v1-5")
    for text in ("digits_teacher", "/a/b", "./a", "../a/b", "a/b/c", "~/x", "a b/c", "a/", "-a/b"):
        assert not hub.is_name(text)
    (tmp_path / "home" / "runs").mkdir()
    assert not hub.is_name("runs/gone")


def test_what_was_downloaded_is_taken(cache, monkeypatch):
    folder = kept(cache)
    monkeypatch.setattr(hub, "_download", lambda name: pytest.fail("nothing is to be asked"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model, other = load("owner/tiny"), load(folder)
    for key, tensor in other.denoiser.state_dict().items():
        assert torch.equal(model.denoiser.state_dict()[key], tensor)
    assert load_codec("owner/tiny").spec == other.codec.spec


def test_a_folder_here_comes_first(cache, tmp_path):
    kept(cache)
    (tmp_path / "home" / "owner" / "tiny").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="is no model folder"):
        load("owner/tiny")


def test_offline_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it is asked"))
    with pytest.raises(FileNotFoundError, match=r"HF_HUB_OFFLINE is set$") as caught:
        load("owner/gone")
    told = str(caught.value)
    assert told.startswith("no model or run 'owner/gone'; shipped models: digits_classifier")
    assert "\n" not in told


class TestOnline:
    @pytest.fixture(autouse=True)
    def _online(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def test_what_is_not_here_is_fetched(self, cache, monkeypatch):
        """Also where a download was broken off."""
        folder = kept(cache)
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        asked = []

        def download(name):
            asked.append(name)
            return str(kept(cache, "owner/whole"))

        monkeypatch.setattr(hub, "_download", download)
        assert load("owner/tiny").shape == (4, 4, 4)
        assert asked == ["owner/tiny"]

    def test_a_dead_name(self, monkeypatch):
        answer = SimpleNamespace(headers={}, request=None)

        def gone(name):
            raise errors.RepositoryNotFoundError("404 Client Error.\nNot Found", response=answer)

        monkeypatch.setattr(hub, "_download", gone)
        with pytest.raises(FileNotFoundError, match=r"none that can be seen on the hub$"):
            load("owner/gone")

    def test_no_way_there(self, monkeypatch):
        def broken(name):
            raise ConnectionError("no route\nto host")

        monkeypatch.setattr(hub, "_download", broken)
        with pytest.raises(FileNotFoundError, match=r"the hub: no route to host$"):
            load("owner/far")

    def test_something_else(self, cache, monkeypatch):
        (cache / "else").mkdir(parents=True)
        monkeypatch.setattr(hub, "_download", lambda name: str(cache / "else"))
        with pytest.raises(FileNotFoundError, match="no pipeline of a kind that is known"):
            load("owner/else")
