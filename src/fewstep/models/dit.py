"""The Diffusion Transformer with adaLN-zero blocks (Peebles & Xie 2022, arXiv:2212.09748).

Against the published network: it has no second set of output channels (the learned variance), and
it knows dropout, on what each branch adds, as transformers use it (Vaswani et al. 2017,
arXiv:1706.03762). The fixed position embeddings have the row in their first half and the column in
the second, cosines before sines in each; the published ones have the column first, and the sines.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.choice import Depth, Share, Width
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.types import Sample, Time
from fewstep.models.network import (
    ConditionedModule,
    Network,
    NetworkModule,
    TimeInput,
    sinusoid,
    zeroed,
)
from fewstep.models.space import Space


@dataclass(frozen=True)
class Dit(Network):
    """Options of the transformer; the defaults are DiT-S/2.

    As published (width, depth, heads): S 384, 12, 6; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28,
    16.
    """

    width: Width = 384
    """Features of a token."""
    depth: Depth = 12
    """Transformer blocks."""
    heads: Width = 6
    """Attention heads of a block."""
    patch: Width = 2
    """Side of the squares of pixels that become one token each."""
    mlp_ratio: Depth = 4
    """Hidden width of the MLPs, in widths."""
    dropout: Share = 0.0
    """Dropout inside the blocks."""
    time_input: TimeInput | None = None
    extra: tuple[str, ...] = ()
    adapted: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attention": ("qkv", "attention.proj"),
        "all": ("qkv", "attention.proj", "mlp.0", "mlp.2", "modulation.1"),
    }

    def build(self, space: Space) -> NetworkModule:
        shape = tuple(space.shape)
        if len(shape) != 3:
            raise ValueError(f"a DiT needs images (channels, height, width), got shape {shape}")
        if any(n % self.patch for n in shape[1:]):
            raise ValueError(
                f"a DiT of patch={self.patch} needs images whose sides divide by {self.patch}, got "
                f"shape {shape}; "
                f"patch={math.gcd(self.patch, *shape[1:])} fits"
            )
        if self.width % (
            unit := math.lcm(4, self.heads)
        ):  # 4: sines and cosines of rows and of columns
            raise ValueError(
                f"a DiT of heads={self.heads} needs a width that divides by {unit}, got "
                f"width={self.width}; "
                f"width={math.ceil(self.width / unit) * unit} fits"
            )
        return DitModule(self, space)


class Attention(nn.Module):
    """Self-attention over all tokens; channel order of qkv: all q, all k, all v."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = _linear(width, 3 * width), _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous (batch, heads, tokens, channels) lets PyTorch take its fast kernels.
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then MLP. The embedding gives shift, scale and gate of both; zero gates make a
    fresh block x -> x.
    """

    def __init__(self, spec: Dit):
        super().__init__()
        width, hidden = spec.width, spec.mlp_ratio * spec.width
        self.modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))
        self.attention = Attention(width, spec.heads)
        self.mlp = nn.Sequential(
            _linear(width, hidden), nn.GELU(approximate="tanh"), _linear(hidden, width)
        )
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(embedding)[
            :, None
        ].chunk(6, dim=2)
        x = x + gate * self.dropout(self.attention(_modulated(x, shift, scale)))
        return x + mlp_gate * self.dropout(self.mlp(_modulated(x, mlp_shift, mlp_scale)))


class DitModule(ConditionedModule):
    """The network; see `Dit`. `blocks.3` gives the tokens behind the fourth block, (batch, tokens,
    width).
    """

    spec: Dit

    def __init__(self, spec: Dit, space: Space):
        super().__init__(spec, space, 256, spec.width)
        channels, *sides = space.shape
        self.rows, self.columns = (n // spec.patch for n in sides)
        if space.classes:
            nn.init.normal_(self.label_emb.weight, std=0.02)
        self.patch_embed = _linear(channels * spec.patch**2, spec.width)
        self.register_buffer(
            "positions", position_embedding(self.rows, self.columns, spec.width), persistent=False
        )
        self.taps = {f"blocks.{spec.depth // 2}": spec.width}
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(spec.width, 2 * spec.width)))
        self.out = zeroed(nn.Linear(spec.width, channels * spec.patch**2))

    def forward(self, x: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        embedding = self.embedding(t, cond, s)
        x = self.patch_embed(patchify(x.to(embedding.dtype), self.spec.patch)) + self.positions
        for block in self.blocks:
            x = self.through(block, x, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        return unpatchify(
            self.out(_modulated(x, shift, scale)), self.rows, self.columns, self.spec.patch
        )


def patchify(x: Tensor, patch: int) -> Tensor:
    """(batch, channels, height, width) to (batch, tokens, channels·patch²); tokens row by row."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The inverse of `patchify`, of a grid of rows × columns tokens."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), patch)


def position_embedding(rows: int, columns: int, width: int) -> Tensor:
    """(rows·columns, width): the sinusoid of a token's row, then that of its column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat(
        [sinusoid(place.flatten().float(), width // 2) for place in (row, column)], dim=1
    )


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as published: Xavier-uniform weights, no bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
