"""How a module from outside is called: which of its arguments takes x, t, the label.

"x, t, label"                   module(x, t, label)
"x, timesteps=t, y=label"       module(x, timesteps=t, y=label)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewstep.meant import did_you_mean

NAMES = {
    "t": "t time times timestep timesteps noise_level noise_levels noise_labels sigma sigmas",
    "label": "label labels y class_label class_labels classes class_idx",
    "s": "s",
    "guidance": "guidance",
    "text": "text context encoder_hidden_states",
}
"""What the field calls an argument, by the name that it has here."""


@dataclass(frozen=True)
class Call:
    """positional, by_name: what is handed over, in order and by the argument's name."""

    positional: tuple[str, ...]
    by_name: Mapping[str, str]

    @property
    def values(self) -> tuple[str, ...]:
        """All that is handed over."""
        return (*self.positional, *self.by_name.values())

    def __call__(self, module: nn.Module, values: Mapping[str, Tensor]) -> Any:
        """What the module gives for these values."""
        first = [values[name] for name in self.positional]
        rest = {argument: values[name] for argument, name in self.by_name.items()}
        return module(*first, **rest)


def said(text: str, known: Set[str]) -> Call:
    """The call of a text like "x, timesteps=t". known: what can be handed over. ValueError for
    others.
    """
    positional: list[str] = []
    by_name: dict[str, str] = {}
    for part in text.split(","):
        argument, equals, name = (word.strip() for word in part.rpartition("="))
        if name not in known:
            raise ValueError(f"call={text!r}: there is no {name!r}{did_you_mean(name, [*known])}")
        if equals:
            by_name[argument] = name
        elif by_name:
            raise ValueError(f"call={text!r}: {name} stands behind an argument with a name")
        else:
            positional.append(name)
    return _whole(Call(tuple(positional), by_name), known, f"call={text!r}")


def found(module: nn.Module, known: Set[str]) -> Call:
    """The call that the signature of `forward` shows: arguments known by their names, x the first
    other one, t the second. ValueError, with what to say, where it does not show one.
    """
    name = type(module).__name__
    parameters = list(inspect.signature(module.forward).parameters.values())
    meant = _meant(parameters, known)
    positional: list[str] = []
    by_name: dict[str, str] = {}
    skipped = False
    for one in parameters:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        if one.name not in meant:
            if one.default is one.empty:
                raise ValueError(
                    f'{name} needs {one.name}, of which nothing is known: say call="x, t", with '
                    f"what it takes of {', '.join(sorted(known))}"
                )
            skipped = True
        elif one.kind is one.KEYWORD_ONLY or skipped:
            by_name[one.name] = meant[one.name]
        else:
            positional.append(meant[one.name])
    return _whole(Call(tuple(positional), by_name), known, name)


def _meant(parameters: list[inspect.Parameter], known: Set[str]) -> dict[str, str]:
    """What each argument takes, by its name."""
    aliases: dict[str, str] = {}
    for name in known:
        aliases |= dict.fromkeys(NAMES.get(name, name).split(), name)
    aliases.pop("x", None)
    meant: dict[str, str] = {}
    unnamed: list[str] = []
    for one in parameters:
        value = aliases.get(one.name.lower())
        if value is not None and value not in meant.values():
            meant[one.name] = value
        elif one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD):
            unnamed.append(one.name)
    if unnamed:
        meant[unnamed.pop(0)] = "x"
    if unnamed and "t" not in meant.values():
        meant[unnamed[0]] = "t"
    return meant


def _whole(call: Call, known: Set[str], whose: str) -> Call:
    """The call, if it hands over all that there is. ValueError where something is left out."""
    needed = known - {"s", "guidance"}
    if missing := sorted(needed - set(call.values)):
        raise ValueError(
            f"{whose} takes no {' and no '.join(missing)}: say which argument it is, "
            f'call="x, t, name={missing[-1]}"'
        )
    return call
