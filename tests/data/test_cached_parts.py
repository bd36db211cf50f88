"""A cache of what Stable Diffusion's autoencoder and text encoder make."""

import pytest
import torch
from tests.data.test_cached import batches, cached, caches, equal
from tests.data.test_caption_layouts import SEVERAL, coco
from tests.tiny_parts import TINY_AUTOENCODER, TINY_CLIP

from fewstep.data.coco import Coco

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("fp16", 3e-3)])
def test_pictures_with_several_captions(tmp_path, monkeypatch, dtype, tolerance):
    """Of the 12 captions of four pictures, one of which has none; the null row is that of ''."""
    torch.manual_seed(3)
    parts = TINY_AUTOENCODER.build(), TINY_CLIP.build()
    coco(tmp_path / "set", SEVERAL)
    data = Coco(path=str(tmp_path / "set"), split="all", size=8, flip=True).dataset()
    caches(tmp_path / "c", data, parts, dtype)
    expected = batches(data, parts)
    for module in (*parts, parts[0].module, parts[1].module):
        monkeypatch.setattr(module, "forward", None)
    monkeypatch.setattr(parts[0].module, "encode", None)
    again = cached(tmp_path / "c", flip=True).dataset()
    assert again.columns["moments"].shape == (8, 4, 4)
    equal(batches(again, parts), expected, tolerance)
    null = again.rows(torch.arange(4))["embedding"][2]
    assert torch.equal(null, again.made_by.null[0])
