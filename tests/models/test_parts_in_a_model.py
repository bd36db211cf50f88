"""Autoencoder and text encoder as parts of a model: made, saved, loaded; imported when needed."""

import subprocess
import sys

import pytest
import torch
from tests.tiny_parts import TINY_AUTOENCODER, TINY_CLIP

from fewstep.choice import replaced
from fewstep.files import save_tensors, sha256
from fewstep.models.folder import filled

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.mark.parametrize("spec", [TINY_AUTOENCODER, TINY_CLIP], ids=["codec", "conditioner"])
def test_as_a_folder_holds_them(spec, tmp_path):
    """The same weights come back; a file that is not the described part's is refused."""
    torch.manual_seed(5)
    module = spec.build()
    file = tmp_path / "part.safetensors"
    save_tensors(file, module.state_dict())
    described = {"weights": {file.name: sha256(file)}}
    again = filled(tmp_path, described, file.name, module.spec, module.spec.build)
    assert again.spec == module.spec
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    name = "latent_channels" if "latent_channels" in spec.config else "hidden_size"
    wider = replaced(module.spec, config={**spec.config, name: 2 * spec.config[name]})
    with pytest.raises(ValueError, match=r"does not fit its model\.json"):
        filled(tmp_path, described, file.name, wider, wider.build)


def test_options_import_no_library():
    code = (
        "import sys; from fewstep.models.codec import Codec; "
        "from fewstep.models.conditioner import Conditioner; "
        "Codec.parse({'kind': 'autoencoder_kl', 'config': {'latent_channels': 8}}); "
        "Conditioner.parse('clip_text'); "
        "assert not {'diffusers', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'fewstep\[text\]'"):
        TINY_CLIP.build()
