"""What a run keeps of the networks of a method: weights in their precision, optimizers, averages,
loss scales.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.errors import RefusedError
from fewstep.learning.averaging import decay_of, lerp
from fewstep.learning.method import Method
from fewstep.learning.roles import networks, roles_of
from fewstep.models.adapters import borrowed, copied, own_parameters, own_state
from fewstep.training.config import TrainerConfig
from fewstep.training.precision import LossScale, in_precision, on_cast_base
from fewstep.training.processes import World, local, part_of, shard, whole

Tensors = dict[str, Tensor]


class State:
    """Derived from the roles of the networks: what trains has an optimizer, what is exported has
    averages, what trains or moves is saved, all else is frozen.

    The networks of `nets` are prepared in place: moved to the device, set to train or not, sharded.
    Only what is cast is replaced by its copy, in `nets` too. Of a network that shares weights with
    others (`models.adapters.View`) all this concerns its own tensors alone: what is shared stays
    frozen, is cast once for all, and is stored once.

    modules: the networks as the method sees them. parameters: their own ones. leaves: this
    process's part of each parameter, by its name, which optimizers step; unsharded the parameter
    itself.
    """

    def __init__(
        self, method: Method, nets: Any, config: TrainerConfig, device: torch.device, world: World
    ):
        self.method, self.config, self.device, self.world = method, config, device, world
        self.sharded = config.sharding == "full" and world.size > 1
        self.roles = roles_of(nets)
        self.kept = (*self.roles.trains, *self.roles.moves)
        self.scales: dict[str, LossScale] = {}
        self.modules: dict[str, nn.Module] = {}
        self._unsharded: dict[str, nn.Module] = {}
        self._prepare(nets)
        self.parameters = {name: own_parameters(module) for name, module in self.modules.items()}
        self.leaves: dict[str, dict[str, nn.Parameter]] = {}
        for name in dict.fromkeys((*self.roles.trains, *self.roles.exports)):
            self.leaves[name] = self.parameters[name]
            if self.sharded:
                parts = {k: nn.Parameter(local(p)) for k, p in self.parameters[name].items()}
                self.leaves[name] = parts
        self.restart()

    def _prepare(self, nets: Any) -> None:
        found = on_cast_base(networks(nets), self.config.precision)
        lent = [tensor for network in found.values() for tensor in borrowed(network)]
        if lent and self.sharded:
            raise ValueError("trainer.sharding=full does not go with networks that share weights")
        lent_ids = {id(tensor) for tensor in lent}
        for name, network in found.items():
            kept = name in self.kept
            shared = any(id(p) in lent_ids for p in network.parameters())
            twin = name in self.roles.twins
            module = in_precision(network, self.config.precision, kept, shared, twin)
            module.to(self.device).train(kept).requires_grad_(False)
            for parameter in own_parameters(module).values():
                parameter.requires_grad_(name in self.roles.trains)
            self.world.broadcast(module)
            if self.sharded:
                if name in self.roles.exports:
                    self._unsharded[name] = copy.deepcopy(module).cpu()
                shard(module)
            if isinstance(module, Denoiser):
                recomputes = self.config.checkpointing and name in self.roles.trains
                module.prepare(self.config.compile, recomputes)
            self.modules[name] = module
            setattr(nets, name, module)

    def restart(self) -> None:
        """New optimizers and averages, as at the beginning of a phase."""
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name in self.roles.trains:
            spec = self.config.optimizers.get(name, self.config.optimizer)
            self.optimizers[name] = spec.build(list(self.leaves[name].values()))
            for group in self.optimizers[name].param_groups:
                group["base_lr"] = spec.lr
        self.averages: dict[str, dict[float, Tensors]] = {}
        for name in self.roles.exports:
            self.averages[name] = {}
            for decay in self.config.ema:
                begun = {k: p.detach().clone() for k, p in self.leaves[name].items()}
                self.averages[name][decay] = begun

    def learn(self, names: tuple[str, ...]) -> None:
        """Gradients reach these of the networks that train, and no others."""
        for name in self.roles.trains:
            for parameter in self.parameters[name].values():
                parameter.requires_grad_(name in names)

    def average(self, updates: int) -> None:
        """Moves the averages of the exported networks. updates: those before, in this phase."""
        for name in self.roles.exports:
            now = [p.detach() for p in self.leaves[name].values()]
            for decay, average in self.averages[name].items():
                kept = decay_of(decay, updates, self.config.ema_warmup)
                lerp(list(average.values()), now, 1 - kept)

    def exported(self, name: str, decay: float | None = None) -> nn.Module:
        """A frozen copy of an exported network with its average (default: of the first decay); what
        it shares it goes on sharing. A collective call.
        """
        average = self.averages[name][self.config.ema[0] if decay is None else decay]
        module = copied(self._unsharded.get(name, self.modules[name])).to(self.device)
        if isinstance(module, Denoiser):
            module.prepare(compiled=False, checkpointing=False)
        likes = self.parameters[name]
        with torch.no_grad():
            for key, parameter in own_parameters(module).items():
                parameter.copy_(whole(average[key], likes[key]))
        return module.eval().requires_grad_(False)

    def gradients(self, names: tuple[str, ...]) -> list[Tensor]:
        """The gradients of the networks' leaves; one that is None counts as zero, as it does where
        processes sum.
        """
        found = []
        for name in names:
            for key, parameter in self.parameters[name].items():
                leaf = self.leaves[name][key]
                if parameter.grad is None:
                    leaf.grad = torch.zeros_like(leaf)
                elif self.sharded:
                    leaf.grad = local(parameter.grad)
                assert leaf.grad is not None
                found.append(leaf.grad)
        return found

    def forget_gradients(self, names: tuple[str, ...]) -> None:
        """No network of these has a gradient any more."""
        for name in names:
            self.modules[name].zero_grad(set_to_none=True)
            self.optimizers[name].zero_grad(set_to_none=True)

    def broken(self) -> str:
        """What is not finite of weights, averages and optimizers, in words; "" where all is.

        The device is waited for once. A collective call: one process says it for all.
        """
        largest = self._largest()
        finite = torch.stack(list(largest.values())).isfinite().tolist()
        found = [what for what, fine in zip(largest, finite, strict=True) if not fine]
        if not self.world.max(bool(found)):
            return ""
        return f"{', '.join(found) or 'another process'}: numbers that are not finite"

    def _largest(self) -> dict[str, Tensor]:
        """The largest magnitude of each part of this process's, 0-d on the device."""
        found = {}
        for name in self.kept:
            weights = [local(p) for p in self.parameters[name].values()]
            found[f"the weights of {name}"] = greatest(weights, self.device)
            buffers = [b for b in self.modules[name].buffers() if b.is_floating_point()]
            # Masks hold infinity, which is 0 here; NaN stays.
            found[f"the buffers of {name}"] = greatest(buffers, self.device).clamp(max=0)
        for name, averages in self.averages.items():
            kept = [t for average in averages.values() for t in average.values()]
            found[f"the average of {name}"] = greatest(kept, self.device)
        for name, optimizer in self.optimizers.items():
            states = [t for state in optimizer.state.values() for t in state.values()]
            without_counters = [t for t in states if t.ndim]
            found[f"the optimizer of {name}"] = greatest(without_counters, self.device)
        return found

    def saved(self) -> dict[str, Tensors]:
        """Groups of tensors for a checkpoint, by their path, whole, whatever each process holds of
        them; without what networks share. A collective call.
        """
        nets: Tensors = {}
        for name in self.kept:
            for key, value in own_state(self.modules[name]).items():
                nets[f"{name}/{key}"] = whole(local(value), value)
        ema: Tensors = {}
        for name, averages in self.averages.items():
            for decay, average in averages.items():
                for key, value in average.items():
                    path = f"{name}/{float(decay)}/{key}"
                    ema[path] = whole(value, self.parameters[name][key])
        scale: Tensors = {}
        for group, one in self.scales.items():
            scale |= {f"{group}/scale": one.scale, f"{group}/good": one.good}
        return {"nets": nets, "ema": ema, "optim": self._saved_optimizers(), "scale": scale}

    def _saved_optimizers(self) -> Tensors:
        found: Tensors = {}
        for name, optimizer in self.optimizers.items():
            likes = list(self.parameters[name].values())
            for place, values in optimizer.state_dict()["state"].items():
                for key, value in values.items():
                    # A counter is no part of a sharded tensor.
                    full = whole(value, likes[place]) if value.ndim else value
                    found[f"{name}/{place}/{key}"] = full
        return found

    @torch.no_grad()
    def load(self, groups: Mapping[str, Tensors]) -> None:
        """Takes back what `saved` gave, however many processes there were then. RefusedError where
        it is of other networks.
        """
        for name in self.kept:
            now, saved = own_state(self.modules[name]), _below(name, groups.get("nets", {}))
            if _shapes(now) != _shapes(saved):
                raise RefusedError(
                    f"the checkpoint's network {name} has other weights than this run's; --restart "
                    f"begins at step 0"
                )
            for key, value in now.items():
                local(value).copy_(part_of(saved[key], value))
        for name, averages in self.averages.items():
            for decay, average in averages.items():
                saved = _below(f"{name}/{float(decay)}", groups["ema"])
                for key, value in average.items():
                    value.copy_(part_of(saved[key], self.parameters[name][key]))
        for name in self.optimizers:
            self._load_optimizer(name, _below(name, groups["optim"]))
        self.scales.clear()
        for path, value in groups["scale"].items():
            group, _, part = path.rpartition("/")
            scale = self.scales.setdefault(group, LossScale(self.device))
            setattr(scale, part, value.to(self.device))

    def _load_optimizer(self, name: str, saved: Tensors) -> None:
        likes = list(self.parameters[name].values())
        state: dict[int, Tensors] = {}
        for path, value in saved.items():
            place, _, key = path.partition("/")
            part = part_of(value, likes[int(place)]) if value.ndim else value
            state.setdefault(int(place), {})[key] = part
        options = self.optimizers[name].state_dict()["param_groups"]
        self.optimizers[name].load_state_dict({"state": state, "param_groups": options})


def greatest(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The largest magnitude in them, 0-d; NaN where there is one, 0 where there is nothing."""
    filled = [t for t in tensors if t.numel()]
    if not filled:
        return torch.zeros((), device=device)
    return torch.stack([n.float() for n in torch._foreach_norm(filled, math.inf)]).amax()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _below(path: str, tensors: Tensors) -> Tensors:
    """The tensors below a path, by the rest of theirs."""
    head = f"{path}/"
    return {k.removeprefix(head): value for k, value in tensors.items() if k.startswith(head)}
