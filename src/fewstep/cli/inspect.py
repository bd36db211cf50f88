"""`fewstep inspect`."""

from pathlib import Path
from typing import Any

import typer


def inspect(
    what: str = typer.Argument(help="methods, recipes, or a run's or model's folder or name."),
) -> None:
    """Lists methods or recipes, or says what a model is.

    Example: fewstep inspect methods
    """
    from fewstep.cli.configure import listed

    if what in ("methods", "recipes"):
        names = listed(what)
        width = max(map(len, names))
        for name, line in names.items():
            print(f"{name.ljust(width)}  {line}")
        return
    from fewstep.choice import kind_of, origins
    from fewstep.models.folder import load

    model = load(what)
    network = model.denoiser.network
    facts = {
        "network": f"{kind_of(type(network.spec))}, "
        f"{sum(p.numel() for p in network.parameters()):,} parameters",
        "shape": "×".join(map(str, model.shape)),
        "classes": model.classes or "none",
        "process": model.denoiser.process.dump(),
        "parameterization": model.denoiser.parameterization.dump(),
        "sampler": model.sampler.dump(),
        "evaluations": model.evaluations(model.sampler),
        "guidance": f"{model.guidance.kind}, {model.guidance.low:g} to {model.guidance.high:g}",
    }
    spec: Any = network.spec
    denoiser = model.denoiser
    if made_with := origins([spec, denoiser.process, denoiser.parameterization, model.sampler]):
        facts["plugins"] = made_with
    for key, value in {**facts, **model.card}.items():
        print(f"{key}: {value}")
    status = Path(what) / "status.json"
    if status.is_file():
        print(f"run: {status.read_text(encoding='utf-8').strip()}")
