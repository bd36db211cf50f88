"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685), by PEFT's layers.

The networks of a run share one frozen base. Each has its own A and B on chosen layers, whose weight
is then W + (alpha/rank) B A, with B = 0 at the beginning; of a convolution A is one of the same
kernel to `rank` channels, and B one of 1×1 behind it.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from fewstep.choice import Positive, Width, kind_of
from fewstep.files import load_tensors, tensor_facts
from fewstep.meant import did_you_mean
from fewstep.models.adapters import (
    Adaptation,
    Addition,
    View,
    around_same_tensors,
    copied,
    own_parameters,
    tensors_of,
    wide,
)
from fewstep.models.described import errors_of
from fewstep.models.fingerprint import weights_hash
from fewstep.models.folder import ADDITION, ADDITION_VARIANT, check_hash, file_of, read_description
from fewstep.models.library import library_class

NAME = "default"  # of PEFT's only adapter in a layer
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Lora(Adaptation):
    """Clones share the frozen weights of what they are cloned from; each owns low-rank additions in
    at least float32, and the inputs that it was given beside them.
    """

    rank: Width = 16
    """Rank of the additions."""
    alpha: Positive | None = None
    """The additions are alpha/rank · B A; the rank, so that they are B A, if not given."""
    targets: Annotated[tuple[str, ...], MinLen(1)] = ("all",)
    """Layers, by the ends of their paths (to_q, ff.net.2), or by a word: attention, all."""
    init: Literal["kaiming", "gaussian"] = "kaiming"
    """A at the beginning: Kaiming-uniform, or normal with standard deviation 1/rank."""

    def adapted(self, network: nn.Module, inputs: Set[str]) -> nn.Module:
        if isinstance(network, LoraView):
            return network.with_inputs(inputs)
        return LoraView(self, network, inputs)

    def layers(self, network: nn.Module) -> list[str]:
        """The paths of the layers of a network that get additions. ValueError for a target that
        none has.
        """
        fit = [name for name, layer in network.named_modules() if _fits(layer)]
        spec: Any = network.spec
        words: Mapping[str, tuple[str, ...]] = spec.adapted
        found: set[str] = set()
        for target in self.targets:
            if target == "all" and "all" not in words:
                found.update(fit)
                continue
            ends = tuple(f".{end}" for end in words.get(target, (target,)))
            chosen = [name for name in fit if f".{name}".endswith(ends)]
            if not chosen:
                known = [*words, "all", *(name.rpartition(".")[2] for name in fit)]
                raise ValueError(
                    f"adaptation.targets: {target!r} ends the path of no layer of this "
                    f"{kind_of(type(spec))}{did_you_mean(target, sorted(set(known)))}"
                )
            found.update(chosen)
        return [name for name in fit if name in found]


class LoraView(View):
    """A network around the tensors of another one, with additions of its own.

    base: the fingerprint of that network's weights. added: the inputs that it reads beside that
    one's. own: the names of its own tensors.
    """

    def __init__(self, options: Lora, network: nn.Module, inputs: Set[str]):
        names = options.layers(network)
        super().__init__(around_same_tensors(network, inputs))
        self.options, self.base, self.added = options, weights_hash(network), tuple(sorted(inputs))
        _inject(options, self.inside, names)
        self._owns_all_but(list(tensors_of(network).values()))

    def _owns_all_but(self, shared: list[Tensor]) -> None:
        others = {id(tensor) for tensor in shared}
        found = {name: one for name, one in tensors_of(self).items() if id(one) not in others}
        for tensor in found.values():
            tensor.data = wide(tensor.data)
        self.own = frozenset(found)

    def shared(self) -> list[Tensor]:
        return [tensor for name, tensor in tensors_of(self).items() if name not in self.own]

    def with_inputs(self, names: Set[str]) -> nn.Module:
        """A copy on the same base that also reads these."""
        again: Any = copied(self)
        if names:
            again.inside = around_same_tensors(again.inside, names)
            again.added = tuple(sorted({*self.added, *names}))
            again._owns_all_but(self.shared())
        return again

    @functools.cached_property
    def taps(self) -> Mapping[str, int]:
        """Those of the base: a network from outside would look for them among the additions."""
        bare = around_same_tensors(self.inside)
        for name, layer in list(_additions(bare)):
            _replace(bare, name, layer.base_layer)
        found: Any = bare.taps
        return {f"inside.{name}": size for name, size in found.items()}

    @torch.no_grad()
    def merged(self) -> nn.Module:
        network: nn.Module = copy.deepcopy(self.inside)
        for name, layer in list(_additions(network)):
            plain = layer.base_layer
            plain.weight = nn.Parameter(wide(plain.weight) + layer.get_delta_weight(NAME))
            _replace(network, name, plain)
        for tensor in tensors_of(network).values():
            tensor.data = wide(tensor.data)
        return network

    def addition(self) -> Addition:
        tensors = {}
        for name, layer in _additions(self.inside):
            for part in ("lora_A", "lora_B"):
                tensors[f"{name}.{part}.weight"] = getattr(layer, part)[NAME].weight.detach()
        options = self.options
        facts = {
            "rank": options.rank,
            "alpha": options.rank if options.alpha is None else options.alpha,
            "targets": list(options.targets),
            "base": self.base,
            "inputs": list(self.added),
            "whole": len(tensors) == len(own_parameters(self)),
        }
        return Addition(tensors, facts)


def load_addition(folder: Path, weights: str | None = None) -> Addition:
    """What was trained of a saved student, without the base that it was added to. weights: of a
    variant (an EMA decay), default the model's own.

    FileNotFoundError where all weights were trained; ValueError for damage, as `load_folder`.
    """
    path = folder / "model.json"
    described = read_description(path, "network", f"{path} does not describe a diffusion model")
    with errors_of(path):
        if ADDITION not in described["weights"]:
            raise FileNotFoundError(f"{folder} has no {ADDITION}: it is no student of a LoRA")
        file = folder / file_of(folder, described, weights, ADDITION, ADDITION_VARIANT)
        tensors, facts = load_tensors(file), tensor_facts(file)
        check_hash(file, described)
    return Addition(tensors, facts)


def _fits(layer: nn.Module) -> bool:
    """Whether PEFT adapts such a layer, and the addition can be merged into its weight."""
    if type(layer) not in LAYERS:
        return False
    if isinstance(layer, nn.Linear):
        return True
    conv: Any = layer
    return bool(conv.groups == 1 and conv.padding_mode == "zeros" and set(conv.dilation) == {1})


def _inject(options: Lora, network: nn.Module, names: list[str]) -> None:
    """Puts PEFT's layers in the place of these. ImportError without PEFT."""
    inject = library_class("peft.inject_adapter_in_model")
    config = library_class("peft.LoraConfig")(
        r=options.rank,
        lora_alpha=options.alpha or options.rank,
        target_modules="|".join(re.escape(name) for name in names),  # these paths, no others
        init_lora_weights=True if options.init == "kaiming" else "gaussian",
    )
    inject(config, network, NAME)
    del network.peft_config


def _additions(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with additions, by their paths."""
    from peft.tuners.lora import LoraLayer

    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(network.get_submodule(owner), last, layer)
