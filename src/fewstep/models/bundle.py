"""`DiffusionModel`: a denoiser with all that is needed to use it, and the folder that it is saved
in.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import Denoise, Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance, guided
from fewstep.diffusion.parameterization import Parameterization
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import Sampler
from fewstep.files import load_tensors, new_folder, read_json, save_tensors, sha256, write_json
from fewstep.models.codec import Codec
from fewstep.models.conditioner import Conditioner
from fewstep.models.network import Network, Outside

FORMAT = 1
WEIGHTS = "model.safetensors"


@dataclass(eq=False)
class DiffusionModel:
    """A pixel EDM network and Stable Diffusion behind one type.

    shape: of a sample in model space, (channels, height, width). card: plain facts (method, data,
    metrics), saved. variants: other weights of the same network by name (EMA decays), saved beside.
    """

    denoiser: Denoiser
    codec: Codec
    conditioner: Conditioner
    shape: tuple[int, ...]
    sampler: Sampler
    guidance: Guidance = field(default_factory=Guidance)
    card: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> DiffusionModel:
        """Moves the weights; dtype (bfloat16, float16) is that of the network's arithmetic, by
        autocast.
        """
        self.denoiser.to(device)
        self.denoiser.autocast = None if dtype in (None, torch.float32) else dtype
        return self

    def trained(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        guidance: Guidance,
        card: dict[str, Any],
        variants: dict[str, Mapping[str, Tensor]],
    ) -> DiffusionModel:
        """The same model around a denoiser that was trained from it."""
        if guidance.kind == "doubled" and not self.conditioner.null:
            guidance = Guidance()  # there is no "no label" to guide away from
        return dataclasses.replace(
            self,
            denoiser=denoiser,
            sampler=sampler,
            guidance=guidance,
            card=card,
            variants=variants,
        )

    def evaluations(self, sampler: Sampler, guidance: float | None = None) -> int:
        """Network evaluations for one image with this sampler and guidance."""
        return sampler.evaluations * (2 if self._doubles(guidance) else 1)

    def generate(
        self,
        labels: Sequence[int] | Tensor | None = None,
        *,
        num: int | None = None,
        steps: int | None = None,
        sampler: Sampler | None = None,
        guidance: float | None = None,
        seed: int = 0,
        batch: int | None = None,
    ) -> Tensor:
        """Images, float32 in [0, 1], (num, channels, height, width), on the CPU.

        labels: one per image; none given: balanced classes. steps: solver steps, default the
        sampler's own. guidance: in g-form (1: none). Image i depends on (seed, i) alone, up to the
        rounding of the arithmetic. Raises ValueError for labels, steps or guidance that the model
        cannot serve.
        """
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.long)
            if num is not None and num != len(labels):
                raise ValueError(f"{len(labels)} labels for {num} images")
        num = (16 if labels is None else len(labels)) if num is None else num
        if num < 1:
            raise ValueError(f"the number of images must be at least 1, got {num}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        chosen = sampler or self.sampler
        chosen = chosen if steps is None else chosen.with_steps(steps)
        chosen.times(
            self.denoiser.process, chosen.steps
        )  # a grid that cannot be made fails before the first image
        if batch is not None and batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if labels is not None and not self.conditioner.classes:
            raise ValueError("this model knows no labels")
        labels = self.conditioner.labels(0, num) if labels is None else labels
        self.conditioner(labels)  # all of them are checked before the first image
        denoise = self._guided(guidance)
        batch = batch or max(16, min(256, 32768 // (self.shape[-1] * self.shape[-2])))
        parts = []
        for first in range(0, num, batch):
            rows = range(first, min(num, first + batch))
            draws = Draws(seed, rows, stream="sample", device=self.device)
            part = None if labels is None else labels[first : first + batch]
            parts.append(self._chunk(denoise, chosen, part, draws))
        return torch.cat(parts)

    @torch.no_grad()
    def _chunk(
        self, denoise: Denoise, sampler: Sampler, labels: Tensor | None, draws: Draws
    ) -> Tensor:
        self.denoiser.eval()
        cond = self.conditioner(labels).to(self.device)
        noise = draws.fork("noise").normal(*self.shape)
        x0 = sampler(denoise, self.denoiser.process, noise, cond, draws.fork("sampler"))
        return self.codec.decode(x0).float().cpu()

    def _doubles(self, guidance: float | None) -> bool:
        scale = self.guidance.default if guidance is None else guidance
        return self.guidance.kind == "doubled" and scale != 1

    def _guided(self, guidance: float | None) -> Denoise:
        kind, default = self.guidance.kind, self.guidance.default
        if guidance is not None and not math.isfinite(guidance):
            raise ValueError(f"guidance must be a finite number, got {guidance}")
        if guidance is not None and kind in ("none", "fixed") and guidance != default:
            reason = (
                "has no unconditional side"
                if kind == "none"
                else f"was distilled at guidance {default:g}"
            )
            raise ValueError(f"this model {reason}: guidance {guidance:g} cannot be applied")
        scale = default if guidance is None else guidance
        low, high = self.guidance.low, self.guidance.high
        if kind != "fixed" and not low <= scale <= high:
            warnings.warn(
                f"guidance {scale:g} is outside {low:g} to {high:g}, which this model was made for",
                stacklevel=3,
            )
        if kind == "input" or self._doubles(guidance):
            return guided(self.denoiser, scale)
        return self.denoiser

    def save(self, folder: Path) -> None:
        """Writes model.json and the weights, and loads them again; the folder appears whole or not
        at all.
        """
        d = self.denoiser
        spec: Network = d.network.spec  # type: ignore[assignment]
        for name, tensor in d.network.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{name} holds numbers that are not finite; such a model is not saved"
                )
        with new_folder(Path(folder)) as beside:
            save_tensors(beside / WEIGHTS, d.network.state_dict())
            for name, tensors in self.variants.items():
                save_tensors(beside / f"model-{name}.safetensors", tensors)
            described = {
                "format": FORMAT,
                "network": spec.dump(),
                "process": d.process.dump(),
                "own": d.own.dump(),
                "parameterization": d.parameterization.dump(),
                "sampler": self.sampler.dump(),
                "guidance": self.guidance._asdict(),
                "codec": self.codec.dump(),
                "conditioner": self.conditioner.dump(),
                "shape": list(self.shape),
                "weights": {p.name: sha256(p) for p in sorted(beside.glob("*.safetensors"))},
                "card": self.card,
            }
            write_json(beside / "model.json", described)
            again = load_folder(beside).denoiser.network.state_dict()
            for name, tensor in d.network.state_dict().items():
                assert torch.equal(again[name], tensor.cpu()), f"{name} changed in saving"


def load_folder(folder: Path, weights: str | None = None) -> DiffusionModel:
    """The model saved in a folder. weights: the name of a variant (an EMA decay), default the
    model's own.

    Raises FileNotFoundError or ValueError, each saying which file is missing, damaged or of a newer
    format.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no model.json")
    described = read_description(path, "network", f"{path} does not describe a diffusion model")
    try:
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
    conditioner = Conditioner.parse(described["conditioner"])
    network = Network.parse(described["network"]).build(
        Outside(shape, conditioner.classes, conditioner.null)
    )
    assert isinstance(network, torch.nn.Module)
    file = (
        WEIGHTS
        if weights in (None, str(described["card"].get("ema")))
        else f"model-{weights}.safetensors"
    )
    if file not in described["weights"]:
        known = [name[6:-12] for name in described["weights"] if name != WEIGHTS]
        raise ValueError(
            f"{folder} has no weights {weights!r}; it has: {', '.join(known) or 'only its own'}"
        )
    tensors = load_tensors(folder / file)
    if sha256(folder / file) != described["weights"][file]:
        raise ValueError(f"{folder / file} is damaged: its sha256 is not the one in model.json")
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{folder / file} does not fit its model.json: {str(error).splitlines()[-1].strip()}"
        ) from None
    guidance = Guidance(**described["guidance"])
    if guidance.kind not in ("doubled", "input", "fixed", "none"):
        raise ValueError(f"{folder} has guidance of an unknown kind: {guidance.kind!r}")
    process, own = Process.parse(described["process"]), Process.parse(described["own"])
    denoiser = Denoiser(
        network, process, Parameterization.parse(described["parameterization"]), own
    ).eval()
    return DiffusionModel(
        denoiser,
        Codec.parse(described["codec"]),
        conditioner,
        shape,
        Sampler.parse(described["sampler"]),
        guidance,
        described["card"],
    )


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
    folder = Path(source)
    if not folder.exists():
        return load_folder(shipped_folder(source), ema)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; a model is a folder with model.json and its weights")
    if (folder / "student" / "model.json").is_file():
        return load_folder(folder / "student", ema)
    if (folder / "run.yaml").is_file():
        raise FileNotFoundError(
            f"the run {folder} has no finished model yet: train it to its end first"
        )
    return load_folder(folder, ema)
