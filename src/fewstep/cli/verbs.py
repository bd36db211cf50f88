"""What each verb takes and says of itself. Its work stands in the file of its name, which is
imported when the words are understood: `--help` and a mistyped option do not wait for torch.
"""

import importlib
from pathlib import Path
from typing import Any

import typer

from fewstep.cli.tables import print_list
from fewstep.recipes import listed


def carry_out(verb: str, options: dict[str, Any], name: str | None = None) -> None:
    """Calls the function of a verb's file, of the same name if no other is given."""
    module = importlib.import_module(f"fewstep.cli.{verb}")
    getattr(module, name or verb)(**options)


def export(
    model: str = typer.Argument(help="A run's folder, a model's folder, or a shipped model."),
    to: str = typer.Option(help="The format: diffusers."),
    out: Path | None = typer.Option(
        None, help="The folder to write; default: beside the model, named after the format."
    ),
    ema: str | None = typer.Option(None, help="One of the run's averages, by its decay."),
) -> None:
    """Writes a model for another library, loads it there and compares images; fails if they differ.

    Example: fewstep export runs/demo --to diffusers
    """
    carry_out("export", locals())


def inspect(
    what: str = typer.Argument(
        help="A run's or model's folder or name; recipes; methods, networks, solvers, data …; the "
        "name of any of these: dmd2, unet, heun, digits; trainer; run."
    ),
) -> None:
    """Says what a model is, lists what there is, or explains the options of anything by its name.

    Example: fewstep inspect methods
    """
    if what == "recipes":
        print_list(listed())
    else:
        carry_out("inspect", {"what": what})


def check(
    source: str = typer.Argument(help="digits, or a file or folder of data."),
    overrides: list[str] | None = typer.Argument(
        None, help="limit=1000, fraction=0.1, split=test, size=64, kind=folder …"
    ),
) -> None:
    """Reads all of a data source and says what was found.

    Example: fewstep data check mnist/
    """
    carry_out("data", locals(), "check")
