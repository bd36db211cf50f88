"""Laws of what is written in a method's class: options, docstring, words."""

import dataclasses
import inspect
import re

from fewstep.choice import needed
from fewstep.contracts.trial import Trial
from fewstep.errors import option_errors
from fewstep.learning.method import Method
from fewstep.options import sentence
from fewstep.yaml import from_yaml, to_yaml

DRAWN = "random numbers come from batch.draws and batch.noise()"
LOOP = "the trainer does that"
FORBIDDEN = {
    "torch.optim": "the run names the optimizer: trainer.optimizer=",
    ".backward(": LOOP,
    "torch.rand": DRAWN,
    "logging": "numbers for the log are notes: Losses(terms, notes)",
    "open(": LOOP,
    "diffusers": "a method knows no library of models",
    ".to(device": "the trainer moves networks, tensors take the device of the batch",
    "cuda": "the trainer moves networks, tensors take the device of the batch",
}
SOURCE = re.compile(r"arXiv:|doi|https?://|\b(19|20)\d\d\b")


def options_round_trip(trial: Trial) -> str | None:
    """The method with its defaults is the same after it was written to a run file and read."""
    cls = trial.cls
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if needed(field):
            return f"the option {field.name} has no default; give it one"
    method = cls()
    written = to_yaml(method.dump())
    try:
        again = Method.parse(from_yaml(written, "the run file"))
    except ValueError as error:
        lines = option_errors(error)
        if not lines:
            raise
        return f"a default is not what its type allows: {'; '.join(lines)}"
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        mine, read = getattr(method, field.name), getattr(again, field.name)
        if mine != read or type(mine) is not type(read):
            return (
                f"the default {field.name}={mine!r} is {read!r} when it is read from a run file; "
                "write it as its type says"
            )
    return None


def options_are_explained(trial: Trial) -> str | None:
    """A sentence stands under every option."""
    missing = []
    for field in dataclasses.fields(trial.cls):  # type: ignore[arg-type]
        if not sentence(trial.cls, field.name).endswith("."):
            missing.append(field.name)
    if not missing:
        return None
    return f'no sentence under {", ".join(missing)}; write """What it is.""" below the field'


def docstring_names_a_source(trial: Trial) -> str | None:
    """The docstring says where the algorithm is from."""
    cls = trial.cls
    own = cls.__doc__ or ""
    if own.startswith(f"{cls.__name__}("):  # what dataclass writes where nobody does
        own = ""
    text = own + (inspect.getdoc(inspect.getmodule(cls)) or "")
    if not text:
        return "no docstring; say what the method does and which paper it is of (arXiv:…)"
    if not SOURCE.search(text):
        return "the docstring names no source: arXiv:…, doi, https://… or a year"
    return None


def phases_begin_at_0_and_rise(trial: Trial) -> str | None:
    """The phases of a run of 100 steps begin at 0, rise, and each has a step."""
    phases = list(trial.cls().phases(100))
    if phases and phases[0] == 0 and phases == sorted(set(phases)) and phases[-1] < 100:
        return None
    return f"phases(100) gives {phases}; it must be 0 and rising steps below 100"


def knows_no_loop(trial: Trial) -> str | None:
    """The source of the class leaves loop, devices and random state to the trainer."""
    found = []
    for one in trial.cls.__mro__:
        if issubclass(one, Method) and not one.__module__.startswith("fewstep.learning"):
            lines, first = inspect.getsourcelines(one)
            found += loop_words("".join(lines), first)
    return "; ".join(found) or None


def loop_words(text: str, first: int = 1) -> list[str]:
    """What a source says that belongs to the trainer, each in a sentence. first: the number of its
    first line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), first):
        for word, instead in FORBIDDEN.items():
            if word in line:
                found.append(f"line {number} has {word!r}: {instead}")
    return found
