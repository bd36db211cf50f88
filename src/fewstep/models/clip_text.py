"""The text encoder of Stable Diffusion, transformers' `CLIPTextModel` with its tokenizer
(arXiv:2103.00020): a caption becomes one vector for each of its tokens.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.choice import Natural, replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.models.conditioner import Conditioner, ConditionerModule
from fewstep.models.library import Config, completed, library_class, made
from fewstep.models.space import Space, Vectors

MODEL, CONFIG = "transformers.CLIPTextModel", "transformers.CLIPTextConfig"


@dataclass(frozen=True)
class ClipText(Conditioner):
    """transformers' CLIPTextModel. The empty caption is "no condition"; an embedding that was
    stored is taken as it is.
    """

    reads: ClassVar[tuple[str, ...]] = ("embedding", "caption")

    config: Config = field(default_factory=dict)
    """Options of transformers' CLIPTextConfig, as its config.json has them; what is not given is
    its default."""
    tokenizer: Natural = 0
    """Bytes of tokenizer.json, which lies beside the weights; 0 for a new one in which each byte is
    a token."""

    def build(self) -> ClipTextModule:
        return ClipTextModule(self)

    @property
    def options(self) -> dict[str, Any]:
        """All options of the class. ValueError for one that it does not have."""
        return completed(self.config, CONFIG)

    @property
    def shape(self) -> tuple[int, int]:
        """Of an embedding: tokens, width."""
        options = self.options
        return options["max_position_embeddings"], options["hidden_size"]

    def unfit(self, data: Space) -> str | None:
        stored = data.columns.get("embedding")
        if isinstance(stored, Vectors) and tuple(stored.shape) != self.shape:
            return f"its embeddings have the shape {self.shape}, the data's {tuple(stored.shape)}"
        return super().unfit(data)


class ClipTextModule(ConditionerModule):
    """`module` is transformers' own. `tokenizer_json` are the bytes of what makes tokens of
    captions, saved and loaded as weights are; padding and truncation are in them.

    Equal captions of a batch are encoded once, so that an empty one is equal to the null row bit by
    bit.
    """

    spec: ClipText
    tokenizer_json: Tensor
    null = True

    def __init__(self, spec: ClipText):
        super().__init__()
        content = torch.zeros(spec.tokenizer, dtype=torch.uint8)
        if not spec.tokenizer:
            content = tokenizer_bytes(clip_tokenizer(), spec.shape[0])
        self.spec = replaced(spec, tokenizer=len(content))
        self.columns = {"text": Vectors(spec.shape)}
        self.module = made(MODEL, {"config": made(CONFIG, spec.options)})
        self.module.eval().requires_grad_(False)
        self.register_buffer("tokenizer_json", content)
        self.register_load_state_dict_post_hook(_forget)
        self._tokenizer: Any = None

    def forward(self, asked: Mapping[str, Any]) -> Cond:
        """Captions that are None have no condition."""
        captions = [""]
        if "embedding" not in asked:
            captions += [caption or "" for caption in asked["caption"]]
        different = list(dict.fromkeys(captions))
        encoded = self.encoded(self.tokens(different)).float()
        null = encoded[:1]
        if "embedding" in asked:
            return Cond({"text": torch.as_tensor(asked["embedding"]).to(null)}, {"text": null})
        place = {caption: row for row, caption in enumerate(different)}
        rows = [place[caption] for caption in captions[1:]]
        return Cond({"text": encoded[rows]}, {"text": null})

    def encoded(self, tokens: Tensor) -> Tensor:
        """The last layer's states of tokens (batch, length): (batch, length, width)."""
        return self.module(tokens).last_hidden_state

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """(captions, length) int64, on this module's device: a start, the caption, an end, padding.
        What is longer loses its end.
        """
        ids = [one.ids for one in self.tokenizer.encode_batch(list(captions))]
        return torch.tensor(ids, dtype=torch.long, device=self.tokenizer_json.device)

    def truncated(self, captions: Sequence[str]) -> int:
        return sum(bool(one.overflowing) for one in self.tokenizer.encode_batch(list(captions)))

    def check(self, asked: Mapping[str, Any]) -> None:
        """Warns of prompts whose end is not read."""
        super().check(asked)
        prompts = {caption or "" for caption in asked.get("caption", ())}
        if cut := self.truncated(sorted(prompts)):
            warnings.warn(
                f"{cut} of {len(prompts)} prompts are longer than the {self.spec.shape[0] - 2} "
                "tokens that are read; their ends are left out",
                stacklevel=5,
            )

    @property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of the bytes. ValueError where its tokens are not the
        model's.
        """
        if self._tokenizer is None:
            found = library_class("tokenizers.Tokenizer").from_str(self._text())
            mine, theirs = self.module.config.vocab_size, found.get_vocab_size()
            if theirs > mine:
                raise ValueError(f"the tokenizer has {theirs} tokens, the text encoder {mine}")
            self._tokenizer = found
        return self._tokenizer

    def clip_tokenizer(self) -> Any:
        """The same as transformers' CLIPTokenizer, which a pipeline's folder holds."""
        plain = json.loads(self._text())
        merges = [tuple(pair) for pair in plain["model"]["merges"]]
        return library_class("transformers.CLIPTokenizer")(
            vocab=plain["model"]["vocab"],
            merges=merges,
            pad_token=plain["padding"]["pad_token"],
            model_max_length=plain["truncation"]["max_length"],
        )

    def _text(self) -> str:
        return self.tokenizer_json.cpu().numpy().tobytes().decode()


def _forget(module: ClipTextModule, keys: Any) -> None:
    """Behind a loading of weights the bytes of the tokenizer are others."""
    module._tokenizer = None


def clip_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> Any:
    """transformers' CLIPTokenizer with these merges of byte-level tokens, in their order; without
    any each byte of a caption is a token.
    """
    letters = sorted(library_class("tokenizers.pre_tokenizers.ByteLevel").alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += dict.fromkeys(first + second for first, second in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return library_class("transformers.CLIPTokenizer")(vocab=vocabulary, merges=list(merges))


def tokenizer_bytes(tokenizer: Any, length: int) -> Tensor:
    """A CLIPTokenizer as the bytes of a tokenizer.json, uint8, that cuts and pads to `length`
    tokens.
    """
    library = library_class("tokenizers.Tokenizer")
    found = library.from_str(tokenizer.backend_tokenizer.to_str())
    found.enable_truncation(length)
    pad = {"pad_id": tokenizer.pad_token_id, "pad_token": tokenizer.pad_token}
    found.enable_padding(length=length, **pad)
    return torch.tensor(list(found.to_str().encode()), dtype=torch.uint8)
