"""Networks from outside: any module, called in its own way (docs/your_network.md)."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.choice import kind_of, replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.types import Sample, Time
from fewstep.models.call import found, said
from fewstep.models.network import (
    Network,
    NetworkModule,
    TimeInput,
    noise_features,
    sinusoid,
    zeroed,
)
from fewstep.models.space import Classes, Space


@dataclass(frozen=True)
class OutsideNetwork(Network):
    """A network whose module knows nothing of fewstep: a subclass says how it is made, and its own
    fields are options.

        @dataclass(frozen=True)
        class MyNet(fewstep.OutsideNetwork):
            width: int = 64

            def module(self, space):
                return MyModule(space.shape[0], self.width, space.classes)
    """

    time_input: TimeInput = "identity"
    """The unit of the time that the module takes: t, 1000 t (thousand), 250 ln t (log_sigma) or ¼
    ln t (quarter_log_sigma)."""
    extra: tuple[str, ...] = ()
    """Inputs that an added network reads beside the module: guidance, s. Methods add them."""
    call: str = ""
    """What the module takes, "x, timesteps=t, y=label"; its signature says it if not given."""
    features: str = ""
    """The sub-module whose output a discriminator reads; one in the middle if not given."""

    @abstractmethod
    def module(self, space: Space) -> nn.Module:
        """A freshly initialised module for samples of that shape and conditions of those
        columns.
        """

    def build(self, space: Space) -> NetworkModule:
        """The module, after one pass of two samples. ValueError where it fails or gives another
        shape.
        """
        made = OutsideModule(self, space, self.module(space))
        if set(space.columns) <= {"label"}:
            for label in labels_of(space):
                made.trial(label)
        return made  # type: ignore[return-value]  # taps: found when they are first asked for


class Nameless(OutsideNetwork):
    """What is known of a bare module: not how it was made. No dataclass, hence no kind."""

    def module(self, space: Space) -> nn.Module:
        raise ValueError(NAMELESS)

    def dump(self) -> dict[str, Any]:
        raise ValueError(NAMELESS)


NAMELESS = (
    "a bare module cannot be saved, for no file could say how to build it again: make it a "
    "subclass of fewstep.OutsideNetwork, six lines in a file of yours (docs/your_network.md)"
)


class OutsideModule(nn.Module):
    """The module in fewstep's call. Of its output the tensor is taken: the first of a tuple,
    `sample` of a mapping (diffusers).

    Inputs that the module does not take are read by an added network (`Added`), whose zero
    last layer leaves the output as it is until it is trained. Raises ValueError for a call that
    does not fit, and for extra inputs that are not known.
    """

    def __init__(self, spec: OutsideNetwork, space: Space, module: nn.Module):
        super().__init__()
        self.checkpointing = False
        self.spec, self.space = spec, space
        self._refuse_unknown(set(spec.extra))
        self.module = module
        known = {"x", "t", *space.columns, *spec.known}
        self.call = said(spec.call, known) if spec.call else found(module, known)
        self.added = nn.ModuleDict({name: Added(space.shape) for name in spec.extra})
        self._taps: dict[str, int] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the module takes beside x and t, then what was added."""
        own = [name for name in self.call.values if name not in ("x", "t")]
        return (*own, *self.added)

    def forward(self, x: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        """The raw output F(x, t), in the shape of x. Where s is missing, t takes its place; a
        guidance that nobody names is 1.
        """
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype)
        # Times keep their digits where the weights have few.
        number = torch.promote_types(dtype, torch.float32)
        x = x.to(dtype)
        values: dict[str, Tensor] = {"x": x, "t": self.number(t).to(number)}
        for name in self.inputs:
            if name == "s":
                values[name] = self.number(t if s is None else s).to(number)
            elif name == "guidance":
                told = cond[name].to(t.dtype) if name in cond.values else torch.ones_like(t)
                values[name] = told.to(number)
            else:
                values[name] = cond[name]
        after = 0
        for name, added in self.added.items():
            before, behind = added(x, values["t"], values[name])
            values["x"] = values["x"] + before
            after = after + behind
        return self._called(values) + after

    def number(self, t: Time) -> Time:
        """The time in the module's unit."""
        return noise_features(t, self.spec.time_input)

    def with_inputs(self, names: Set[str]) -> nn.Module:
        """A copy with an added network for each of "guidance" and "s"."""
        self._refuse_unknown(names)
        added = tuple(sorted(set(names) - set(self.inputs)))
        wider = copy.deepcopy(self)
        wider.spec = replaced(self.spec, extra=self.spec.extra + added)
        like = next(self.parameters())
        for name in added:
            wider.added[name] = Added(self.space.shape).to(like)
        return wider

    @property
    def taps(self) -> Mapping[str, int]:
        """The sub-module whose output a discriminator reads, with its channels; found by one pass.

        ValueError where there is none that gives pictures or tokens.
        """
        if self._taps is None:
            self._taps = self._found_taps()
        return self._taps

    def trial(self, label: int, t: float = 1.0) -> Sample:
        """F of two samples of noise under this label, without a trace in the module. ValueError,
        in one line, where the module fails or gives another shape.
        """
        device = next(self.parameters()).device
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, *self.space.shape, generator=generator).to(device)
        values = {}
        if "label" in self.space.columns:
            values["label"] = torch.full((2,), label, device=device)
        modes = {module: module.training for module in self.modules()}
        times = torch.full((2,), t, dtype=torch.float64).to(x)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                f = self.eval()(x, times, Cond(values))
        except (RuntimeError, IndexError, TypeError, KeyError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            name, told = type(self.module).__name__, f", label {label}" if values else ""
            raise ValueError(
                f"{name} fails on samples of shape {tuple(self.space.shape)}{told}: {first}"
            ) from error
        finally:
            for module, training in modes.items():
                module.training = training
        if f.shape != x.shape:
            raise ValueError(
                f"{type(self.module).__name__} gives the shape {tuple(f.shape)[1:]} for samples of "
                f"shape {tuple(x.shape)[1:]}; the two must be equal"
            )
        return f

    def _called(self, values: Mapping[str, Tensor]) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._plain, values, use_reentrant=False)
        return self._plain(values)

    def _plain(self, values: Mapping[str, Tensor]) -> Tensor:
        output = self.call(self.module, values)
        if isinstance(output, Mapping):
            output = output["sample"]
        elif isinstance(output, tuple | list):
            output = output[0]
        if not isinstance(output, Tensor):
            raise TypeError(f"it gives a {type(output).__name__}, which is no tensor")
        return output

    def _found_taps(self) -> dict[str, int]:
        """The middle one, in the order of the pass, of the outputs with the fewest positions."""
        seen: dict[str, tuple[int, int]] = {}  # name: positions, channels
        handles = []
        for name, part in self.module.named_modules(prefix="module"):
            if name != "module" and self.spec.features in ("", name.removeprefix("module.")):
                handles.append(part.register_forward_hook(_noting(seen, name)))
        try:
            self.trial(0)
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            asked = f"sub-module {self.spec.features!r}" if self.spec.features else "sub-module"
            raise ValueError(
                f"{type(self.module).__name__} has no {asked} whose output is (batch, channels, "
                "height, width) or (batch, tokens, channels), which a discriminator needs"
            )
        fewest = min(positions for positions, _ in seen.values())
        names = [name for name, (positions, _) in seen.items() if positions == fewest]
        middle = names[len(names) // 2]
        return {middle: seen[middle][1]}

    def _refuse_unknown(self, names: Set[str]) -> None:
        if unknown := set(names) - self.spec.known:
            raise ValueError(
                f"a {kind_of(type(self.spec))} has no input {', '.join(sorted(unknown))}; "
                f"known: {sorted(self.spec.known)}"
            )


class Added(nn.Module):
    """What a module from outside lacks to read one more number: a small network of (x, t, number)
    that shifts what goes into the module, so that all of it can answer to the number, and what
    comes out. Its last layer begins at zero.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 32, frequencies: int = 64):
        super().__init__()
        self.shape, self.frequencies = tuple(shape), frequencies
        self.embed = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU())
        pictures = len(self.shape) == 3
        size = self.shape[0] if pictures else torch.Size(self.shape).numel()
        self.first = _layer(pictures, size, width)
        self.middle = nn.Linear(width, width)
        self.hidden = _layer(pictures, width, width)
        self.last = zeroed(_layer(pictures, width, 2 * size))

    def forward(self, x: Sample, t: Time, number: Time) -> tuple[Sample, Sample]:
        """What is added before the module and behind it, each in the shape of x."""
        features = [sinusoid(value, self.frequencies) for value in (t, number)]
        weight = self.middle.weight
        embedding = self.middle(self.embed(torch.cat(features, dim=1).to(weight.dtype)))
        h = self.first(x if len(self.shape) == 3 else x.flatten(1))
        h = nn.functional.silu(h + embedding.reshape(*embedding.shape, *[1] * (h.ndim - 2)))
        h = self.last(nn.functional.silu(self.hidden(h)))
        before, behind = h.chunk(2, dim=1)
        return before.reshape(x.shape), behind.reshape(x.shape)


def _layer(pictures: bool, inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1) if pictures else nn.Linear(inputs, outputs)


def _noting(seen: dict[str, tuple[int, int]], name: str) -> Any:
    """A hook that notes the first output of pictures or tokens: its positions and channels."""

    # Their channels stand before the positions, in one dimension too; tokens have them last.
    rows = (nn.GroupNorm, nn.Conv1d)

    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.setdefault(name, (output.shape[2] * output.shape[3], output.shape[1]))
        elif isinstance(output, Tensor) and output.ndim == 3 and not isinstance(module, rows):
            seen.setdefault(name, (output.shape[1], output.shape[2]))

    return hook


def labels_of(space: Space) -> list[int]:
    """The highest label that a network of this space must know, and that of "any class"."""
    label = space.columns.get("label")
    if not isinstance(label, Classes):
        return [0]
    return [label.num - 1, label.num] if label.null else [label.num - 1]
