"""How a run names its teacher: a model that exists, or a new network."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le

from fewstep import plugins
from fewstep.choice import Choice, flat, kind_of
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Edm, Parameterization
from fewstep.diffusion.process import Process, VarianceExploding
from fewstep.diffusion.samplers import Ode
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Codec, Pixels
from fewstep.models.conditioner import Conditioner, ConditionerModule, Labels, Unconditional
from fewstep.models.folder import load, load_codec, load_conditioner
from fewstep.models.lora_files import merge
from fewstep.models.network import Network
from fewstep.models.size import check_memory, shapes_of
from fewstep.models.space import Space, described
from fewstep.models.unet import UNet
from fewstep.text import place
from fewstep.yaml import opened, settled


class ModelSource(Choice, ABC):
    """`teacher=` of a run. A bare string that names a network is a fresh one; one that names no
    kind is the path or name of a saved model.
    """

    @property
    def named(self) -> bool:
        """Whether some of its weights lie where a path says, and not in the seed."""
        return True

    @abstractmethod
    def load(self, data: Space, seed: int) -> Any:
        """The model, fit for rows of that data. ValueError where it is not."""

    def load_for(self, dataset: Any, seed: int) -> Any:
        """The model for these rows, of which some kinds read more than their space."""
        return self.load(dataset.space, seed)

    def told(self) -> dict[str, Any]:
        """What the card of a student says of the model that it began as."""
        return {}

    @classmethod
    def spelled(cls, value: Any) -> Any:
        value = super().spelled(value)
        if not isinstance(value, Mapping):
            return value
        options = dict(value)
        kind = options.setdefault("kind", "saved" if "path" in options else None)
        known = {flat(name) for name in cls.kinds()}
        if isinstance(kind, str) and flat(kind) in {flat(name) for name in Network.kinds()} - known:
            inner = opened(options.get("network", {}))
            if not isinstance(inner, Mapping):
                raise ValueError(f"{kind} is a network, beside it stands network={inner}")
            inner = {"kind": kind, **inner}  # teacher.network.width=16
            return options | {"kind": "fresh", "network": inner}
        if isinstance(kind, str) and flat(kind) not in known and not plugins.remedy(kind):
            options = {"path": kind, **options, "kind": "saved"}  # teacher=runs/x teacher.ema=0.999
        for name in ("lora", "lora_strengths"):  # one file alone needs no brackets
            if not isinstance(one := opened(options.get(name), "["), list | tuple | None):
                options[name] = [one]
        ema = settled(options.get("ema"))
        if isinstance(ema, float | int):
            options["ema"] = f"{ema:g}"
        return options


@dataclass(frozen=True)
class Saved(ModelSource):
    """A shipped model by name, a run's folder, a model's folder, or a Stable Diffusion of
    others.
    """

    path: str
    """Name of a shipped model or of one on the hub, or a folder or file."""
    ema: str | None = None
    """One of its averages, by its decay; the model's own weights if not given."""
    lora: tuple[str, ...] = ()
    """LoRA files of others (kohya's, diffusers', PEFT's) that are merged into it."""
    lora_strengths: tuple[Annotated[float, Ge(-10), Le(10)], ...] = ()
    """One for each of these files, -10 … 10; 1 if not given."""

    def __post_init__(self) -> None:
        if self.path.startswith("~"):
            object.__setattr__(self, "path", str(place(self.path)))
        if any(file.startswith("~") for file in self.lora):
            object.__setattr__(self, "lora", tuple(str(place(file)) for file in self.lora))
        if self.lora and len(self.lora_strengths) not in (0, len(self.lora)):
            given = f"{len(self.lora_strengths)} for {len(self.lora)} files"
            raise ValueError(f"lora_strengths: one for each file of lora, got {given}")

    def load(self, data: Space, seed: int) -> DiffusionModel:
        if self.lora_strengths and not self.lora:
            raise ValueError(
                "lora_strengths are those of the files of lora, of which there are none"
            )
        model = load(self.path, self.ema)
        merge(model, self.lora, self._strengths())
        if reason := model.unfit(data):
            raise ValueError(f"the teacher {self.path} does not fit the data: {reason}")
        return model

    def told(self) -> dict[str, Any]:
        """base: its name, of a folder the last part, as models are handed on. lora: the strengths
        of the files that were merged into it, by their names.
        """
        path = place(self.path)
        told: dict[str, Any] = {"base": path.resolve().name if path.exists() else self.path}
        if self.lora:
            names = [place(file).name for file in self.lora]
            told["lora"] = [list(one) for one in zip(names, self._strengths(), strict=True)]
        return told

    def _strengths(self) -> tuple[float, ...]:
        return self.lora_strengths or (1.0,) * len(self.lora)


@dataclass(frozen=True)
class Fresh(ModelSource):
    """A new network, initialised under the run's seed."""

    network: Network = dataclasses.field(default_factory=UNet)
    """The network."""
    process: Process = dataclasses.field(default_factory=VarianceExploding)
    """How data becomes noise."""
    parameterization: Parameterization = dataclasses.field(default_factory=Edm)
    """What the network predicts."""
    codec: Codec = dataclasses.field(default_factory=Pixels)
    """How images come into model space."""
    conditioner: Conditioner | None = None
    """What the network is conditioned on; if not given, labels where the data has them."""
    codec_from: str | None = None
    """A model, or a run that trained one, whose codec is taken with its weights."""
    conditioner_from: str | None = None
    """A model, or a run that trained one, whose conditioner is taken with its weights."""
    conditional: bool = True
    """False ignores what the data holds beside its images."""
    null: bool = True
    """Whether a network of labels also knows "no label", which guidance needs."""

    def __post_init__(self) -> None:
        for name, default in (("codec", Pixels()), ("conditioner", None)):
            path = getattr(self, f"{name}_from")
            if path is not None and getattr(self, name) != default:
                raise ValueError(f"{name}_from says which {name} it is: leave {name} out")
            if path is not None and path.startswith("~"):
                object.__setattr__(self, f"{name}_from", str(place(path)))

    @property
    def named(self) -> bool:
        return self.codec_from is not None or self.conditioner_from is not None

    def load(self, data: Space, seed: int) -> DiffusionModel:
        if not data.shape:
            held = described(data.columns)
            raise ValueError(f"a new network needs images or latents, the data has {held}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            codec = self.codec.build() if self.codec_from is None else load_codec(self.codec_from)
            conditioner = self._conditioner(data)
        if reason := conditioner.spec.unfit(data):
            raise ValueError(f"the conditioner {kind_of(type(conditioner.spec))}: {reason}")
        shape = data.shape if data.encoded else codec.spec.shape(data.shape)
        space = Space(tuple(shape), conditioner.columns)
        if type(self.network).__module__.startswith("fewstep."):
            sizes = shapes_of(lambda: self.network.build(space))
            check_memory(sizes, f"teacher.network, this {kind_of(type(self.network))},")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network.for_process(self.process).build(space)
        assert isinstance(network, torch.nn.Module)
        denoiser = Denoiser(network, self.process, self.parameterization)
        guidance = Guidance("doubled", 1.0, 8.0, 1.0) if conditioner.null else Guidance()
        return DiffusionModel(denoiser, codec, conditioner, tuple(shape), Ode(), guidance)

    def _conditioner(self, data: Space) -> ConditionerModule:
        if not self.conditional:
            return Unconditional().build()
        if self.conditioner_from is not None:
            return load_conditioner(self.conditioner_from)
        if self.conditioner is not None:
            return self.conditioner.build()
        return (Labels(data.classes, self.null) if data.classes else Unconditional()).build()
