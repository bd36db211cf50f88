"""Weights of a pipeline in the layout of Stable Diffusion's first release: one file, other
names.
"""

import re

import torch

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj"}


def first_layout(pipeline, second=False):
    """All weights of a pipeline under their first names. second: the text encoder's as in Stable
    Diffusion 2, which has OpenCLIP's.
    """
    found = {}
    unet = pipeline.unet
    for name, tensor in unet.state_dict().items():
        found[f"model.diffusion_model.{unet_name(name, unet)}"] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        first, tensor = vae_weight(name, tensor, len(pipeline.vae.config["block_out_channels"]))
        found[f"first_stage_model.{first}"] = tensor
    text = pipeline.text_encoder.state_dict()
    names = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    if second:
        found |= {f"cond_stage_model.model.{k}": v for k, v in open_clip(names).items()}
    else:
        found |= {f"cond_stage_model.transformer.text_model.{k}": v for k, v in names.items()}
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def unet_name(name, unet):
    per = unet.config["layers_per_block"] + 1
    for new, old in ENDS.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old)
    where, block, kind, layer, rest = re.match(
        r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)", name
    ).groups()
    block, layer = int(block or 0), int(layer)
    if kind == "resnets":
        part, _, end = rest.partition(".")
        rest = f"{RESIDUAL[part]}.{end}"
    if where == "mid":
        return f"middle_block.{2 * layer if kind == 'resnets' else 1}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * per}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        attends = "attentions" in dict(unet.up_blocks[block].named_children())
        return f"output_blocks.{(block + 1) * per - 1}.{1 + attends}.{rest}"
    place = {"resnets": 0, "attentions": 1}[kind]
    if where == "down":
        return f"input_blocks.{1 + block * per + layer}.{place}.{rest}"
    return f"output_blocks.{block * per + layer}.{place}.{rest}"


def vae_weight(name, tensor, levels):
    """The first name; projections of the attention are 1×1 convolutions there."""
    if ".attentions." in name:
        for new, old in ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
        if name.endswith("weight") and ".norm." not in name:
            tensor = tensor[:, :, None, None]
        return name.replace("mid_block.attentions.0", "mid.attn_1"), tensor
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d)\.(resnets|upsamplers\.0)",
        lambda m: f"up.{levels - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
        name,
    )
    return name.replace("conv_norm_out", "norm_out").replace(
        "conv_shortcut", "nin_shortcut"
    ), tensor


def open_clip(weights):
    """Query, key and value are one tensor there."""
    found = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "text_projection": torch.eye(weights["final_layer_norm.bias"].shape[0]),
    }
    for name, tensor in weights.items():
        if name.startswith("final_layer_norm"):
            found[name.replace("final_layer_norm", "ln_final")] = tensor
        if not name.startswith("encoder.layers."):
            continue
        for new, old in OPEN_CLIP.items():
            name = name.replace(new, old)
        place = name.replace("encoder.layers.", "transformer.resblocks.")
        place = place.replace("self_attn", "attn")
        if ".q_proj." in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[place.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            found[place] = tensor
    return found
