"""What "a copy of the teacher" means. Methods ask for clones by name and cannot tell how they are
made.

A clone may be a `View`: a network that shares frozen weights with others and owns an addition. Then
only the addition trains, is averaged, copied and saved with a checkpoint; what is shared is stored
once. A finished student is saved merged, as a plain network that loads without the one it came
from.
"""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.choice import Choice
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Parameterization
from fewstep.diffusion.types import Sample, Time


class Addition(NamedTuple):
    """What a view adds to the network of others, as a file of its own.

    tensors: by PEFT's keys, the path of the layer and lora_A or lora_B. facts: rank, alpha,
    targets, the fingerprint of the base, the inputs that were added beside it, and whether this
    addition is the whole of what was trained.
    """

    tensors: Mapping[str, Tensor]
    facts: dict[str, Any]


class View(nn.Module, ABC):
    """A network of which a part belongs to others. It is called, and says what it reads, as the
    network inside.
    """

    def __init__(self, inside: nn.Module):
        super().__init__()
        self.inside: Any = inside

    @abstractmethod
    def shared(self) -> list[Tensor]:
        """Its parameters and buffers that belong to others: nobody writes them."""

    @abstractmethod
    def merged(self) -> nn.Module:
        """A plain network of its own that computes the same, up to rounding; as such it is
        saved.
        """

    def addition(self) -> Addition | None:
        """What is saved beside the merged network; None for nothing."""
        return None

    @property
    def spec(self) -> Any:
        """The options of the merged network."""
        return self.inside.spec

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it reads beside x and t."""
        found: tuple[str, ...] = self.inside.inputs
        return found

    @property
    def taps(self) -> Mapping[str, int]:
        """The sub-modules whose output a discriminator reads, with their channels."""
        return {f"inside.{name}": size for name, size in self.inside.taps.items()}

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return bool(self.inside.checkpointing)

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.inside.checkpointing = on

    def forward(self, x: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        """The raw output F."""
        found: Sample = self.inside(x, t, cond, s)
        return found


class Adaptation(Choice, ABC):
    """How a run makes the networks that its method clones."""

    folder: ClassVar[str | None] = "fewstep.models"

    @abstractmethod
    def adapted(self, network: nn.Module, inputs: Set[str]) -> nn.Module:
        """A network that begins equal to this one, and also reads these inputs. Random numbers come
        from the global state.
        """

    def clones(
        self, default: Denoiser, seed: int = 0, dropout: float | None = None
    ) -> Callable[..., Denoiser]:
        """What a method calls for each of its networks (`learning.method.Clone`).

        default: what is cloned where the method names nothing else (the start of the student:
        usually the teacher). dropout: of the clones, where it differs from the source's.
        """
        return _Clones(self, default, seed, dropout)


@dataclass(frozen=True)
class FullCopy(Adaptation):
    """Clones have all weights of their own; inputs that the network lacks are added,
    zero-initialised under the seed.
    """

    def adapted(self, network: nn.Module, inputs: Set[str]) -> nn.Module:
        if inputs:
            wider: nn.Module = network.with_inputs(inputs)  # type: ignore[operator]
            return wider
        return copy.deepcopy(network)


@dataclass(eq=False)
class _Clones:
    adaptation: Adaptation
    default: Denoiser
    seed: int
    dropout: float | None

    def __call__(
        self,
        name: str,
        of: Denoiser | None = None,
        inputs: Set[str] = frozenset(),
        parameterization: Parameterization | None = None,
        dropout: float | None = None,
    ) -> Denoiser:
        """A denoiser named `name`, equal to `of` but for the parameterization. The two share no
        storage, but for what a view shares.
        """
        source = self.default if of is None else of
        missing = set(inputs) - set(source.inputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.adaptation.adapted(source.network, missing)
        dropout = self.dropout if dropout is None else dropout
        for module in network.modules():
            if isinstance(module, nn.Dropout) and dropout is not None:
                module.p = dropout
        return around(network, source, parameterization)


def around(
    network: nn.Module, like: Denoiser, parameterization: Parameterization | None = None
) -> Denoiser:
    """A denoiser like another one around this network."""
    made = Denoiser(network, like.process, parameterization or like.parameterization, like.own)
    made.autocast = like.autocast
    return made


def borrowed(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module that belong to others."""
    found: list[Tensor] = []
    for part in module.modules():
        if isinstance(part, View):
            found += part.shared()
    return found


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module, by name, without those that belong to others."""
    others = {id(tensor) for tensor in borrowed(module)}
    return {name: p for name, p in module.named_parameters() if id(p) not in others}


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """`state_dict()` of a module without what belongs to others."""
    others = {id(tensor) for tensor in borrowed(module)}
    state = module.state_dict()
    for name, tensor in tensors_of(module).items():
        if id(tensor) in others:
            state.pop(name, None)
    return state


@contextlib.contextmanager
def in_full_precision(module: nn.Module) -> Iterator[None]:
    """Within the block what a module borrows is in float32, where its type has fewer digits."""
    held = {}
    for tensor in borrowed(module):
        if tensor.is_floating_point() and tensor.itemsize < 4:
            held[tensor] = tensor.data
    try:
        for tensor in held:
            tensor.data = wide(tensor.data)
        yield
    finally:
        for tensor, data in held.items():
            tensor.data = data


def wide(tensor: Tensor) -> Tensor:
    """At least float32, where these are such numbers."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def copied(module: nn.Module) -> nn.Module:
    """A copy with tensors of its own, but for those that belong to others: the two share them."""
    return _copied_but(module, borrowed(module))


def around_same_tensors(network: nn.Module, inputs: Set[str] = frozenset()) -> nn.Module:
    """A module tree of its own (its mode, its dropout, its hooks) around the network's very
    parameters and buffers: what a view begins with. inputs: that it also reads; what is new for
    them, or begins with other numbers, is its own.
    """
    before = tensors_of(network)
    if not inputs:
        return _copied_but(network, list(before.values()))
    wider: nn.Module = network.with_inputs(inputs)  # type: ignore[operator]
    for name, tensor in tensors_of(wider).items():
        if name in before and torch.equal(tensor, before[name]):
            owner, _, last = name.rpartition(".")
            setattr(wider.get_submodule(owner), last, before[name])
    return wider


def _copied_but(module: nn.Module, kept: list[Tensor]) -> nn.Module:
    return copy.deepcopy(module, {id(tensor): tensor for tensor in kept})


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers by all their names."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))


def merged(module: nn.Module) -> nn.Module:
    """A denoiser as it is saved: of a view the plain network; all others as they are."""
    if isinstance(module, Denoiser) and isinstance(module.network, View):
        return around(module.network.merged(), module)
    return module


def addition(module: nn.Module) -> Addition | None:
    """What is saved of a denoiser beside `merged`: of a view its addition alone."""
    if isinstance(module, Denoiser) and isinstance(module.network, View):
        return module.network.addition()
    return None
