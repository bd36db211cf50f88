"""Our U-Net of pixels as diffusers' UNet2DModel: the configuration that computes the same, and the
names of the weights there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.models.unet import UNet, UNetModule


def unet_config(network: UNetModule) -> dict[str, Any]:
    """The configuration of the UNet2DModel that computes the same."""
    spec, space = network.spec, network.space
    levels = len(spec.multipliers)
    attends = [2**level in spec.attention for level in range(levels)]
    return {
        "sample_size": space.shape[1],
        "in_channels": space.shape[0],
        "out_channels": space.shape[0],
        "layers_per_block": spec.blocks,
        "block_out_channels": tuple(spec.channels * m for m in spec.multipliers),
        "down_block_types": tuple(
            "AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends
        ),
        "up_block_types": tuple(
            "AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)
        ),
        "attention_head_dim": spec.head_channels,
        "norm_num_groups": spec.groups,
        "attn_norm_num_groups": spec.groups,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "dropout": 0.0,
        # A class that means "no label" is left out: the pipeline draws labels from all that there
        # are.
        "num_class_embeds": space.classes or None,
    }


def unet_weights(network: UNetModule) -> dict[str, Tensor]:
    """The weights under diffusers' names."""
    homes = _homes(network.spec)
    renamed = {}
    for name, tensor in network.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if owner == "label_emb":
            renamed["class_embedding.weight"] = tensor[: network.space.classes]
        elif owner.endswith(".qkv"):  # a 1×1 convolution here, three linear layers there
            for part, piece in zip("qkv", _flat(tensor).chunk(3)):
                renamed[f"{homes[owner]}.to_{part}.{kind}"] = piece
        elif owner.endswith(".proj_out"):
            renamed[f"{homes[owner]}.{kind}"] = _flat(tensor)
        else:
            renamed[f"{homes[owner]}.{kind}"] = tensor
    return {name: tensor.clone() for name, tensor in renamed.items()}


def load_unet(network: UNetModule, theirs: dict[str, Tensor]) -> None:
    """Takes weights under diffusers' names. ValueError where one is missing or of another shape."""
    homes = _homes(network.spec)
    found = {}
    try:
        for name, mine in network.state_dict().items():
            owner, _, kind = name.rpartition(".")
            if owner == "label_emb":
                tensor = theirs["class_embedding.weight"]
            elif owner.endswith(".qkv"):
                parts = [theirs[f"{homes[owner]}.to_{part}.{kind}"] for part in "qkv"]
                tensor = torch.cat(parts).reshape(mine.shape)
            elif owner.endswith(".proj_out"):
                tensor = theirs[f"{homes[owner]}.{kind}"].reshape(mine.shape)
            else:
                tensor = theirs[f"{homes[owner]}.{kind}"]
            found[name] = tensor
        network.load_state_dict(found)
    except KeyError as error:
        raise ValueError(f"its unet lacks the weights {error}") from None
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[-1].strip()) from None


def _flat(tensor: Tensor) -> Tensor:
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _homes(spec: UNet) -> dict[str, str]:
    """The path of a layer there, by its path here."""
    levels = len(spec.multipliers)
    homes = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    homes |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    homes |= _res("middle_block.0", "mid_block.resnets.0") | _res(
        "middle_block.2", "mid_block.resnets.1"
    )
    homes |= _attention("middle_block.1", "mid_block.attentions.0")
    n, up = 1, 0
    for level in range(levels):
        for j in range(spec.blocks):
            homes |= _res(f"input_blocks.{n}.0", f"down_blocks.{level}.resnets.{j}")
            homes |= _attention(f"input_blocks.{n}.1", f"down_blocks.{level}.attentions.{j}")
            n += 1
        homes |= _res(f"input_blocks.{n}.0", f"down_blocks.{level}.downsamplers.0")
        n += 1
    for level in range(levels):
        attends = 2 ** (levels - 1 - level) in spec.attention
        for j in range(spec.blocks + 1):
            homes |= _res(f"output_blocks.{up}.0", f"up_blocks.{level}.resnets.{j}")
            if attends:
                homes |= _attention(f"output_blocks.{up}.1", f"up_blocks.{level}.attentions.{j}")
            up += 1
        homes |= _res(
            f"output_blocks.{up - 1}.{2 if attends else 1}", f"up_blocks.{level}.upsamplers.0"
        )
    return homes


def _res(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}.in_layers.0": f"{theirs}.norm1",
        f"{ours}.in_layers.2": f"{theirs}.conv1",
        f"{ours}.emb_layers.1": f"{theirs}.time_emb_proj",
        f"{ours}.out_layers.0": f"{theirs}.norm2",
        f"{ours}.out_layers.3": f"{theirs}.conv2",
        f"{ours}.skip_connection": f"{theirs}.conv_shortcut",
    }


def _attention(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}.norm": f"{theirs}.group_norm",
        f"{ours}.qkv": theirs,
        f"{ours}.proj_out": f"{theirs}.to_out.0",
    }
