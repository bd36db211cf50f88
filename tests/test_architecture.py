"""The rules of the house (docs/architecture.md), held by a test."""

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import get_type_hints

import pytest
from tools.reading import LONGEST_TEST, too_dear

from fewstep.choice import Choice
from fewstep.contracts.written import loop_words

HOME = Path(__file__).parent.parent / "src" / "fewstep"
FILES = sorted(HOME.rglob("*.py"))
ROOMS = [
    *(
        "errors",
        "text",
        "meant",
        "plugins",
        "yaml",
        "choice",
        "options",
        "files",
        "finite",
        "images",
        "diffusion",
        "models",
        "learning",
        "methods",
        "data",
        "parts",
        "metrics",
    ),
    *("training", "export", "report", "run", "begun", "contracts", "recipes", "cli", "app"),
]
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def name_of(path):
    return str(path.relative_to(HOME))


def room_of(path):
    first = path.relative_to(HOME).parts[0]
    return first.removesuffix(".py")


def imports(path):
    """Every module of fewstep that the file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (
                [f"{node.module}.{a.name}" for a in node.names]
                if node.module == "fewstep"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path):
    room = room_of(path)
    if room == "__init__":
        return
    for module in imports(path):
        if not module.startswith("fewstep."):
            continue
        other = module.split(".")[1]
        if other in ROOMS:
            assert ROOMS.index(other) <= ROOMS.index(room), (
                f"{name_of(path)} imports {module}, which lies above it"
            )
        if room in ("training", "data", "metrics"):
            assert other != "methods", f"{name_of(path)} knows a method"


def test_the_mathematics_imports_torch_and_nothing_else():
    allowed = {"torch", "jaxtyping", "fewstep"}
    standard = {
        "__future__",
        "abc",
        "collections",
        "dataclasses",
        "functools",
        "hashlib",
        "math",
        "typing",
    }
    for path in (HOME / "diffusion").glob("*.py"):
        for module in imports(path):
            root = module.split(".")[0]
            assert root in allowed | standard, f"{name_of(path)} imports {module}"
            if root == "fewstep":
                assert module.startswith(("fewstep.diffusion", "fewstep.choice")), (
                    f"{name_of(path)} imports {module}"
                )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_a_reader_pays(path):
    """docs/architecture.md, "Reading"."""
    found = list(too_dear(path))
    assert not found, "\n".join(found)


def test_tests_are_short_too():
    here = Path(__file__).parent
    long = {
        str(path.relative_to(here))
        for path in here.rglob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_TEST
    }
    assert not long


def test_names_explain():
    for path in FILES:
        assert not FORBIDDEN_NAMES & {
            part.removesuffix(".py") for part in path.relative_to(HOME).parts
        }


@pytest.mark.parametrize("path", sorted((HOME / "methods").glob("[!_]*.py")), ids=name_of)
def test_methods_know_no_loop(path):
    text = path.read_text(encoding="utf-8")
    assert not loop_words(text), name_of(path)


def test_the_loop_knows_no_method():
    for path in (HOME / "training").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "isinstance(method" not in text
        assert "isinstance(self.method" not in text


def test_no_probing_and_no_second_way_to_name_prediction_types():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "hasattr(" not in text, name_of(path)
        assert "nan_to_num" not in text, name_of(path)
        assert "weights_only=False" not in text, name_of(path)
        if path.name != "parameterization.py":
            assert "prediction_type" not in text, name_of(path)


def all_choices():
    import importlib
    import pkgutil

    import fewstep

    for module in pkgutil.walk_packages(fewstep.__path__, "fewstep."):
        importlib.import_module(module.name)
    waiting, found = [Choice], []
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if (
            one is not Choice
            and one.__module__.startswith("fewstep.")
            and "__dataclass_fields__" in vars(one)
        ):
            found.append(one)
    return found


def test_choices_are_frozen_and_hold_no_callables():
    for cls in all_choices():
        assert cls.__dataclass_params__.frozen, cls
        for field in dataclasses.fields(cls):
            assert "Callable" not in str(get_type_hints(cls)[field.name]), (
                f"{cls.__name__}.{field.name}"
            )


def test_classes_are_abstract_or_final_and_shallow():
    """Composition by wrapping: below `Choice` and nn.Module at most two levels, and nothing below a
    concrete choice.
    """
    for cls in all_choices():
        if inspect.isabstract(cls):
            continue
        assert not [c for c in cls.__subclasses__() if c.__module__.startswith("fewstep.")], (
            f"{cls.__name__} is not final"
        )
