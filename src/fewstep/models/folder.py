"""The folder that a model is saved in: model.json and safetensors, known to this file alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewstep.choice import Choice, origins
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Parameterization
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import Sampler
from fewstep.files import (
    load_tensors,
    new_folder,
    read_json,
    save_tensors,
    sha256,
    tensor_shapes,
    write_json,
)
from fewstep.finite import check_saved
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Codec, CodecModule
from fewstep.models.conditioner import Conditioner, ConditionerModule
from fewstep.models.described import are_columns, clip_of, errors_of, guidance_of
from fewstep.models.families import load_recognised
from fewstep.models.foreign import foreign
from fewstep.models.named import folder_of, found
from fewstep.models.network import Network
from fewstep.models.size import MOST_NUMBERS, MOST_TENSORS, at_most, numbers_in, shapes_of
from fewstep.models.space import Space
from fewstep.plugins import told

FORMAT = 1
WEIGHTS = "model.safetensors"
VARIANT = "model-{}.safetensors"  # of one average, by its decay
ADDITION, ADDITION_VARIANT = "lora.safetensors", "lora-{}.safetensors"  # without the base
CODEC, CONDITIONER = "codec.safetensors", "conditioner.safetensors"  # where these have weights


def save_folder(model: DiffusionModel, folder: Path) -> None:
    """Writes model.json and the weights, and loads them again.

    The folder appears whole or not at all. NotFiniteError where a weight of the network, its
    averages, the codec or the conditioner is not finite.
    """
    denoiser = model.denoiser
    spec: Network = denoiser.network.spec  # type: ignore[assignment]
    state = denoiser.network.state_dict()
    buffers = dict(denoiser.network.named_buffers())
    for tensors in (state, *model.variants.values()):
        check_saved(tensors, buffers)
    for module in (model.codec, model.conditioner):
        check_saved(module.state_dict(), dict(module.named_buffers()))
    with new_folder(Path(folder)) as beside:
        save_tensors(beside / WEIGHTS, state)
        for name, tensors in model.variants.items():
            save_tensors(beside / VARIANT.format(name), tensors)
        for name, (tensors, facts) in model.additions.items():
            file = ADDITION_VARIANT.format(name) if name else ADDITION
            save_tensors(beside / file, tensors, facts)
        for file, module in ((CODEC, model.codec), (CONDITIONER, model.conditioner)):
            if module.state_dict():
                save_tensors(beside / file, module.state_dict())
        described = {
            "format": FORMAT,
            "network": spec.dump(),
            "process": denoiser.process.dump(),
            "own": denoiser.own.dump(),
            "parameterization": denoiser.parameterization.dump(),
            "sampler": model.sampler.dump(),
            "guidance": model.guidance.told(),
            "codec": model.codec.spec.dump(),
            "conditioner": model.conditioner.spec.dump(),
            "shape": list(model.shape),
            "examples": model.examples,
            "weights": {p.name: sha256(p) for p in sorted(beside.glob("*.safetensors"))},
            "card": model.card,
        }
        if model.clip is not None:
            described["clip"] = model.clip
        parts = [spec, denoiser.process, denoiser.own, denoiser.parameterization, model.sampler]
        if made_with := origins([*parts, model.codec.spec, model.conditioner.spec]):
            described["plugins"] = made_with
        write_json(beside / "model.json", described)
        again = load_folder(beside).denoiser.network.state_dict()
        for name, tensor in state.items():
            assert torch.equal(again[name], tensor.cpu()), f"{name} changed in saving"


def load_folder(folder: Path, weights: str | None = None) -> DiffusionModel:
    """The model saved in a folder. weights: the name of a variant (an EMA decay), default the
    model's own.

    Raises FileNotFoundError or ValueError, each saying which file is missing, damaged or of a newer
    format.
    """
    path = folder / "model.json"
    if not path.is_file():
        reason = foreign(folder) or f"{folder} is no model folder: it has no model.json"
        raise FileNotFoundError(reason)
    described = read_description(path, "network", f"{path} does not describe a diffusion model")
    with told(described.get("plugins")), errors_of(path):
        return _described(folder, described, weights)


def read_description(path: Path, key: str, otherwise: str) -> dict[str, Any]:
    """model.json of a kind of model that has `key`; ValueError where it is another kind, damaged or
    newer.
    """
    described = read_json(path)
    if not isinstance(described, dict) or key not in described:
        raise ValueError(f"{otherwise}{_instead(described)}")
    if not isinstance(found := described.get("format"), int):
        raise ValueError(f"{path} is damaged: it has no format")
    if found > FORMAT:
        raise ValueError(f"{path} has format {found}, newer than this fewstep knows ({FORMAT})")
    return described


def _instead(described: Any) -> str:
    """What a model.json describes that is not what was looked for; "" where nobody knows."""
    for kind in ("classifier", "network", "codec", "conditioner"):
        if isinstance(described, dict) and kind in described:
            return f": it is that of a {'diffusion model' if kind == 'network' else kind}"
    return ""


def _described(folder: Path, described: dict[str, Any], weights: str | None) -> DiffusionModel:
    spec, shape = Network.parse(described["network"]), shape_of(described)
    guidance = guidance_of(described["guidance"])
    process, own = Process.parse(described["process"]), Process.parse(described["own"])
    parameterization = Parameterization.parse(described["parameterization"])
    sampler = Sampler.parse(described["sampler"])
    examples = described.get("examples", {})
    check_card(described)
    if not are_columns(examples):
        raise ValueError(f"examples: expected lists by name, got {str(examples)[:80]}")
    codes, conditions = Codec.parse(described["codec"]), Conditioner.parse(described["conditioner"])
    codec = filled(folder, described, CODEC, codes, codes.build)
    conditioner = filled(folder, described, CONDITIONER, conditions, conditions.build)
    space = Space(shape, conditioner.columns)
    file = file_of(folder, described, weights)
    network = filled(folder, described, file, spec, lambda: spec.build(space))
    return DiffusionModel(
        Denoiser(network, process, parameterization, own).eval(),
        codec,
        conditioner,
        shape,
        sampler,
        guidance,
        described["card"],
        examples=examples,
        clip=clip_of(described.get("clip")),
    )


def check_card(described: dict[str, Any]) -> None:
    """ValueError where it has no card of facts by name."""
    if not isinstance(card := described["card"], dict):
        raise ValueError(f"card: expected values by name, got {str(card)[:80]}")


def shape_of(described: dict[str, Any]) -> tuple[int, ...]:
    """Of a sample. ValueError where it is none, or too large to be one."""
    shape = described["shape"]
    whole = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not whole or not shape or math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"no sample has the shape {str(shape)[:80]}")
    return tuple(shape)


def file_of(
    folder: Path,
    described: dict[str, Any],
    weights: str | None,
    own: str = WEIGHTS,
    variant: str = VARIANT,
) -> str:
    """The file of a variant, or of the model's own weights. ValueError where there is none."""
    if weights in (None, str(described["card"].get("ema"))):
        return own
    file = variant.format(weights)
    if file not in described["weights"]:
        before, after = variant.split("{}")
        known = [
            name.removeprefix(before).removesuffix(after)
            for name in described["weights"]
            if name.startswith(before)
        ]
        raise ValueError(
            f"{folder} has no weights {weights!r}; it has: {', '.join(known) or 'only its own'}"
        )
    return file


def filled(
    folder: Path, described: dict[str, Any], file: str, spec: Choice, build: Callable[[], Any]
) -> Any:
    """The module that `build` makes of `spec`, with the weights of its file if it has any.

    Its sizes are held against the file's before memory is taken. FileNotFoundError or ValueError
    where the weights are missing or not its own.
    """
    path = folder / file
    there = tensor_shapes(path) if path.is_file() else {}
    # A tensor may be registered twice, and some are made beside the weights.
    most = 2 * len(there) + 10 if there else MOST_TENSORS
    if type(spec).__module__.startswith("fewstep."):  # others may need numbers as they are made
        shapes = shapes_of(build, most)
        if shapes and not path.is_file():
            raise FileNotFoundError(f"no file {path}")
        if reason := _difference(shapes, there):
            raise ValueError(f"{path} does not fit its model.json: {reason}")
    with at_most(most, 2 * numbers_in(there) + MOST_NUMBERS):
        module = build()
    if not module.state_dict():
        return module
    tensors = load_tensors(path)
    check_hash(path, described)
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} does not fit its model.json: {reason}") from None
    return module


def check_hash(path: Path, described: dict[str, Any]) -> None:
    """ValueError where a file of weights is not the one that was saved."""
    hashes = described["weights"]
    if not isinstance(hashes, dict) or path.name not in hashes:
        raise ValueError(
            f"{path.parent / 'model.json'}: weights: expected the sha256 of {path.name}, "
            f"got {str(hashes)[:80]}"
        )
    if sha256(path) != hashes[path.name]:
        raise ValueError(f"{path} is damaged: its sha256 is not the one in model.json")


def _difference(described: dict[str, list[int]], there: dict[str, list[int]]) -> str:
    """The first weight that a file has otherwise than its model; '' for none, or no weights."""
    for name in {**described, **there} if described else ():
        mine, its = described.get(name), there.get(name)
        if mine != its:
            return f"{name} has the shape {its} in place of {mine}"
    return ""


def load_codec(source: str | Path) -> CodecModule:
    """The codec of a model, or of a run that trained one. Errors as of `load`."""
    return _part(source, Codec, "codec", CODEC)


def load_conditioner(source: str | Path) -> ConditionerModule:
    """The conditioner of a model, or of a run that trained one. Errors as of `load`."""
    return _part(source, Conditioner, "conditioner", CONDITIONER)


def _part(source: str | Path, family: type[Codec | Conditioner], key: str, file: str) -> Any:
    folder = folder_of(source)
    if (model := load_recognised(folder)) is not None:
        return getattr(model, key)
    if not (folder / "model.json").is_file():
        reason = foreign(folder) or f"{folder} is no model folder: it has no model.json"
        raise FileNotFoundError(reason)
    described = read_description(folder / "model.json", key, f"{folder} holds no {key}")
    with told(described.get("plugins")), errors_of(folder / "model.json"):
        spec = family.parse(described[key])
        return filled(folder, described, file, spec, spec.build)


def load(source: str | Path, ema: str | None = None) -> DiffusionModel:
    """A model: the name of a shipped one, a run's folder, a model's folder, or one of a family of
    others (a folder, a file, a name on the hub). ema: one of the run's EMA decays.

    Raises FileNotFoundError (with the shipped names) or ValueError.
    """
    folder = found(source)
    if (model := load_recognised(folder)) is not None:
        if ema is not None:
            raise ValueError(f"{folder} has no weights {ema!r}; it has: only its own")
        return model
    if not folder.is_dir():
        known = f"{folder} is a file; a model is a folder with model.json and its weights"
        raise ValueError(foreign(folder) or known)
    if (folder / "student" / "model.json").is_file():
        return load_folder(folder / "student", ema)
    if (folder / "run.yaml").is_file():
        raise FileNotFoundError(
            f"the run {folder} has no finished model yet: train it to its end first"
        )
    return load_folder(folder, ema)
