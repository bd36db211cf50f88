"""`fewstep inspect`."""

import contextlib
import datetime
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.begun import load
from fewstep.choice import Choice, kind_of, origins
from fewstep.cli.tables import gathered, options_told, print_facts, print_list, print_options
from fewstep.data.source import Source
from fewstep.files import read_json
from fewstep.learning.method import Method
from fewstep.models.adapters import Adaptation
from fewstep.models.bundle import DiffusionModel
from fewstep.models.classifier import Classifier
from fewstep.models.hub import is_name
from fewstep.models.named import shipped
from fewstep.models.part import Part
from fewstep.options import (
    about,
    docstring,
    families,
    families_called,
    kinds_called,
    options_of,
    shown,
)
from fewstep.parts.autoencoder import Autoencoder
from fewstep.parts.clip import Clip
from fewstep.recipes import listed, recipe, said_of
from fewstep.text import counted, lasted, place
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.yaml import to_yaml

PARTS: dict[str, type[Choice]] = {
    "method": Method,
    "adaptation": Adaptation,
    "trainer": TrainerConfig,
    "data": Source,
}
"""What a model's card tells as plain data."""


CALLED = {"base": "made from", "ema": "average"}
"""How what a card tells is called here."""


def inspect(what: str) -> None:
    """Says what a user wants to know about a model, a list or a name. ValueError where there is
    none.
    """
    if what == "recipes":
        print_list(listed())
        return
    if place(what).exists() or what in shipped() or is_name(what):
        folder = place(what) if place(what).exists() else shipped().get(what)
        part = None if folder is None else part_at(folder)
        if part is None:
            print_model(load(what), place(what))
        else:
            print_part(part, place(what))
        return
    if what in listed():
        print_recipe(what)
        return
    print_named(what)


def print_named(what: str) -> None:
    """Kinds of this name, and lists. ValueError where there is none."""
    kinds = kinds_called(what)
    lists = []
    for family in families_called(what):
        if family not in family.kinds().values():
            lists.append(family)
        elif (family, family) not in kinds:  # a single class: the trainer, a run
            kinds.append((family, family))
    if not kinds and not lists:
        raise unknown(what)
    if len(kinds) > 1 and not gathered({}):
        names = ", ".join(kind_of(family) for family, _ in kinds)
        print(f"{what} is a name in several places: {names}\n")
    for family, cls in kinds:
        print_kind(family, cls)
    for family in lists:
        print_list({name: about(cls) for name, cls in family.offered().items()})


def unknown(what: str) -> ValueError:
    """The error about a name that nobody knows."""
    near = [] if "/" in what else difflib.get_close_matches(what, all_names(), n=2)
    meant = f"did you mean {' or '.join(near)}?" if near else f"models: {', '.join(shipped())}"
    return ValueError(f"no model, run or name {what!r}; {meant}")


def all_names() -> list[str]:
    """What can be named: shipped models, families in the plural, kinds."""
    names = [*shipped(), *listed(), "recipes", "trainer"]
    for family in families():
        names += [f"{kind_of(family)}s", *family.offered()]
    return names


def print_recipe(name: str) -> None:
    """What a recipe is for, what came out of it, and its run file."""
    if gathered({"recipe": name, "about": said_of(name), "run": recipe(name).dump()}):
        return
    print(f"{name} (recipe)\n{said_of(name)}\n")
    print(to_yaml(recipe(name).dump()).rstrip())


def print_kind(family: type[Choice], cls: type[Choice]) -> None:
    """What a kind is, and its options."""
    name = kind_of(cls)
    rows = []
    for option in options_of(cls):
        rows.append((option.name, "needed" if option.default is None else option.default, option))
    told = {"name": name, "family": kind_of(family), "about": docstring(cls)}
    if gathered({"kinds": [{**told, "options": options_told(rows)}]}):
        return
    print(name if family is cls else f"{name} ({kind_of(family)})")
    text = docstring(cls)
    sentence = about(cls)
    print(text if " ".join(text.split()).startswith(sentence) else f"{sentence}\n\n{text}")
    print()
    if rows:
        print_options(rows)
    else:
        print("no options")
    print()


def told_of_card(card: Mapping[str, Any]) -> dict[str, str]:
    """What a model says of the run that made it: of a choice its kind, and options that are not its
    defaults.
    """
    told: dict[str, str] = {}
    for name, value in card.items():
        if name == "data" and isinstance(value, dict):
            facts = {key: value[key] for key in ("images", "fingerprint") if key in value}
            told |= {f"data, {key}": shown(fact) for key, fact in facts.items()}
            value = {key: one for key, one in value.items() if key not in facts}
        name = CALLED.get(name, name)
        told[name] = shown(value)
        if name in PARTS and isinstance(value, dict):
            with contextlib.suppress(ValueError):  # of plug-ins that are not there, or damaged
                told[name] = shown(PARTS[name].parse(value))
    return told


def print_model(model: DiffusionModel, folder: Path) -> None:
    """What a model is made of, its card, and the state of its run."""
    denoiser = model.denoiser
    spec: Any = denoiser.network.spec
    parameters = sum(p.numel() for p in denoiser.network.parameters())
    guidance = model.guidance
    facts: dict[str, Any] = {
        "network": f"{kind_of(type(spec))}, {parameters:,} parameters",
        "shape": "×".join(map(str, model.shape)),
        "images": "×".join(map(str, model.image_shape)),
        "classes": model.classes or "none",
        "asked for by": ", ".join(model.conditioner.spec.reads) or "nothing",
        "process": shown(denoiser.process),
        "parameterization": shown(denoiser.parameterization),
        "sampler": shown(model.sampler),
        "evaluations": model.evaluations(model.sampler),
        "distilled": model.distilled or "no",
        "guidance": f"{guidance.kind}, {guidance.low:g} to {guidance.high:g}",
    }
    if model.clip is not None:
        facts["x0"] = f"cut at ±{model.clip:g} in each step of sampling"
    parts = [spec, denoiser.process, denoiser.parameterization, model.sampler]
    made_with = origins([*parts, model.codec.spec, model.conditioner.spec])
    if made_with:
        facts["plugins"] = made_with
    print_facts({**facts, **told_of_card(model.card)})
    status = folder / "status.json"
    if status.is_file():
        print_facts(told_of_run(folder, read_json(status)))


def part_at(folder: Path) -> Part | None:
    """The classifier, autoencoder or text encoder of a model's or a run's folder; None for all
    else.
    """
    if Autoencoder.at(folder):
        return Autoencoder.load(folder)
    for home in (folder, folder / "student"):
        file = home / "model.json"
        described = read_json(file) if file.is_file() else {}
        if isinstance(described, dict) and "classifier" in described:
            return Classifier.load(folder)
        if isinstance(described, dict) and "pictures" in described:
            return Clip.load(folder)
    return None


def print_part(part: Part, folder: Path) -> None:
    """What it is, its card, and how its run went."""
    parameters = sum(p.numel() for p in part.network.parameters())
    facts = {
        "model": f"{kind_of(type(part))}, {parameters:,} parameters",
        "samples": "×".join(map(str, part.shape)),
    }
    print_facts({**facts, **told_of_card(part.card)})
    status = folder / "status.json"
    if status.is_file():
        print_facts(told_of_run(folder, read_json(status)))


def told_of_run(folder: Path, status: Mapping[str, Any]) -> dict[str, str]:
    """How a run went: where it stands, how long it took, with what, and the last line of its
    log.
    """
    state = f"{status.get('state')}, step {status.get('step')} of {status.get('steps')}"
    told = {"run": state + (f" ({status['reason']})" if status.get("reason") else "")}
    if seconds := status.get("seconds"):
        told["time"] = lasted(seconds)
        if threads := status.get("threads"):
            told["time"] += f", {counted(threads, 'thread')}"
    written = datetime.datetime.fromtimestamp((folder / "status.json").stat().st_mtime)
    told["written"] = f"{written:%Y-%m-%d %H:%M}"
    for line in read_log(folder / "log.jsonl")[-1:]:
        numbers = [f"{name} {value:.4g}" for name, value in line.items() if name != "step"]
        told["last numbers"] = ", ".join(numbers)
    return told
