"""What every network family promises."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.choice import Choice, kind_of, replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.process import Process
from fewstep.diffusion.types import Sample, Time
from fewstep.models.space import Classes, Space

TimeInput = Literal["log_sigma", "quarter_log_sigma", "identity", "thousand"]
M = TypeVar("M", bound=nn.Module)
N = TypeVar("N", bound="Network")


class Network(Choice, ABC):
    """The options of a network family; `build` makes the module.

    known: the inputs that `extra` may name. adapted: ends of the paths of layers, by the word that
    stands for them in `adaptation.targets`; without a word of its own "all" is every layer.
    """

    folder: ClassVar[str | None] = "fewstep.models"
    known: ClassVar[frozenset[str]] = frozenset({"guidance", "s"})
    adapted: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

    time_input: TimeInput | None
    """The number that stands for t inside the network: 250 ln t, ¼ ln t (EDM's), t itself, or 1000
    t; none: t itself where the process is a table, 250 ln t for all others.
    """
    extra: tuple[str, ...]
    """Inputs beside x, t and the label: guidance, s. Methods add what they need."""

    def for_process(self: N, process: Process) -> N:
        """The same, for the times of this process: what `time_input` leaves open is said."""
        if getattr(self, "time_input", "") is not None:
            return self
        chosen: TimeInput = "identity" if process.discrete else "log_sigma"
        return replaced(self, time_input=chosen)

    @abstractmethod
    def build(self, space: Space) -> NetworkModule:
        """A freshly initialised network for samples of that shape and conditions of those columns.

        ValueError where the options cannot serve them.
        """


class NetworkModule(Protocol):
    """An nn.Module called as network(x, t, cond, s) with t and s in the network's own process.

    checkpointing: recompute the blocks' activations in the backward pass. taps: the sub-modules
    whose output a discriminator reads, with their channels.
    """

    space: Space
    checkpointing: bool
    taps: Mapping[str, int]

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it reads of the condition, and "s" where it reads that."""
        ...

    @property
    def spec(self) -> Network:
        """The options that it was built with."""
        ...

    def __call__(self, x: Sample, t: Time, cond: Cond, s: Time | None) -> Sample:
        """The raw output F."""
        ...

    def with_inputs(self, names: Set[str]) -> nn.Module:
        """A copy that also reads these, equal to this one until it is trained."""
        ...


class ConditionedModule(nn.Module, ABC):
    """What our own networks share: time, label and extra inputs, each embedded, summed to one
    vector per sample.

    Of the condition they read "label". frequencies: the size of the sinusoids. size: that of the
    sum. Sub-modules carry the names of openai's layout. Raises ValueError for an extra input that
    is not known, and for a condition with other columns.
    """

    spec: Network
    taps: Mapping[str, int]

    def __init__(self, spec: Network, space: Space, frequencies: int, size: int):
        super().__init__()
        self.checkpointing = False
        self.spec, self.space, self.frequencies = spec, space, frequencies
        self._refuse_unknown(set(spec.extra))
        if other := set(space.columns) - {"label"}:
            kind = kind_of(type(spec))
            raise ValueError(f"a {kind} reads labels only, not {', '.join(sorted(other))}")
        self.time_embed = nn.Sequential(
            nn.Linear(frequencies, size), nn.SiLU(), nn.Linear(size, size)
        )
        label = space.columns.get("label")
        if isinstance(label, Classes):
            self.label_emb = nn.Embedding(label.num + label.null, size)
        self.extra_embed = nn.ModuleDict(
            {name: Embedding(frequencies, size) for name in spec.extra}
        )

    @abstractmethod
    def forward(self, x: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        """The raw output F(x, t), in the shape of x."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it reads of the condition."""
        return tuple(self.space.columns) + self.spec.extra

    def with_inputs(self, names: Set[str]) -> nn.Module:
        """A copy with zero-initialised embeddings of "guidance" or "s" added."""
        self._refuse_unknown(names)
        added = tuple(sorted(set(names) - set(self.spec.extra)))
        wider = copy.deepcopy(self)
        wider.spec = replaced(self.spec, extra=self.spec.extra + added)
        last: nn.Linear = self.time_embed[2]  # type: ignore[assignment]
        for name in added:
            wider.extra_embed[name] = Embedding(self.frequencies, last.out_features).to(last.weight)
        return wider

    def through(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        """block(x, embedding), its activations kept or, where `checkpointing` is set, computed
        again when needed.
        """
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, embedding, use_reentrant=False)
        return block(x, embedding)

    def number(self, t: Time) -> Time:
        """What the time embedding takes for t; its fastest sinusoid has the frequency 1."""
        return noise_features(t, self.spec.time_input)

    def embedding(self, t: Time, cond: Cond, s: Time | None) -> Tensor:
        """(batch, size), in the dtype of the network's arithmetic. Where s is missing, t takes its
        place; a guidance that nobody names is 1, none.
        """
        weight = self.time_embed[0].weight
        features = sinusoid(self.number(t), self.frequencies)
        total = self.time_embed(features.to(weight.dtype))  # type: ignore[arg-type]
        if self.space.classes:
            total = total + self.label_emb(cond["label"])
        for name, embed in self.extra_embed.items():
            if name == "s":
                value = self.number(t if s is None else s)
            else:
                value = cond[name].to(t.dtype) if name in cond.values else torch.ones_like(t)
            total = total + embed(value)
        return total

    def _refuse_unknown(self, names: Set[str]) -> None:
        if unknown := set(names) - self.spec.known:
            raise ValueError(
                f"a {kind_of(type(self.spec))} has no input {', '.join(sorted(unknown))}; "
                f"known: {sorted(self.spec.known)}"
            )


class Embedding(nn.Module):
    """A scalar input beside the time: sinusoid, then a zero-initialised linear layer."""

    def __init__(self, size: int, outputs: int):
        super().__init__()
        self.size = size
        self.linear = zeroed(nn.Linear(size, outputs))

    def forward(self, values: Time) -> Tensor:
        return self.linear(sinusoid(values, self.size).to(self.linear.weight.dtype))


def zeroed(module: M) -> M:
    """The module, its parameters set to zero: a branch that adds nothing until it is trained."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def noise_features(t: Time, kind: TimeInput | None) -> Time:
    """The number that the time embedding takes, of the network's own t: 250 ln t (0 stands for
    1e-20; also where nothing is said), ¼ ln t, t, or 1000 t.

    250 ln sigma is openai's scaling of EDM's ¼ ln sigma for sinusoids that expect 0 … 1000. The
    times -1 and 0 of a table are one there.
    """
    if kind in ("log_sigma", "quarter_log_sigma", None):
        factor = 0.25 if kind == "quarter_log_sigma" else 250
        return factor * torch.log(t.clamp(min=1e-20))
    return 1000 * t if kind == "thousand" else t


def sinusoid(values: Time, size: int) -> Tensor:
    """(batch, size): cosines, then sines, of values·10000^(-k/(size/2)), k = 0 … size/2 - 1."""
    half = size // 2
    k = torch.arange(half, dtype=values.dtype, device=values.device)
    phase = values[:, None] * torch.exp(-k * (9.210340371976184 / half))
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=1)
