"""Captions as tokens: which pairs of bytes a tokenizer joins, and what a text encoder reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fewstep.data.dataset import Dataset
from fewstep.diffusion.conditioning import Cond
from fewstep.models.clip_text import ClipTextModule, clip_tokenizer
from fewstep.models.conditioner import ConditionerModule
from fewstep.models.library import library_class
from fewstep.models.space import Vectors

MOST_ROWS = 200_000  # whose captions a tokenizer is learned from
RAREST = 2  # how often a pair stands in them at least


class Tokens(ConditionerModule):
    """The tokens of captions, (batch, length): what a text encoder in training reads."""

    null = False

    def __init__(self, text: ClipTextModule):
        super().__init__()
        self.spec = text.spec
        self.columns = {"tokens": Vectors(text.spec.shape[:1])}
        self._tokens = text.tokens

    def forward(self, asked: Mapping[str, Any]) -> Cond:
        captions = [caption or "" for caption in asked["caption"]]
        return Cond({"tokens": self._tokens(captions)})


def captions_of(dataset: Dataset) -> list[str]:
    """All captions of the first rows, in their order; several of a row one after the other."""
    several = "captions" in dataset.columns
    name = "captions" if several else "caption"
    found = dataset.rows(torch.arange(min(len(dataset), MOST_ROWS)), [name])[name]
    return [text for texts in found for text in texts] if several else found


def learned_merges(captions: Sequence[str], most: int) -> list[tuple[str, str]]:
    """The pairs of tokens that are joined, by how often they stand in the captions: at most so
    many, in their order. The same captions give the same pairs.
    """
    plain = clip_tokenizer().backend_tokenizer
    empty = library_class("tokenizers.models.BPE")(end_of_word_suffix="</w>")
    learning = library_class("tokenizers.Tokenizer")(empty)
    learning.normalizer, learning.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    alphabet = sorted(library_class("tokenizers.pre_tokenizers.ByteLevel").alphabet())
    trainer = library_class("tokenizers.trainers.BpeTrainer")(
        vocab_size=2 * len(alphabet) + most,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        min_frequency=RAREST,
        show_progress=False,
    )
    learning.train_from_iterator(captions, trainer)
    pairs = json.loads(learning.to_str())["model"]["merges"]
    return [(first, second) for first, second in pairs[:most]]
