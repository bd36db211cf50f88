"""What "a copy of the teacher" means. Methods ask for clones by name and cannot tell how they are
made.

A clone may be a `View`: a network that shares frozen weights with others and owns an addition. Then
only the addition trains, is averaged, copied and saved with a checkpoint; what is shared is stored
once. A finished student is saved merged, as a plain network that loads without the one it came
from.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.choice import Choice
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Parameterization


class View(nn.Module, ABC):
    """A network of which a part belongs to others."""

    @abstractmethod
    def shared(self) -> list[Tensor]:
        """Its parameters and buffers that belong to others: nobody writes them."""

    @abstractmethod
    def merged(self) -> nn.Module:
        """A plain network of its own that computes the same, up to rounding; as such it is
        saved.
        """


class Adaptation(Choice, ABC):
    """How a run makes the networks that its method clones."""

    @abstractmethod
    def clones(
        self, default: Denoiser, seed: int = 0, dropout: float | None = None
    ) -> Callable[..., Denoiser]:
        """What a method calls for each of its networks (`learning.method.Clone`).

        default: what is cloned where the method names nothing else (the start of the student:
        usually the teacher). dropout: of the clones, where it differs from the source's.
        """


@dataclass(frozen=True)
class FullCopy(Adaptation):
    """Clones have all weights of their own; inputs that the network lacks are added,
    zero-initialised under the seed.
    """

    def clones(
        self, default: Denoiser, seed: int = 0, dropout: float | None = None
    ) -> Callable[..., Denoiser]:
        return _Copies(default, seed, dropout)


@dataclass(eq=False)
class _Copies:
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
        """A denoiser named `name`, equal to `of` but for the parameterization, which shares no
        storage with it.
        """
        source = self.default if of is None else of
        missing = set(inputs) - set(source.inputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if missing:
                network = source.network.with_inputs(missing)  # type: ignore[operator]
            else:
                network = copy.deepcopy(source.network)
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
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    for name, tensor in (*parameters, *buffers):
        if id(tensor) in others:
            state.pop(name, None)
    return state


def copied(module: nn.Module) -> nn.Module:
    """A copy with tensors of its own, but for those that belong to others: the two share them."""
    return _copied_but(module, borrowed(module))


def around_same_tensors(network: nn.Module) -> nn.Module:
    """A module tree of its own (its mode, its dropout, its hooks) around the network's very
    parameters and buffers: what a view begins with.
    """
    return _copied_but(network, [*network.parameters(), *network.buffers()])


def _copied_but(module: nn.Module, kept: list[Tensor]) -> nn.Module:
    return copy.deepcopy(module, {id(tensor): tensor for tensor in kept})


def merged(module: nn.Module) -> nn.Module:
    """A denoiser as it is saved: of a view the plain network; all others as they are."""
    if isinstance(module, Denoiser) and isinstance(module.network, View):
        return around(module.network.merged(), module)
    return module
