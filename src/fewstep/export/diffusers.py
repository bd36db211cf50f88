"""Export to diffusers: a `ConsistencyModelPipeline` of a `UNet2DModel`, which needs no fewstep.

The pipeline fixes: the VE process, the published boundary (CmBoundary), images in [-1, 1], square.
What it cannot say is refused. Its bare call with n steps walks a Karras grid; with
num_train_timesteps = 4001 that is the student's own grid exactly wherever n divides 4000.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.choice import kind_of
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import CmBoundary
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import Renoise
from fewstep.diffusion.times import Auto, Karras
from fewstep.export.drawn import Drawn
from fewstep.export.rounding import store
from fewstep.files import new_folder, take_mode, write_json
from fewstep.finite import check_images
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Pixels
from fewstep.models.unet import UNetModule

GRID = 4001
TOLERANCE = 1e-4


def export_diffusers(
    model: DiffusionModel, folder: Path, dtype: torch.dtype = torch.float32
) -> float:
    """Writes the pipeline's folder and returns the largest difference of its images from the
    model's own. dtype: of the weights' file.

    Raises ValueError where the target cannot say what the model is, or where the images differ by
    more than 1e-4; then nothing is left under the folder's name. ImportError without diffusers.
    """
    network = _checked(model)
    try:
        import diffusers
        from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
    except ImportError:
        raise ImportError("the export needs diffusers: pip install 'fewstep[diffusers]'") from None
    denoiser = model.denoiser
    unet = UNet2DModel(**unet_config(network))
    unet.load_state_dict(unet_weights(network), strict=True)
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=GRID,
        sigma_min=denoiser.process.t_min,
        sigma_max=denoiser.process.t_max,
        sigma_data=denoiser.parameterization.sigma_data,  # type: ignore[attr-defined]
        rho=model.sampler.times.rho,  # type: ignore[attr-defined]
        clip_denoised=False,
    )
    store(unet, dtype)
    with new_folder(folder) as beside:
        ConsistencyModelPipeline(unet.eval(), scheduler).save_pretrained(beside)
        write_json(beside / "fewstep.json", {"steps": model.sampler.steps, "card": model.card})
        for file in beside.rglob("*.safetensors"):
            take_mode(file, beside / "fewstep.json")
        diffusers.utils.logging.disable_progress_bar()
        again = ConsistencyModelPipeline.from_pretrained(beside, low_cpu_mem_usage=False)
        again.unet.float()
        again.set_progress_bar_config(disable=True)
        difference = max(_difference(model, again, steps) for steps in (1, 2))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the exported pipeline's images differ from the model's by {difference:.2g}: not "
                f"exported"
            )
    return difference


def _checked(model: DiffusionModel) -> UNetModule:
    d, network = model.denoiser, model.denoiser.network
    spec: Any = network.spec
    reasons = {
        f"its network is {kind_of(type(spec))}, not unet": not isinstance(network, UNetModule),
        "it is no consistency student with the published boundary (CmBoundary)": (
            not isinstance(d.parameterization, CmBoundary)
        ),
        "its process is not variance exploding": not isinstance(d.process, VarianceExploding)
        or d.own != d.process,
        "its sampler is not multistep consistency sampling on a Karras grid down to t_min": not (
            isinstance(model.sampler, Renoise)
            and isinstance(model.sampler.times, Karras | Auto)  # the same on this process
            and model.sampler.times.end == "t_min"
        ),
        "its images are not in [-1, 1]": not isinstance(model.codec.spec, Pixels),
        f"its images are not square: {model.shape}": model.shape[1] != model.shape[2],
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"diffusers' ConsistencyModelPipeline cannot hold this model: {reason}"
            )
    assert isinstance(network, UNetModule)
    if (
        network.spec.extra
        or network.spec.time_input not in ("log_sigma", None)
        or network.spec.multipliers[0] != 1
    ):
        raise ValueError(
            "diffusers' UNet2DModel cannot hold this network: it has other inputs than noise level "
            "and label"
        )
    return network


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
    spec, levels = network.spec, len(network.spec.multipliers)
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
    renamed = {}
    for name, tensor in network.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if owner == "label_emb":
            renamed["class_embedding.weight"] = tensor[: network.space.classes]
        elif owner.endswith((".qkv", ".proj_out")):  # 1×1 convolutions there, linear layers here
            flat = tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor
            if owner.endswith(".qkv"):
                for part, piece in zip("qkv", flat.chunk(3)):
                    renamed[f"{homes[owner]}.to_{part}.{kind}"] = piece
            else:
                renamed[f"{homes[owner]}.{kind}"] = flat
        else:
            renamed[f"{homes[owner]}.{kind}"] = tensor
    return {k: v.clone() for k, v in renamed.items()}


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


@torch.no_grad()
def _difference(model: DiffusionModel, pipeline: Any, steps: int, num: int = 4) -> float:
    """The largest pixel difference between the pipeline's images and the sampler's, from the same
    noise.
    """
    denoiser: Denoiser = model.denoiser.cpu().eval()
    asked = model.asked_of(0, num)
    cond = model.conditioner(asked)
    # The noise that the pipeline will draw from a generator of the same seed.
    draws = Drawn(1, num)
    noise = draws.normal(*model.shape)
    sampler = model.sampler.with_steps(steps)
    x = sampler(denoiser, denoiser.process, noise, cond, draws)
    check_images(x)
    mine = model.codec.decode(x)
    theirs = pipeline(
        batch_size=num,
        class_labels=asked.get("label"),
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    ).images
    return (mine - theirs).abs().max().item()
