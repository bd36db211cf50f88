"""transformers' text encoder as a conditioner; its tokenizer travels with the weights."""

import warnings

import pytest
import torch
from tests.tiny_parts import TINY_CLIP

from fewstep.choice import replaced
from fewstep.models.clip_text import ClipText, clip_tokenizer, tokenizer_bytes
from fewstep.models.conditioner import Conditioner
from fewstep.models.space import Space, Text, Vectors

pytest.importorskip("transformers")

MERGES = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>")]
CAPTIONS = ["", "low Lower", "it's 12 é 日本 🙂!", "a red circle"]


def with_merges():
    """The tiny one, whose tokenizer knows three merges."""
    torch.manual_seed(4)
    content = tokenizer_bytes(clip_tokenizer(MERGES), 77)
    ends = {"bos_token_id": 515, "eos_token_id": 516, "pad_token_id": 516}
    config = {**TINY_CLIP.config, "vocab_size": 517, **ends}
    module = ClipText(config, len(content)).build()
    module.tokenizer_json.copy_(content)
    return module


@pytest.fixture(scope="module")
def text():
    return with_merges()


class TestTokens:
    """Those of transformers' CLIPTokenizer."""

    @pytest.mark.parametrize("caption", [*CAPTIONS, "low " * 100, "<|endoftext|> low"])
    def test_are_theirs(self, text, caption):
        theirs = clip_tokenizer(MERGES)(
            [caption], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        assert torch.equal(text.tokens([caption]), theirs.input_ids)

    def test_padding(self, text):
        start, end = 515, 516
        assert text.tokens([""]).tolist() == [[start] + [end] * 76]
        low = text.tokenizer.token_to_id("low</w>")
        assert text.tokens(["low"]).tolist() == [[start, low] + [end] * 75]

    def test_what_is_too_long_loses_its_end_and_is_counted(self, text):
        captions = ["low " * 76, "low " * 75, ""]
        tokens = text.tokens(captions)
        assert tokens[0, 0] == 515
        assert tokens[0, -1] == 516
        assert torch.equal(tokens[0], tokens[1])
        assert text.truncated(captions) == 1

    def test_prompts_that_are_too_long_are_told(self, text):
        with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 75 tokens"):
            text.check({"caption": ["low " * 76, "low " * 76, None]})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text.check({"caption": ["low " * 75]})

    @pytest.mark.parametrize("caption", ["a red circle", "é 日本 🙂", "low lower 12"])
    def test_bytes_round_trip(self, text, caption):
        ids = text.tokens([caption])[0].tolist()
        again = text.clip_tokenizer().decode(ids, skip_special_tokens=True)
        assert again.replace(" ", "") == caption.replace(" ", "")

    def test_the_genuine_tokenizer_is_the_same(self, text):
        genuine = text.clip_tokenizer()
        assert type(genuine).__name__ == "CLIPTokenizer"
        assert torch.equal(tokenizer_bytes(genuine, 77), text.tokenizer_json)
        assert genuine.model_max_length == 77

    def test_other_padding_is_kept(self):
        """As Stable Diffusion 2 has it: "!", token 0."""
        from transformers import CLIPTokenizer

        plain = clip_tokenizer(MERGES)
        vocabulary = plain.get_vocab()
        padded = CLIPTokenizer(vocab=vocabulary, merges=MERGES, pad_token="!")
        content = tokenizer_bytes(padded, 77)
        module = ClipText({**TINY_CLIP.config, "vocab_size": 517}, len(content)).build()
        module.tokenizer_json.copy_(content)
        assert module.tokens([""])[0].tolist() == [515, 516] + [vocabulary["!"]] * 75
        assert module.clip_tokenizer().pad_token == "!"

    def test_without_a_tokenizer_each_byte_is_a_token(self):
        module = TINY_CLIP.build()
        tokens = module.tokens(["aé"])[0].tolist()
        assert tokens[0] == 512
        assert tokens[4:] == [513] * 73  # a byte, two bytes, between start and end
        assert module.spec.tokenizer == len(module.tokenizer_json) > 1000

    def test_more_tokens_than_the_encoder_has(self):
        content = tokenizer_bytes(clip_tokenizer(MERGES), 77)
        module = ClipText(TINY_CLIP.config, len(content)).build()
        module.tokenizer_json.copy_(content)
        with pytest.raises(ValueError, match="517 tokens, the text encoder 514"):
            module.tokens(["a"])


class TestCondition:
    """One row a caption; the null row is the embedding of ""."""

    def test_states_are_theirs(self, text):
        cond = text({"caption": CAPTIONS})
        with torch.no_grad():
            theirs = text.module(text.tokens(CAPTIONS)).last_hidden_state
        assert cond["text"].shape == (4, 77, 16)
        assert torch.allclose(cond["text"], theirs, atol=1e-6)

    def test_the_null_row_is_the_embedding_of_nothing(self, text):
        cond = text({"caption": ["a", "", None, "a"]})
        assert cond.null["text"].shape == (1, 77, 16)
        assert cond.is_null().tolist() == [False, True, True, False]
        assert torch.equal(cond["text"][0], cond["text"][3])

    def test_an_embedding_passes_by(self, text):
        stored = torch.randn(2, 77, 16)
        cond = text({"embedding": stored, "caption": ["a", "b"]})
        assert torch.equal(cond["text"], stored)
        assert torch.equal(cond.null["text"], text({"caption": [""]})["text"])

    def test_columns(self, text):
        assert text.columns == {"text": Vectors((77, 16))}
        assert text.null

    def test_unfit_data(self):
        fit = {"embedding": Vectors((77, 16)), "caption": Text()}
        assert TINY_CLIP.unfit(Space((), fit)) is None
        assert TINY_CLIP.unfit(Space((), {"caption": Text()})) is None
        assert "embeddings" in TINY_CLIP.unfit(Space((), {"embedding": Vectors((77, 8))}))
        assert "it reads" in TINY_CLIP.unfit(Space((), {}))


class TestModule:
    """Weights, options, errors."""

    def test_weights_and_tokenizer_travel_together(self, text):
        again = text.spec.build()
        again.load_state_dict(text.state_dict())
        assert torch.equal(
            again({"caption": CAPTIONS})["text"], text({"caption": CAPTIONS})["text"]
        )

    def test_a_tokenizer_that_was_used_is_replaced_by_loading(self):
        first, other = with_merges(), with_merges()
        bare = tokenizer_bytes(clip_tokenizer(), 77)
        padded = torch.cat([bare, bare.new_full((len(first.tokenizer_json) - len(bare),), 32)])
        other.tokenizer_json.copy_(padded)
        before = first.tokens(["low"])
        first.load_state_dict(other.state_dict())
        assert not torch.equal(first.tokens(["low"]), before)

    def test_it_is_frozen_and_names_are_theirs(self, text):
        from transformers import CLIPTextConfig, CLIPTextModel

        assert not any(parameter.requires_grad for parameter in text.parameters())
        assert sum(parameter.numel() for parameter in text.parameters()) < 50_000
        theirs = CLIPTextModel(CLIPTextConfig(**text.spec.config)).state_dict()
        names = ["tokenizer_json", *(f"module.{name}" for name in theirs)]
        assert sorted(text.state_dict()) == sorted(names)

    def test_options_travel_as_plain_data(self):
        assert Conditioner.parse(TINY_CLIP.dump()) == TINY_CLIP

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"hiden_size": 4}, "no option 'hiden_size'; did you mean hidden_size?"),
            ({"hidden_size": "wide"}, "CLIPTextConfig: .*hidden_size"),
            ({"hidden_size": 15}, "CLIPTextConfig: .*multiple"),
        ],
    )
    def test_wrong_options_are_one_line(self, options, says):
        spec = replaced(TINY_CLIP, config={**TINY_CLIP.config, **options})
        with pytest.raises(ValueError, match=says) as caught:
            spec.build()
        assert "\n" not in str(caught.value)
