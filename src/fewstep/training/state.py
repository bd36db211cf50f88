"""What a run keeps of the networks of a method: weights in their precision, optimizers, averages,
loss scales.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.learning.averaging import lerp
from fewstep.learning.method import Method
from fewstep.learning.roles import networks, roles_of
from fewstep.training.config import TrainerConfig
from fewstep.training.precision import LossScale, in_precision
from fewstep.training.processes import World, local, part_of, shard, whole

Tensors = dict[str, Tensor]


class State:
    """Derived from the roles of the networks: what trains has an optimizer, what is exported has
    averages, what trains or moves is saved, all else is frozen. `modules` holds the networks as the
    method sees them.

    leaves: this process's part of each parameter, by its name, which optimizers step; unsharded the
    parameter itself.
    """

    def __init__(
        self, method: Method, nets: Any, config: TrainerConfig, device: torch.device, world: World
    ):
        self.method, self.config, self.device = method, config, device
        self.sharded = config.sharding == "full" and world.size > 1
        self.modules: dict[str, nn.Module] = {}
        self.scales: dict[str, LossScale] = {}
        self._unsharded: dict[str, nn.Module] = {}
        self.roles = roles_of(nets)
        self.kept = (*self.roles.trains, *self.roles.moves)
        for name, network in networks(nets).items():
            module = in_precision(network, config.precision, name in self.kept)
            module.to(device).train(name in self.kept).requires_grad_(name in self.roles.trains)
            world.spread(module)
            if self.sharded:
                if name in self.roles.exports:
                    self._unsharded[name] = copy.deepcopy(module).cpu()
                shard(module)
            if isinstance(module, Denoiser):
                module.prepare(config.compile, config.checkpointing and name in self.roles.trains)
            self.modules[name] = module
            setattr(nets, name, module)
        self.leaves: dict[str, dict[str, nn.Parameter]] = {}
        for name in dict.fromkeys((*self.roles.trains, *self.roles.exports)):
            found = dict(self.modules[name].named_parameters())
            self.leaves[name] = (
                {k: nn.Parameter(local(p)) for k, p in found.items()} if self.sharded else found
            )
        self.restart()

    def restart(self) -> None:
        """New optimizers and averages, as at the beginning of a phase."""
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name in self.roles.trains:
            spec = self.config.optimizers.get(name, self.config.optimizer)
            self.optimizers[name] = spec.build(list(self.leaves[name].values()))
            for group in self.optimizers[name].param_groups:
                group["base_lr"] = spec.lr
        self.averages = {
            name: {
                d: {k: p.detach().clone() for k, p in self.leaves[name].items()}
                for d in self.config.ema
            }
            for name in self.roles.exports
        }

    def average(self) -> None:
        """Moves the averages of the exported networks."""
        for name in self.roles.exports:
            now = [p.detach() for p in self.leaves[name].values()]
            for decay, average in self.averages[name].items():
                lerp(list(average.values()), now, 1 - decay)

    def exported(self, name: str, decay: float | None = None) -> nn.Module:
        """A frozen copy of an exported network with its average (default: of the first decay); a
        collective call.
        """
        average = self.averages[name][self.config.ema[0] if decay is None else decay]
        module = copy.deepcopy(self._unsharded.get(name, self.modules[name])).to(self.device)
        if isinstance(module, Denoiser):
            module.prepare(compiled=False, checkpointing=False)
        likes = dict(self.modules[name].named_parameters())
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                parameter.copy_(whole(average[key], likes[key]))
        return module.eval().requires_grad_(False)

    def gradients(self, names: tuple[str, ...]) -> list[Tensor]:
        """The gradients of the networks' leaves; one that is None counts as zero, as it does where
        processes sum.
        """
        for name in names:
            for key, parameter in self.modules[name].named_parameters():
                leaf = self.leaves[name][key]
                if parameter.grad is None:
                    leaf.grad = torch.zeros_like(leaf)
                elif self.sharded:
                    leaf.grad = local(parameter.grad)
        return [p.grad for name in names for p in self.leaves[name].values() if p.grad is not None]

    def forget_gradients(self, names: tuple[str, ...]) -> None:
        """No network of these has a gradient any more."""
        for name in names:
            self.modules[name].zero_grad(set_to_none=True)
            self.optimizers[name].zero_grad(set_to_none=True)

    def saved(self) -> dict[str, Tensors]:
        """Groups of tensors for a checkpoint, whole, whatever each process holds of them; a
        collective call.
        """
        nets = {
            name: {k: whole(local(v), v) for k, v in self.modules[name].state_dict().items()}
            for name in self.kept
        }
        ema: dict[str, Any] = {}
        for name, averages in self.averages.items():
            likes = dict(self.modules[name].named_parameters())
            ema[name] = {
                d: {k: whole(v, likes[k]) for k, v in average.items()}
                for d, average in averages.items()
            }
        optim: dict[str, Any] = {}
        for name, optimizer in self.optimizers.items():
            likes_by_place = list(self.modules[name].parameters())
            optim[name] = {
                i: {k: whole(v, likes_by_place[i]) if v.ndim else v for k, v in state.items()}
                for i, state in optimizer.state_dict()["state"].items()
            }
        scale = {group: {"scale": s.scale, "good": s.good} for group, s in self.scales.items()}
        return {
            "nets": _flat(nets),
            "ema": _flat(ema),
            "optim": _flat(optim),
            "scale": _flat(scale),
        }

    @torch.no_grad()
    def load(self, groups: Mapping[str, Tensors]) -> None:
        """Takes back what `saved` gave, however many processes there were then."""
        nets = _by_owner(groups["nets"])
        for name in self.kept:
            now = self.modules[name].state_dict()
            assert now.keys() == nets[name].keys(), f"the checkpoint's {name} has other tensors"
            for key, value in now.items():
                local(value).copy_(part_of(nets[name][key], value))
        for name, by_decay in _by_owner(groups["ema"]).items():
            likes = dict(self.modules[name].named_parameters())
            for decay, average in _by_owner(by_decay).items():
                for k, v in self.averages[name][
                    float(decay)
                ].items():  # in its own order, which a file does not keep
                    v.copy_(part_of(average[k], likes[k]))
        for name, by_index in _by_owner(groups["optim"]).items():
            parameters = list(self.modules[name].parameters())
            state = {
                int(i): {
                    k: part_of(v, parameters[int(i)]) if v.ndim else v for k, v in values.items()
                }
                for i, values in _by_owner(by_index).items()
            }
            options = self.optimizers[name].state_dict()["param_groups"]
            self.optimizers[name].load_state_dict({"state": state, "param_groups": options})
        for group, values in _by_owner(groups["scale"]).items():
            self.scales[group] = LossScale(self.device)
            self.scales[group].scale, self.scales[group].good = (
                values[k].to(self.device) for k in ("scale", "good")
            )


def _flat(nested: Mapping[Any, Any], path: str = "") -> Tensors:
    """Tensors of nested mappings by their path, with slashes."""
    tensors: Tensors = {}
    for key, value in nested.items():
        tensors |= (
            {f"{path}{key}": value} if isinstance(value, Tensor) else _flat(value, f"{path}{key}/")
        )
    return tensors


def _by_owner(tensors: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """Splits keys at their first slash."""
    owners: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        owner, _, rest = key.partition("/")
        owners.setdefault(owner, {})[rest] = tensor
    return owners
