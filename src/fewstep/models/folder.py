"""The folder that a model is saved in: model.json and safetensors, known to this file alone."""

from __future__ import annotations

import functools
import importlib.resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.choice import origins
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Parameterization
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import Sampler
from fewstep.files import load_tensors, new_folder, read_json, save_tensors, sha256, write_json
from fewstep.finite import check_saved
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Codec
from fewstep.models.conditioner import Conditioner
from fewstep.models.foreign import foreign
from fewstep.models.network import Network
from fewstep.models.space import Space
from fewstep.plugins import told
from fewstep.text import place

FORMAT = 1
WEIGHTS = "model.safetensors"
VARIANT = "model-{}.safetensors"  # of one average, by its decay
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
            "guidance": model.guidance._asdict(),
            "codec": model.codec.spec.dump(),
            "conditioner": model.conditioner.spec.dump(),
            "shape": list(model.shape),
            "examples": model.examples,
            "weights": {p.name: sha256(p) for p in sorted(beside.glob("*.safetensors"))},
            "card": model.card,
        }
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
    try:
        with told(described.get("plugins")):
            return _described(folder, described, weights)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None


def read_description(path: Path, key: str, otherwise: str) -> dict[str, Any]:
    """model.json of a kind of model that has `key`; ValueError where it is another kind, damaged or
    newer.
    """
    described = read_json(path)
    if not isinstance(described, dict) or key not in described:
        raise ValueError(otherwise)
    if not isinstance(found := described.get("format"), int):
        raise ValueError(f"{path} is damaged: it has no format")
    if found > FORMAT:
        raise ValueError(f"{path} has format {found}, newer than this fewstep knows ({FORMAT})")
    return described


def _described(folder: Path, described: dict[str, Any], weights: str | None) -> DiffusionModel:
    shape = tuple(described["shape"])
    codec = Codec.parse(described["codec"]).build()
    conditioner = Conditioner.parse(described["conditioner"]).build()
    network = Network.parse(described["network"]).build(Space(shape, conditioner.columns))
    assert isinstance(network, nn.Module)
    _take(folder, described, _file_of(folder, described, weights), network)
    _take(folder, described, CODEC, codec)
    _take(folder, described, CONDITIONER, conditioner)
    guidance = Guidance(**described["guidance"])
    if guidance.kind not in ("doubled", "input", "fixed", "none"):
        raise ValueError(f"{folder} has guidance of an unknown kind: {guidance.kind!r}")
    process, own = Process.parse(described["process"]), Process.parse(described["own"])
    parameterization = Parameterization.parse(described["parameterization"])
    return DiffusionModel(
        Denoiser(network, process, parameterization, own).eval(),
        codec,
        conditioner,
        shape,
        Sampler.parse(described["sampler"]),
        guidance,
        described["card"],
        examples=described.get("examples", {}),
    )


def _file_of(folder: Path, described: dict[str, Any], weights: str | None) -> str:
    """The file of a variant, or of the model's own weights. ValueError where there is none."""
    if weights in (None, str(described["card"].get("ema"))):
        return WEIGHTS
    file = VARIANT.format(weights)
    if file not in described["weights"]:
        before, after = VARIANT.split("{}")
        known = [
            name.removeprefix(before).removesuffix(after)
            for name in described["weights"]
            if name.startswith(before)
        ]
        raise ValueError(
            f"{folder} has no weights {weights!r}; it has: {', '.join(known) or 'only its own'}"
        )
    return file


def _take(folder: Path, described: dict[str, Any], file: str, module: nn.Module) -> None:
    """Fills a module from its file, if it has weights. ValueError where they are not its own."""
    if not module.state_dict():
        return
    tensors = load_tensors(folder / file)
    if sha256(folder / file) != described["weights"][file]:
        raise ValueError(f"{folder / file} is damaged: its sha256 is not the one in model.json")
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{folder / file} does not fit its model.json: {reason}") from None


@functools.cache
def shipped() -> dict[str, Path]:
    """The models that come with the package, by name."""
    root = Path(str(importlib.resources.files("fewstep") / "weights"))
    return {path.name: path for path in sorted(root.iterdir()) if (path / "model.json").is_file()}


def shipped_folder(name: str | Path) -> Path:
    """The folder of a shipped model. FileNotFoundError with the names that there are."""
    if str(name) not in shipped():
        raise FileNotFoundError(
            f"no model or run {str(name)!r}; shipped models: {', '.join(shipped())}"
        )
    return shipped()[str(name)]


def load(source: str | Path, ema: str | None = None) -> DiffusionModel:
    """A model: the name of a shipped one, a run's folder, or a model's folder. ema: one of the
    run's EMA decays.

    Raises FileNotFoundError (with the shipped names) or ValueError.
    """
    folder = place(source)
    if not folder.exists():
        return load_folder(shipped_folder(source), ema)
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
