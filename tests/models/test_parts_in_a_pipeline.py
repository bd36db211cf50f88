"""Autoencoder, text encoder and tokenizer in a genuine StableDiffusionPipeline of diffusers."""

import pytest
import torch
from tests.tiny_diffusion import TINY_UNET
from tests.tiny_parts import TINY_AUTOENCODER, TINY_CLIP

from fewstep.models.clip_text import ClipText, clip_tokenizer, tokenizer_bytes
from fewstep.models.space import Space, Vectors

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
CAPTION = "a red circle, é"


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(4)
    tokenizer = clip_tokenizer([("r", "e"), ("re", "d</w>")])
    content = tokenizer_bytes(tokenizer, 77)
    ends = {"bos_token_id": 514, "eos_token_id": 515, "pad_token_id": 515}
    module = ClipText({**TINY_CLIP.config, "vocab_size": 516, **ends}, len(content)).build()
    module.tokenizer_json.copy_(content)
    return module


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(5)
    codec = TINY_AUTOENCODER.build()
    codec.rescale(0.7)
    return codec


@pytest.fixture(scope="module")
def pipeline(text, codec, tmp_path_factory):
    """Made of the parts, written and read again."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    space = Space((4, 4, 4), {"text": Vectors(text.spec.shape)})
    made = StableDiffusionPipeline(
        vae=codec.module,
        text_encoder=text.module,
        tokenizer=text.clip_tokenizer(),
        unet=TINY_UNET.build(space).module,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    made.save_pretrained(folder)
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def test_prompts_are_embedded_alike(pipeline, text):
    """The negative prompt that nobody gives is the null row."""
    prompt, negative = pipeline.encode_prompt([CAPTION], "cpu", 1, True)
    cond = text({"caption": [CAPTION]})
    assert torch.allclose(prompt, cond["text"], atol=1e-6)
    assert torch.allclose(negative, cond.null["text"], atol=1e-6)
    assert not torch.allclose(prompt, negative, atol=1e-2)


def test_the_tokenizer_is_the_same(pipeline, text):
    assert type(pipeline.tokenizer) is type(text.clip_tokenizer())
    assert torch.equal(tokenizer_bytes(pipeline.tokenizer, 77), text.tokenizer_json)
    assert pipeline.tokenizer.model_max_length == 77


def test_latents_are_decoded_alike(pipeline, codec):
    """The pipeline divides by the scaling factor of its configuration."""
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(6))
    assert pipeline.vae.config.scaling_factor == 0.7
    with torch.no_grad():
        theirs = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        theirs = pipeline.image_processor.postprocess(theirs, output_type="pt")
        assert torch.allclose(codec.decode(latents), theirs, atol=1e-6)
