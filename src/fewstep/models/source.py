"""How a run names its teacher: a model that exists, or a new network."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fewstep import plugins
from fewstep.choice import Choice, flat
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Edm, Parameterization
from fewstep.diffusion.process import Process, VarianceExploding
from fewstep.diffusion.samplers import Ode
from fewstep.models.bundle import DiffusionModel, load
from fewstep.models.codec import Codec, Pixels
from fewstep.models.conditioner import Conditioner, Labels, Unconditional
from fewstep.models.network import Network, Outside
from fewstep.models.unet import UNet


class ModelSource(Choice, ABC):
    """`teacher=` of a run. A bare string that names no kind is the path or name of a saved
    model.
    """

    @abstractmethod
    def load(self, shape: tuple[int, ...], classes: int, seed: int) -> Any:
        """The model, fit for images of that shape with that many classes (0: unlabelled).
        ValueError if not.
        """

    @classmethod
    def spelled(cls, value: Any) -> Any:
        value = super().spelled(value)
        if not isinstance(value, Mapping):
            return value
        options = dict(value)
        kind = options.setdefault("kind", "saved" if "path" in options else None)
        known = {flat(name) for name in cls.kinds()}
        if isinstance(kind, str) and flat(kind) not in known and not plugins.remedy(kind):
            options = {"path": kind, **options, "kind": "saved"}  # teacher=runs/x teacher.ema=0.999
        if isinstance(ema := options.get("ema"), float | int):
            options["ema"] = f"{ema:g}"
        return options


@dataclass(frozen=True)
class Saved(ModelSource):
    """A shipped model by name, a run's folder or a model's folder. ema: one of its averages."""

    path: str
    ema: str | None = None

    def load(self, shape: tuple[int, ...], classes: int, seed: int) -> DiffusionModel:
        model = load(self.path, self.ema)
        if tuple(model.shape) != tuple(shape):
            raise ValueError(
                f"the teacher {self.path} makes samples of shape {model.shape}, the data has "
                f"{shape}"
            )
        if model.conditioner.classes not in (0, classes):
            raise ValueError(
                f"the teacher {self.path} has {model.conditioner.classes} classes, the data has "
                f"{classes}"
            )
        return model


@dataclass(frozen=True)
class Fresh(ModelSource):
    """A new network, initialised under the run's seed. conditional=False ignores the labels of the
    data.

    null: the network also knows "no label", which guidance needs.
    """

    network: Network = dataclasses.field(default_factory=UNet)
    process: Process = dataclasses.field(default_factory=VarianceExploding)
    parameterization: Parameterization = dataclasses.field(default_factory=Edm)
    codec: Codec = dataclasses.field(default_factory=Pixels)
    conditional: bool = True
    null: bool = True

    def load(self, shape: tuple[int, ...], classes: int, seed: int) -> DiffusionModel:
        labelled = self.conditional and classes > 0
        conditioner: Conditioner = Labels(classes, self.null) if labelled else Unconditional()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network.build(
                Outside(tuple(shape), conditioner.classes, conditioner.null)
            )
        assert isinstance(network, torch.nn.Module)
        denoiser = Denoiser(network, self.process, self.parameterization)
        return DiffusionModel(denoiser, self.codec, conditioner, tuple(shape), Ode(), Guidance())
