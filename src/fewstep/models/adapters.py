"""What "a copy of the teacher" means. Methods ask for clones by name and cannot tell how they are
made.
"""

import copy
from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Parameterization


@dataclass(eq=False)
class FullCopy:
    """Clones with all weights of their own; inputs that the network lacks are added,
    zero-initialised under `seed`.

    default: what is cloned where a method names nothing else (the start of the student: usually the
    teacher). dropout: of the clones, where it differs from the source's.
    """

    default: Denoiser
    seed: int = 0
    dropout: float | None = None

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
        made = Denoiser(
            network, source.process, parameterization or source.parameterization, source.own
        )
        made.autocast = source.autocast
        return made
