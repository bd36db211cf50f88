"""`fewstep`: the verbs, and how an error becomes one line and an exit code."""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer

from fewstep import __version__, plugins
from fewstep.cli import verbs
from fewstep.cli.terminal import shown
from fewstep.errors import (
    DataMemoryError,
    DivergedError,
    RefusedError,
    connection_lost,
    option_errors,
    out_of_memory,
    rank,
)
from fewstep.text import in_one_line

RUNS = ("train", "plan", "demo")
"""Verbs that take options of a run."""
LONGEST = 480  # characters of a line that somebody reads
STOPPED = 130  # the exit code of a program that was interrupted


def sentence(verb: Callable[..., None]) -> str:
    """The first paragraph of what a verb says of itself, whole: typer's own is cut."""
    return " ".join((verb.__doc__ or "").partition("\n\n")[0].split())


app = typer.Typer(
    name="fewstep",
    help="Turns slow diffusion and flow models into ones that make images in 1 to 8 network "
    "evaluations.",
    epilog="Example: fewstep demo",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and end."),
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of an error; allowed anywhere."
    ),
    plugin: list[str] = typer.Option(
        [],
        "--plugin",
        metavar="FILE|MODULE",
        help="Python of your own whose methods, networks, data sources … may be named; allowed "
        "anywhere, several times.",
    ),
) -> None:
    """Options of all verbs."""
    if version:
        print(f"fewstep {__version__}")
        raise typer.Exit


for verb in (
    verbs.demo,
    verbs.train,
    verbs.plan,
    verbs.sample,
    verbs.compare,
    verbs.evaluate,
    verbs.report,
    verbs.export,
    verbs.inspect,
    verbs.check,
):
    app.command(short_help=sentence(verb))(verb)
data = typer.Typer(
    help="Looks at data, and encodes them once.", no_args_is_help=True, rich_markup_mode=None
)
data.callback()(lambda: None)  # so that a single verb stays a word
data.command("check", short_help=sentence(verbs.data_check))(verbs.data_check)
data.command("cache", short_help=sentence(verbs.data_cache))(verbs.data_cache)
app.add_typer(data, name="data")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Ends with the exit codes of docs/cli.md."""
    with shown():
        code = _ended(list(sys.argv[1:] if arguments is None else arguments))
    sys.exit(code)


def _ended(words: list[str]) -> int:
    """Carries the words out; the exit code."""
    debug = "--debug" in words
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    words = [word for word in words if word != "--debug"]
    try:
        named, words = _plugins_in(words)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        if words == ["version"]:
            words = ["--version"]
        if words in ([], ["data"]):
            words.append("--help")
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of libraries to those who write programs
            for plugin in named:
                plugins.load(plugin)
            code = app(words, standalone_mode=False, prog_name="fewstep")
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except Exception as error:
        if debug:
            traceback.print_exc()
        time.sleep(patience(error))
        for line in lines_of(error):
            who = f"process {rank()}: " if rank() else ""
            print(f"error: {who}{in_one_line(line, LONGEST)}", file=sys.stderr)
        code = code_of(error)
    if code == STOPPED:  # which typer also makes of a KeyboardInterrupt
        print("stopped", file=sys.stderr)
    return code or 0


def _plugins_in(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of --plugin, and the other words. ValueError where one has no value."""
    named, others = [], []
    waiting = iter(words)
    for word in waiting:
        option, _, value = word.partition("=")
        if option != "--plugin":
            others.append(word)
        elif value or (value := next(waiting, "")):
            named.append(value)
        else:
            raise ValueError("--plugin needs a file or a module")
    return named, others


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """One process says it for all."""
    if rank() == 0:
        print(f"warning: {in_one_line(message, LONGEST)}", file=sys.stderr)


def _way_of(error: Any) -> str:
    """What leads on from a word that was not understood, or is missing."""
    context = getattr(error, "ctx", None)
    if context is None:
        return ""
    if context.info_name in RUNS and getattr(error, "option_name", "") not in ("", None):
        return "; options of a run have no dashes: trainer.optimizer.lr=1e-3"
    return f"; {context.command_path} --help says more" if context.command_path else ""


def code_of(error: BaseException) -> int:
    """2: configuration, input or output; 3: refused; 4: diverged; 5: out of memory; 1: a fault of
    fewstep's own.
    """
    if isinstance(error, RefusedError):
        return 3
    if isinstance(error, DivergedError):
        return 4
    if out_of_memory(error):
        return 5
    return 2 if isinstance(error, ValueError | OSError | ImportError | typer.TyperException) else 1


def patience(error: BaseException) -> float:
    """Seconds before this process says its error. Torchrun ends the others as soon as one has
    ended: so an error that all processes have is said by the first of them, and a lost connection
    behind the error that caused it. Where another one is silent there is none to wait for.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0.0
    if connection_lost(error) and "timed out" in str(error).lower():
        return 2.0 if rank() else 0.0
    return 8.0 if connection_lost(error) else 5.0 if rank() else 0.0


def lines_of(error: BaseException) -> list[str]:
    """One line per error: a run file's all at once, each with its dotted path."""
    if isinstance(error, typer.TyperException):
        return [" ".join(error.format_message().split()).rstrip(".") + _way_of(error)]
    if connection_lost(error):
        return [
            "another process ended, or was silent for trainer.timeout seconds; --debug shows what "
            "was waited for"
        ]
    if isinstance(error, DataMemoryError):
        return [str(error)]
    if out_of_memory(error):
        return ["out of memory; a smaller trainer.micro_batch (or --batch) needs less"]
    if lines := option_errors(error):
        return lines
    if code_of(error) == 1:
        return [f"{type(error).__name__}: {' '.join(str(error).split())}; --debug shows where"]
    if isinstance(error, OSError) and error.filename is not None:
        return [f"{error.filename}: {error.strerror}"]
    return [" ".join(str(error).split())]
