"""Networks of diffusers as they are: their configuration is an option, their weights keep their
names behind "module.".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from fewstep.models.library import Config, made
from fewstep.models.network import NetworkModule
from fewstep.models.outside import OutsideModule, OutsideNetwork
from fewstep.models.space import Space


@dataclass(frozen=True)
class DiffusersNetwork(OutsideNetwork):
    """A network of diffusers that reads x, the time and at most a label. What else a method needs
    is read by an added network (`extra`), as of any network from outside.
    """

    config: Config = field(default_factory=dict)
    """Options of the class in diffusers, as its config.json has them; what is not given is its
    default, or what the data asks for."""
    library: ClassVar[str]
    """The class, by its library and name."""

    @abstractmethod
    def fitted(self, space: Space) -> dict[str, Any]:
        """All options of the class for samples of that shape and such labels. ValueError where
        they do not fit.
        """

    def module(self, space: Space) -> nn.Module:
        """A freshly initialised module of the class."""
        module: nn.Module = made(self.library, self.fitted(space))
        return module

    def build(self, space: Space) -> NetworkModule:
        """ValueError where the options do not fit the space."""
        return self.around(self.module(space), space)

    def around(self, module: nn.Module, space: Space) -> NetworkModule:
        """The network of a module of the class that is there already."""
        return DiffusersModule(self, space, module)  # type: ignore[return-value]


class DiffusersModule(OutsideModule):
    """Such a module in fewstep's call. Of more channels than a sample has (a learned variance) the
    first are taken.
    """

    _recomputes = False

    @property
    def checkpointing(self) -> bool:
        """Whether the blocks' activations are computed again in the backward pass."""
        return self._recomputes

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self._recomputes = on
        module: Any = self._modules.get("module")
        if module is None:  # not there yet
            return
        if on:
            module.enable_gradient_checkpointing()
        else:
            module.disable_gradient_checkpointing()

    def _called(self, values: Mapping[str, Tensor]) -> Tensor:
        return self._plain(values)[:, : values["x"].shape[1]]


def check_pictures(space: Space, kind: str) -> None:
    """ValueError for samples that are no pictures, and conditions beside a label."""
    if other := set(space.columns) - {"label"}:
        raise ValueError(f"a {kind} reads labels only, not {', '.join(sorted(other))}")
    if len(space.shape) != 3:
        raise ValueError(f"a {kind} needs images, got the shape {tuple(space.shape)}")


def check_channels(config: Mapping[str, Any], space: Space) -> None:
    """ValueError for another number of channels than the samples have."""
    channels, inputs, outputs = space.shape[0], config["in_channels"], config["out_channels"]
    if inputs != channels or outputs < channels:
        raise ValueError(
            f"this network makes {outputs} channels of {inputs}, a sample has {channels}"
        )
