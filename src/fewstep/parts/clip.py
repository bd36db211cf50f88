"""How the text encoder of a latent model is trained: its captions are told from each other by their
pictures (CLIP, arXiv:2103.00020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.choice import Count, Natural
from fewstep.data.dataset import Dataset
from fewstep.files import new_folder, save_tensors, sha256, write_json
from fewstep.finite import check_saved
from fewstep.learning.batch import Batch
from fewstep.learning.method import Clock, Clone, Losses, Method
from fewstep.learning.roles import trained
from fewstep.models.classifier import ClassifierNetwork
from fewstep.models.clip_text import ClipText, ClipTextModule, clip_tokenizer, tokenizer_bytes
from fewstep.models.codec import CodecModule, Pixels
from fewstep.models.described import errors_of
from fewstep.models.folder import (
    CONDITIONER,
    FORMAT,
    WEIGHTS,
    filled,
    load_conditioner,
    read_description,
    shape_of,
)
from fewstep.models.named import folder_of
from fewstep.models.part import Part
from fewstep.models.source import ModelSource
from fewstep.models.space import Image, Space, Text, Texts, described
from fewstep.parts.tokens import Tokens, captions_of, learned_merges

HOTTEST = 100.0  # of what similarities are multiplied by: beyond it training is unstable


class ClipHeads(nn.Module):
    """What a text encoder is trained with and a diffusion model does not need: the tower of the
    pictures, the projection of the text and the temperature.
    """

    def __init__(self, pictures: ClassifierNetwork, shape: tuple[int, ...], text: ClipText):
        super().__init__()
        width = text.options["projection_dim"]
        self.spec = pictures
        self.pictures = pictures.build(shape, width)
        self.projection = nn.Linear(text.options["hidden_size"], width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


class ClipModule(nn.Module):
    """A text encoder with what it is trained with."""

    def __init__(self, text: ClipTextModule, heads: ClipHeads):
        super().__init__()
        self.text, self.heads = text, heads

    def of_pictures(self, x: Tensor) -> Tensor:
        """Unit vectors of pictures in [-1, 1]: (batch, projection)."""
        return F.normalize(self.heads.pictures(x))

    def of_text(self, tokens: Tensor) -> Tensor:
        """Unit vectors of captions, of the state at their end: (batch, projection).

        No state depends on those behind it, so what stands behind the last end is not computed.
        """
        end = (tokens == self.text.module.config.eos_token_id).int().argmax(1)
        states = self.text.encoded(tokens[:, : int(end.max()) + 1])
        return F.normalize(self.heads.projection(states[torch.arange(len(end)), end]))

    def scale(self) -> Tensor:
        """By which similarities are multiplied."""
        return self.heads.log_scale.clamp(max=math.log(HOTTEST)).exp()


@dataclass(eq=False)
class Clip(Part):
    """A text encoder in training, with the pictures in [-1, 1]. Its folder holds what that of a
    diffusion model holds of its conditioner, so that `load_conditioner` reads both.
    """

    network: ClipModule
    shape: tuple[int, ...]
    card: dict[str, Any] = field(default_factory=dict)
    codec: CodecModule = field(default_factory=lambda: Pixels().build())

    @property
    def conditioner(self) -> Tokens:
        """The tokens of captions."""
        return Tokens(self.network.text)

    @torch.no_grad()
    def similarities(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosines between images in [0, 1] and captions: (images, captions)."""
        pictures = self.network.of_pictures(self.codec.encode(images))
        return pictures @ self.network.of_text(self.network.text.tokens(captions)).T

    def save(self, folder: Path) -> None:
        text, heads = self.network.text, self.network.heads
        check_saved(self.network.state_dict(), dict(self.network.named_buffers()))
        with new_folder(Path(folder)) as beside:
            save_tensors(beside / CONDITIONER, text.state_dict())
            save_tensors(beside / WEIGHTS, heads.state_dict())
            facts = {
                "format": FORMAT,
                "conditioner": text.spec.dump(),
                "pictures": heads.spec.dump(),
                "images": list(self.shape),
                "weights": {name: sha256(beside / name) for name in (CONDITIONER, WEIGHTS)},
                "card": self.card,
            }
            write_json(beside / "model.json", facts)

    @classmethod
    def load(cls, folder: Path) -> Clip:
        home = folder_of(folder)
        facts = read_description(
            home / "model.json", "pictures", f"{folder} holds no trained text encoder"
        )
        text = load_conditioner(home)
        assert isinstance(text, ClipTextModule)
        with errors_of(home / "model.json"):
            pictures = ClassifierNetwork.parse(facts["pictures"])
            shape = shape_of({"shape": facts["images"]})
            heads = filled(
                home, facts, WEIGHTS, pictures, lambda: ClipHeads(pictures, shape, text.spec)
            )
        network = ClipModule(text, heads).eval().requires_grad_(False)
        return cls(network, shape, facts["card"])


@dataclass(frozen=True)
class FreshClip(ModelSource):
    """A new text encoder, initialised under the run's seed, with a tokenizer learned from the
    captions.
    """

    text: ClipText = field(default_factory=ClipText)
    """The text encoder; what its configuration says of tokens is that of the tokenizer."""
    pictures: ClassifierNetwork = field(default_factory=lambda: ClassifierNetwork(dropout=0.0))
    """The network of the pictures; its classes are the numbers of the vectors that are compared."""
    merges: Natural = 512
    """How many pairs of tokens become one, the most frequent first; 0: each byte is a token."""

    def load(self, data: Space, seed: int) -> Clip:
        return self._made(data, seed, [])

    def load_for(self, dataset: Dataset, seed: int) -> Clip:
        return self._made(dataset.space, seed, learned_merges(captions_of(dataset), self.merges))

    def _made(self, data: Space, seed: int, merges: list[tuple[str, str]]) -> Clip:
        held = {type(column) for column in data.columns.values()}
        if Image not in held or not held & {Text, Texts}:
            raise ValueError(
                f"a text encoder needs images with captions, the data has {described(data.columns)}"
            )
        tokenizer = clip_tokenizer(merges)
        content = tokenizer_bytes(tokenizer, self.text.shape[0])
        config = {
            **self.text.config,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            text = ClipText(config, len(content)).build()
            heads = ClipHeads(self.pictures, data.shape, text.spec)
        text.tokenizer_json.copy_(content)
        return Clip(ClipModule(text, heads), tuple(data.shape))


@dataclass(frozen=True)
class Contrastive(Method):
    """InfoNCE between pictures and captions, both ways, with a learned temperature.

    Captions that are equal are no wrong answers to each other: short ones repeat in every batch ("a
    circle"), and as wrong answers they would push a picture away from its own caption.
    """

    rows: Count = 64
    """How many rows are told from each other; the batch holds whole groups of so many."""
    trains: ClassVar[type] = Clip

    @dataclass
    class Nets:
        """Text encoder, tower of the pictures, temperature."""

        student: ClipModule = trained(exported=True)

    def build_nets(self, model: Clip, clone: Clone) -> Nets:
        return self.Nets(model.network)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"x0", "tokens"})

    def group(self) -> int:
        return self.rows

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """The mean of both directions. `right`: whether the most similar caption is the own one."""
        net, tokens = nets.student, batch.cond["tokens"]
        pictures, texts, scale = net.of_pictures(batch.data), net.of_text(tokens), net.scale()
        losses, right = [], []
        for rows in torch.arange(len(tokens)).split(self.rows):
            logits = told_apart(scale * pictures[rows] @ texts[rows].T, tokens[rows])
            losses.append(info_nce(logits))
            right.append((logits.argmax(1) == torch.arange(len(rows)).to(logits.device)).float())
        notes = {"right": torch.cat(right), "scale": scale.expand(len(tokens))}
        return Losses({"contrastive": torch.cat(losses)}, notes)


def told_apart(logits: Tensor, tokens: Tensor) -> Tensor:
    """The logits (pictures, captions) without the pairs of other rows whose caption is the own
    one, word by word: they become -∞.
    """
    same = (tokens[:, None] == tokens[None]).all(2)
    same.fill_diagonal_(False)
    return logits.masked_fill(same, -math.inf)


def info_nce(logits: Tensor) -> Tensor:
    """-ln of the share of the own caption among all, and of the own picture, their mean:
    (batch,).
    """
    own = torch.arange(len(logits), device=logits.device)
    captions = F.cross_entropy(logits, own, reduction="none")
    pictures = F.cross_entropy(logits.T, own, reduction="none")
    return (captions + pictures) / 2
