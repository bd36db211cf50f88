"""`Choice`: every named alternative of the package survives a file, and every mistake is named with
its path.
"""

import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import random
import re
import typing

import pytest
from pydantic import ValidationError

import fewstep
from fewstep.choice import Choice, did_you_mean, kind_of, replaced
from fewstep.data.digits import Digits
from fewstep.data.source import Source
from fewstep.diffusion.densities import LogNormal
from fewstep.diffusion.parameterization import ConsistencyBoundary, Edm, Epsilon, Parameterization
from fewstep.diffusion.samplers import Ode, Renoise, Sampler
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Solver
from fewstep.diffusion.times import Explicit, Karras, Strided, Times, Trailing
from fewstep.learning.losses import Distance, PseudoHuber
from fewstep.learning.method import Method
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.methods.diffusion import Diffusion
from fewstep.models.source import Fresh, ModelSource, Saved
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.optimizers import AdamW, OptimizerSpec, Sgd
from fewstep.training.trainer import TrainerConfig
from fewstep.yaml import from_yaml, to_yaml


def concrete():
    """Every concrete choice that the package defines (other tests define some of their own)."""
    for module in pkgutil.walk_packages(fewstep.__path__, "fewstep."):
        importlib.import_module(module.name)
    found, waiting = [], [Choice]
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        own = one.__module__.startswith("fewstep.") and "__dataclass_fields__" in vars(one)
        if own and not inspect.isabstract(one) and one not in found:  # met once for each base
            found.append(one)
    return sorted(found, key=lambda cls: cls.__name__)


CONCRETE = concrete()
FAMILIES = sorted(
    {c for c in Choice.__subclasses__() if c.__module__.startswith("fewstep.")},
    key=lambda c: c.__name__,
)
NEEDED = {Run: {"data": Digits(), "method": Diffusion()}, Saved: {"path": "runs/x"}}


def family(cls):
    """The direct child of `Choice` above a class: what a field of that type parses with."""
    return next(base for base in cls.__mro__ if Choice in base.__bases__)


def named(choices):
    return pytest.mark.parametrize("cls", choices, ids=lambda c: c.__name__)


def leaves(value):
    """All values inside plain data."""
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def another(choice, name):
    """The same choice with one field changed to any other value that it accepts; None where there
    is no other.
    """
    now, hint = getattr(choice, name), typing.get_type_hints(type(choice))[name]
    literals = [v for part in (hint, *typing.get_args(hint)) for v in typing.get_args(part)]
    plain = [
        3,
        8,
        64,
        2000,
        0.25,
        0.5,
        1.5,
        "text",
        True,
        False,
        (2, 3),
        (0.5, 0.25),
        ("s",),
        ("SIGUSR1",),
        ((0.5,),),
        {"student": Sgd()},
        {"name": 3},
    ]
    inside = (
        [another(now, field.name) for field in dataclasses.fields(now)]
        if isinstance(now, Choice)
        else []
    )
    for value in [*plain, *literals, *inside, *(c() for c in CONCRETE if c not in NEEDED)]:
        try:
            made = replaced(choice, **{name: value})
        except ValueError:
            continue
        if getattr(made, name) != now:
            return made
    assert dataclasses.fields(now) == (), f"{type(choice).__name__}.{name} takes no other value"
    assert len([c for c in CONCRETE if issubclass(c, family(type(now)))]) == 1
    return None


@named(CONCRETE)
class TestRoundTrip:
    def variants(self, cls):
        """The defaults, and the defaults with each field changed in turn: a field that is not
        dumped would show.
        """
        first = cls(**NEEDED.get(cls, {}))
        changed = [another(first, field.name) for field in dataclasses.fields(cls)]
        return [first, *(choice for choice in changed if choice is not None)]

    def test_plain_data_and_back(self, cls):
        for choice in self.variants(cls):
            plain = choice.dump()
            assert all(
                leaf is None or type(leaf) in (str, bool, int, float) for leaf in leaves(plain)
            ), plain
            assert family(cls).parse(plain) == choice
            assert family(cls).parse(plain).dump() == plain

    def test_yaml_and_json_and_back(self, cls):
        for choice in self.variants(cls):
            assert family(cls).parse(from_yaml(to_yaml(choice.dump()), "test")) == choice
            assert family(cls).parse(json.loads(json.dumps(choice.dump()))) == choice

    def test_the_kind_comes_first_where_there_is_a_choice(self, cls):
        plain = cls(**NEEDED.get(cls, {})).dump()
        if family(cls) is cls:
            assert "kind" not in plain
        else:
            assert next(iter(plain.items())) == ("kind", kind_of(cls))

    def test_a_name_alone_means_the_defaults(self, cls):
        if cls not in NEEDED and family(cls) is not cls:
            assert family(cls).parse(kind_of(cls)) == cls()
            assert family(cls).parse({"kind": kind_of(cls)}) == cls()

    def test_the_name_of_the_class_is_accepted_too(self, cls):
        if cls not in NEEDED and family(cls) is not cls:
            for spelling in (cls.__name__, kind_of(cls).replace("_", "-"), kind_of(cls).upper()):
                assert family(cls).parse({"kind": spelling}) == cls()


@named(FAMILIES)
def test_no_name_twice(cls):
    """`kinds` is a mapping: a second class of the same name would silently hide the first."""
    mine = [c for c in CONCRETE if issubclass(c, cls)]
    spellings = [re.sub("[_-]", "", kind_of(c)) for c in mine]
    assert len(set(spellings)) == len(mine)
    assert {k: c for k, c in cls.kinds().items() if c.__module__.startswith("fewstep.")} == {
        kind_of(c): c for c in mine
    }
    assert list(cls.kinds()) == sorted(cls.kinds())
    for name, found in cls.kinds().items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert not inspect.isabstract(found)


def test_names_as_the_documents_write_them():
    assert kind_of(PseudoHuber) == "pseudo_huber"
    assert kind_of(Dpmpp2m) == "dpmpp_2m"
    assert kind_of(UNet) == "unet"
    assert kind_of(AdamW) == "adam_w"


def test_an_object_is_taken_as_it_is():
    karras = Karras(rho=3.0)
    assert Times.parse(karras) is karras
    assert Times.parse(Strided(of=karras)).of is karras


def test_choices_nest():
    plain = {
        "kind": "ode",
        "steps": 4,
        "solver": "euler",
        "times": {"kind": "strided", "of": {"kind": "karras", "rho": 5}, "total": 8},
    }
    assert Sampler.parse(plain) == Ode(4, Strided(Karras(rho=5.0), 8), Euler())
    boundary = ConsistencyBoundary(of=ConsistencyBoundary(of=Epsilon()))
    assert Parameterization.parse(boundary.dump()) == boundary


def test_choices_inside_a_mapping_and_a_union():
    plain = {"optimizers": {"critic": {"kind": "sgd", "lr": 0.5}}}
    assert TrainerConfig.parse(plain).optimizers == {"critic": Sgd(lr=0.5)}
    assert Method.parse({"kind": "consistency_training", "density": None}) == ConsistencyTraining(
        density=None
    )
    assert Method.parse({"kind": "easy_consistency", "solver": "euler"}).solver == Euler()


def test_numbers_become_the_type_of_their_field():
    assert Karras.parse({"rho": 5}).rho == 5.0
    assert isinstance(Karras.parse({"rho": 5}).rho, float)
    assert UNet.parse({"multipliers": [1, 2]}).multipliers == (1, 2)
    assert Explicit.parse({"between": [[0.8], [2.5, 0.8]]}).between == ((0.8,), (2.5, 0.8))


def problems(parse, plain):
    """{dotted path: message} of every error."""
    with pytest.raises(ValidationError) as caught:
        parse(plain)
    return {".".join(map(str, e["loc"])): e["msg"] for e in caught.value.errors()}


def test_all_errors_at_once_with_their_paths():
    found = problems(
        Run.parse,
        {
            "data": {"kind": "digits", "limit": -1},
            "method": {
                "kind": "consistency_distillation",
                "bin": 3,
                "distance": "pseudo_hubr",
                "times": {"rho": 0},
            },
            "trainer": {
                "steps": "abc",
                "optimizer": {"kind": "adam_w", "lr": 0},
                "optimizers": {"critic": "lion"},
            },
            "teacher": {"kind": "fresh", "network": {"kind": "unet", "multipliers": [1, 0]}},
            "dropout": 2,
            "trainr": {},
        },
    )
    assert set(found) == {
        "data.limit",
        "method.bin",
        "method.distance",
        "method.times",
        "trainer.steps",
        "trainer.optimizer.lr",
        "trainer.optimizers.critic",
        "teacher.network.multipliers.1",
        "dropout",
        "trainr",
    }
    assert "did you mean bins" in found["method.bin"]
    assert "pseudo_huber" in found["method.distance"]
    assert "did you mean trainer" in found["trainr"]
    assert "kind" in found["method.times"]
    assert "adam_w" in found["trainer.optimizers.critic"]


def test_what_is_missing_is_named():
    """A run file without its data is a mistake of the user, with a path like every other one."""
    found = problems(Run.parse, {"trainer": {"steps": 0}})
    assert set(found) == {"data", "method", "trainer.steps"}
    assert set(problems(ModelSource.parse, {"kind": "saved"})) == {"path"}
    assert set(
        problems(Run.parse, {"data": "digits", "method": "diffusion", "teacher": {"kind": "saved"}})
    ) == {"teacher.path"}


@pytest.mark.parametrize(
    ("base", "value", "message"),
    [
        (Distance, "pseudo_hubr", "did you mean pseudo_huber"),
        (Solver, {"kind": "hoin"}, "midpoint"),
        (Distance, {"c": 1}, "kind"),
        (Distance, {"kind": None, "c": 1}, "kind"),
        (Distance, 3, "mapping"),
        (Distance, None, "mapping"),
        (Distance, ["squared"], "mapping"),
        (Source, "digit", "did you mean digits"),
        (OptimizerSpec, {"kind": ["sgd"]}, "unknown"),
        (Method, {"kind": "difusion", "x": 1}, "did you mean diffusion"),
    ],
)
def test_a_wrong_kind(base, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        base.parse(value)


@pytest.mark.parametrize(
    ("base", "plain", "path"),
    [
        (Times, {"kind": "karras", "rho": 0}, "rho"),
        (Times, {"kind": "karras", "rho": -1}, "rho"),
        (Times, {"kind": "karras", "rho": math.nan}, "rho"),
        (Times, {"kind": "karras", "end": "t_maxx"}, "end"),
        (Sampler, {"kind": "ode", "steps": 0}, "steps"),
        (Sampler, {"kind": "ode", "steps": 1.5}, "steps"),
        (Sampler, {"kind": "ode", "churn": -1}, "churn"),
        (Sampler, {"kind": "flow_map", "gamma": 1.01}, "gamma"),
        (OptimizerSpec, {"kind": "adam_w", "beta1": 1.0}, "beta1"),
        (OptimizerSpec, {"kind": "adam_w", "lr": "fast"}, "lr"),
        (OptimizerSpec, {"kind": "adam_w", "lr": math.inf}, "lr"),
        (Source, {"kind": "digits", "fraction": 1.1}, "fraction"),
        (Source, {"kind": "digits", "split": "Train"}, "split"),
        (TrainerConfig, {"ema": [0.9, 1.0]}, "ema.1"),
        (TrainerConfig, {"batch": 0}, "batch"),
        (TrainerConfig, {"precision": "fp8"}, "precision"),
    ],
)
def test_constraints(base, plain, path):
    assert list(problems(base.parse, plain)) == [path]


def test_rules_between_fields_are_kept_inside_a_run():
    with pytest.raises(ValueError, match="first=100"):
        ConsistencyTraining(first=100, last=10)
    found = problems(
        Run.parse,
        {"data": "digits", "method": {"kind": "consistency_training", "first": 9, "last": 3}},
    )
    assert list(found) == ["method"]
    assert "first=9" in found["method"]
    assert (
        "ema"
        in problems(Run.parse, {"data": "digits", "method": "diffusion", "trainer": {"ema": []}})[
            "trainer"
        ]
    )


def test_explicit_times_must_decrease():
    with pytest.raises(ValueError, match="must decrease"):
        Explicit(((0.5, 0.8),))
    with pytest.raises(ValueError, match="must decrease"):
        Explicit(((0.8,), (2.5, 2.5)))
    with pytest.raises(ValueError, match="must decrease"):
        Times.parse({"kind": "explicit", "between": [[0.5, 0.8]]})
    assert list(
        problems(
            Sampler.parse, {"kind": "renoise", "times": {"kind": "explicit", "between": [[1, 2]]}}
        )
    ) == ["times"]
    assert Explicit(((2.5, 0.8, 0.3),)).between == ((2.5, 0.8, 0.3),)


def test_replaced_checks_and_keeps_the_original():
    first = Renoise(steps=2)
    assert replaced(first, steps=4) == Renoise(steps=4)
    assert first.steps == 2
    assert replaced(first, times="trailing") == Renoise(2, Trailing())
    with pytest.raises(ValidationError):
        replaced(first, steps=0)
    with pytest.raises(ValidationError, match="did you mean steps"):
        replaced(first, step=3)


def test_choices_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Edm().sigma_data = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "value", ["runs/mine", {"path": "runs/mine"}, {"kind": "saved", "path": "runs/mine"}]
)
def test_a_path_is_a_saved_model(value):
    assert ModelSource.parse(value) == Saved("runs/mine")


def test_a_saved_model_takes_the_average_that_the_command_line_gives():
    """teacher=runs/mine teacher.ema=0.9995: YAML reads the number, and the name before it becomes a
    mapping.
    """
    assert ModelSource.parse({"kind": "saved", "path": "runs/mine", "ema": 0.9995}) == Saved(
        "runs/mine", "0.9995"
    )
    assert ModelSource.parse({"kind": "runs/mine", "ema": 0.9995}) == Saved("runs/mine", "0.9995")


def test_a_kind_is_a_new_network():
    assert ModelSource.parse("fresh") == Fresh()
    assert ModelSource.parse({"kind": "fresh", "null": False}) == Fresh(null=False)


def test_did_you_mean():
    assert did_you_mean("bin", ["bins", "batch", "steps"]) == "; did you mean bins?"
    assert did_you_mean("qqqq", ["b", "a"]) == "; valid: a, b"
    assert did_you_mean("x", []) == "; valid: none"


def test_damaged_run_files_are_refused_without_a_crash():
    """Leaves of a valid run replaced by nonsense, 100 times: a valid run or a ValueError, never
    another error.
    """
    shuffle = random.Random(0)
    nonsense = [
        None,
        -1,
        0,
        1e400,
        "",
        "text",
        [],
        {},
        [1, "a"],
        {"kind": "x"},
        {"a": {"b": 1}},
        True,
        "runs/x",
        math.nan,
    ]
    plain = Run(Digits(), ConsistencyTraining(density=LogNormal()), Fresh(), Saved("x"), 0.1).dump()

    def places(value, path=()):
        yield path
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from places(inner, (*path, key))

    everywhere = [path for path in places(plain) if path]
    refused = 0
    for _ in range(100):
        broken = json.loads(json.dumps(plain))
        for path in shuffle.sample(everywhere, 2):
            inner = broken
            for key in path[:-1]:
                inner = inner.get(key, {}) if isinstance(inner, dict) else {}
            if shuffle.random() < 0.3 and isinstance(inner, dict):
                inner.pop(path[-1], None)
            elif isinstance(inner, dict):
                inner[path[-1]] = shuffle.choice(nonsense)
        try:
            assert isinstance(Run.parse(broken), Run)
        except ValueError:
            refused += 1
    assert refused > 30
