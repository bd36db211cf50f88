"""fewstep: diffusion and flow models distilled into ones that make images in 1 to 8 network
evaluations.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fewstep import plugins

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewstep.begun import load, write_page
    from fewstep.data.given import from_arrays, from_dataset
    from fewstep.models.bundle import DiffusionModel
    from fewstep.models.outside import OutsideNetwork
    from fewstep.models.wrapped import from_network
    from fewstep.recipes import recipe
    from fewstep.run import Run, distil

__all__ = [
    "DiffusionModel",
    "OutsideNetwork",
    "Run",
    "__version__",
    "distil",
    "from_arrays",
    "from_dataset",
    "from_network",
    "load",
    "plugins",
    "recipe",
    "write_page",
]

_HOMES = {
    "DiffusionModel": "fewstep.models.bundle",
    "OutsideNetwork": "fewstep.models.outside",
    "from_arrays": "fewstep.data.given",
    "from_dataset": "fewstep.data.given",
    "from_network": "fewstep.models.wrapped",
    "load": "fewstep.begun",
    "recipe": "fewstep.recipes",
    "Run": "fewstep.run",
    "distil": "fewstep.run",
    "write_page": "fewstep.begun",
}


def __getattr__(name: str) -> Any:
    """The public names, imported at first use: `fewstep --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
