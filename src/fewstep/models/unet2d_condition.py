"""The U-Net of Stable Diffusion: diffusers' UNet2DConditionModel, as it is.

Its weights keep diffusers' names behind "module.". Two numbers more are read where diffusers has a
place for them: the guidance by `time_cond_proj_dim`, as released latent consistency models do, and
s, the end of a jump, by `class_embed_type="timestep"`, a second time embedding that is added to the
first. So a student is a UNet2DConditionModel too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.choice import kind_of, replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.types import Sample, Time
from fewstep.models.library import Config, completed, made
from fewstep.models.network import Network, NetworkModule, TimeInput, noise_features, zeroed
from fewstep.models.space import Space, Vectors, described

CLASS = "diffusers.UNet2DConditionModel"
PLACES: dict[str, dict[str, Any]] = {
    "guidance": {"time_cond_proj_dim": 256},
    "s": {"class_embed_type": "timestep"},
}
"""What the configuration says of a U-Net that reads this."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
AROUND_ATTENTION = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
UNREAD = ("addition_embed_type", "encoder_hid_dim_type", "num_class_embeds")


@dataclass(frozen=True)
class UNet2dCondition(Network):
    """diffusers' UNet2DConditionModel, which reads the states of a text encoder.

    Inputs of `extra` begin at zero: the output stays as it was until they are trained.
    """

    config: Config = field(default_factory=dict)
    """Options of diffusers' UNet2DConditionModel, as its config.json has them; what is not given is
    its default, or what the data and the text ask for."""
    time_input: TimeInput = "identity"
    extra: tuple[str, ...] = ()
    adapted: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attention": ATTENTION,
        "all": (*ATTENTION, *AROUND_ATTENTION, *CONVOLUTIONS, "time_emb_proj"),
    }

    def build(self, space: Space) -> NetworkModule:
        return UNet2dConditionModule(self, space)


class UNet2dConditionModule(nn.Module):
    """The module in fewstep's call. Of more channels than a sample has (a learned variance) the
    first are taken. Raises ValueError for what the configuration cannot serve.
    """

    def __init__(self, spec: UNet2dCondition, space: Space):
        super().__init__()
        self.spec, self.space = spec, space
        self.module = made(CLASS, _fitted(spec.config, space))
        self.taps: Mapping[str, int] = _middle(self.module)
        self._checkpointing = False
        self._refuse_unknown(set(spec.extra))
        for name in sorted(set(spec.extra) - set(self.inputs)):
            self._add(name)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The text, and the guidance and s where it has a place for them."""
        found = ["text"]
        for name, place in PLACES.items():
            if all(self.module.config[key] for key in place):
                found.append(name)
        return tuple(found)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        if on:
            self.module.enable_gradient_checkpointing()
        else:
            self.module.disable_gradient_checkpointing()

    def number(self, t: Time) -> Time:
        """What the time embedding takes for t."""
        return noise_features(t, self.spec.time_input)

    def forward(self, x: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        """The raw output F(x, t), in the shape of x. Where s is missing, t takes its place; a
        guidance that nobody names is 1, none.
        """
        dtype = self.module.conv_in.weight.dtype
        more: dict[str, Tensor] = {}
        inputs = self.inputs
        if "guidance" in inputs:
            told = cond["guidance"] if "guidance" in cond.values else torch.ones_like(t)
            size = self.module.config["time_cond_proj_dim"]
            more["timestep_cond"] = guidance_features(told, size).to(dtype)
        if "s" in inputs:
            more["class_labels"] = self.number(t if s is None else s)
        text = cond["text"].to(dtype)
        f = self.module(x.to(dtype), self.number(t), text, return_dict=False, **more)[0]
        return f[:, : x.shape[1]]

    def with_inputs(self, names: Set[str]) -> nn.Module:
        """A copy that also reads "guidance" or "s", through layers that begin at zero."""
        self._refuse_unknown(names)
        added = tuple(sorted(set(names) - set(self.inputs)))
        wider = copy.deepcopy(self)
        wider.spec = replaced(self.spec, extra=self.spec.extra + added)
        for name in added:
            wider._add(name)
        return wider

    def _add(self, name: str) -> None:
        """A place for one more number, in the dtype and on the device of the rest."""
        time = self.module.time_embedding
        like = time.linear_1
        if name == "guidance":
            size = PLACES[name]["time_cond_proj_dim"]
            time.cond_proj = zeroed(nn.Linear(size, like.in_features, bias=False)).to(like.weight)
        else:
            embedding = copy.deepcopy(time)
            embedding.cond_proj = None
            zeroed(embedding.linear_2)
            self.module.class_embedding = embedding
        self.module.register_to_config(**PLACES[name])

    def _refuse_unknown(self, names: Set[str]) -> None:
        if unknown := set(names) - self.spec.known:
            raise ValueError(
                f"a {kind_of(type(self.spec))} has no input {', '.join(sorted(unknown))}; "
                f"known: {sorted(self.spec.known)}"
            )


def guidance_features(scale: Time, size: int) -> Tensor:
    """(batch, size): sines, then cosines, of 1000 w 10000^(-k/(size/2 - 1)), k = 0 … size/2 - 1,
    with w = scale - 1: the features of released latent consistency models (arXiv:2310.04378).

    In float32 step by step, as diffusers computes them: the phase is so large that another
    rounding would be another feature.
    """
    half = size // 2
    w = (scale - 1).float() * 1000.0
    fall = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -fall).to(w.device)
    phase = w[:, None] * frequencies
    features = torch.cat([torch.sin(phase), torch.cos(phase)], dim=1)
    return nn.functional.pad(features, (0, size % 2))


def _middle(module: Any) -> dict[str, int]:
    """The middle block, with its channels; of a U-Net without one the last residual block of the
    way down.
    """
    name = "module.mid_block"
    if module.mid_block is None:
        blocks = module.down_blocks
        last = len(blocks) - 1
        name = f"module.down_blocks.{last}.resnets.{len(blocks[last].resnets) - 1}"
    return {name: module.config["block_out_channels"][-1]}


def _fitted(config: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """All options of the class, for samples of this shape beside such a text. ValueError where they
    do not fit.
    """
    text = space.columns.get("text")
    if set(space.columns) != {"text"} or not isinstance(text, Vectors) or len(text.shape) != 2:
        raise ValueError(
            f"a unet_2d_condition reads the states of a text encoder (tokens × width), not "
            f"{described(space.columns)}"
        )
    if len(space.shape) != 3:
        raise ValueError(f"a unet_2d_condition needs images, got the shape {tuple(space.shape)}")
    channels, height, width = space.shape
    asked = {
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels,
        "cross_attention_dim": text.shape[1],
    }
    found = completed({**asked, **config}, CLASS)
    if found["in_channels"] != channels or found["out_channels"] < channels:
        raise ValueError(
            f"this U-Net makes {found['out_channels']} channels of {found['in_channels']}, a "
            f"sample has {channels}"
        )
    if (wide := found["cross_attention_dim"]) != text.shape[1]:
        raise ValueError(f"this U-Net reads text of width {wide}, the encoder's is {text.shape[1]}")
    for key in UNREAD:
        if found[key] is not None:
            raise ValueError(f"this U-Net reads more than a text: {key} is {found[key]!r}")
    if found["class_embed_type"] not in (None, "timestep"):
        raise ValueError(f"this U-Net reads classes: {found['class_embed_type']!r}")
    return found
