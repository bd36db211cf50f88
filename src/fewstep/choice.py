"""`Choice`: the base of everything that a run file, a command line or `model.json` names by its
class.

The object is the configuration. A choice is a frozen dataclass; its fields are its options.
`dump()` writes it as plain data, `parse()` reads it back and validates every field, with errors
that name the dotted path and the nearest valid name. There is no second description anywhere.

    PseudoHuber(c=0.03).dump()                        # {"kind": "pseudo_huber", "c": 0.03}
    Distance.parse({"kind": "pseudo_huber", "c": 0.03})  # PseudoHuber(c=0.03)
    Distance.parse("pseudo_huber")                       # its defaults
"""

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from fewstep import plugins
from fewstep.meant import did_you_mean, option_meant
from fewstep.yaml import typed

if TYPE_CHECKING:
    from pydantic_core import PydanticCustomError

MOST = 2**31 - 1  # of whole numbers, where an option says no other limit
SEEDS = 2**63  # no seed reaches this
MANY = 2**20  # of what has its place in memory: rows, bins, classes, steps of a sampler
Count = Annotated[int, Ge(1), Le(MANY)]
Natural = Annotated[int, Ge(0), Le(MOST)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
NonNegative = Annotated[float, Ge(0)]
Seed = Annotated[int, Ge(-SEEDS), Lt(SEEDS)]
Logarithm = Annotated[float, Ge(-50), Le(50)]
Share = Annotated[float, Ge(0), Le(1)]
Spread = Annotated[float, Ge(1e-6), Le(1e6)]
Rho = Annotated[float, Ge(0.1), Le(1000)]
Rows = Annotated[int, Ge(2), Le(1_000_000)]
Width = Annotated[int, Ge(1), Le(16_384)]
Depth = Annotated[int, Ge(1), Le(512)]
Decay = Annotated[float, Ge(0), Lt(1)]


def kind_of(cls: type) -> str:
    """The name of a class in files and on the command line: `CmBoundary` -> `cm_boundary`,
    `Dpmpp2m` -> `dpmpp_2m`.
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z])(?=[0-9])", "_", cls.__name__).lower()


def flat(name: str) -> str:
    """A kind without what its spellings differ in: `pseudo_huber`, `PseudoHuber`."""
    return name.replace("_", "").replace("-", "").lower()


class Choice:
    """Base of all named alternatives; subclasses are frozen dataclasses, abstract or final.

    `folder`: the package whose files hold the alternatives (one file each), searched by name; None
    where they stand beside the abstract class.
    """

    folder: ClassVar[str | None] = None

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """All concrete alternatives by name, of fewstep and of plug-ins. Imports the folder.

        Where two have one name the first is given, fewstep's own; `parse` refuses that name.
        """
        return {name: alike[0] for name, alike in cls._by_name().items()}

    @classmethod
    def _by_name(cls) -> dict[str, list[type[Self]]]:
        """All concrete alternatives by name, with those that have the same one."""
        plugins.load_installed()
        if cls.folder is not None:
            package = importlib.import_module(cls.folder)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{cls.folder}.{module.name}")
        found: dict[str, dict[str, type[Self]]] = {}
        for one in _family(cls):
            if not inspect.isabstract(one) and _unfit(one) is None:
                # Of one module the last: a notebook's cell was run again.
                found.setdefault(kind_of(one), {})[one.__module__] = one
        return {name: list(alike.values()) for name, alike in sorted(found.items())}

    @classmethod
    def offered(cls) -> dict[str, type[Self]]:
        """The kinds that users choose from: without what fewstep keeps outside the folder for its
        own use, as the training of its classifiers.
        """
        found = cls.kinds()
        if cls.folder is None:
            return found
        places = ("fewstep.", f"{cls.folder}.")
        return {
            name: kind
            for name, kind in found.items()
            if kind.__module__.startswith(places[1]) or not kind.__module__.startswith(places[0])
        }

    @classmethod
    def parse(cls, value: Any) -> Self:
        """A validated choice from plain data: a mapping with `kind`, or the kind alone.

        Raises `pydantic.ValidationError` (a ValueError) with every error and its path.
        """
        if isinstance(value, cls):
            return value
        value = cls.spelled(value)
        if not isinstance(value, Mapping):
            raise _error(f"expected a name or a mapping with its options, got {value!r}")
        fields = dict(value)
        return cls._kind(fields.pop("kind", None))._validated(fields)

    @classmethod
    def spelled(cls, value: Any) -> Any:
        """The mapping that a shorter spelling stands for: a string alone is a kind. Of a value that
        was typed, `fewstep.yaml.settled(value)` is the number that it may stand for.
        """
        return {"kind": value} if isinstance(value, str) else value

    def dump(self) -> dict[str, Any]:
        """Plain data (str, numbers, lists, mappings) from which `parse` makes an equal object."""
        named = Choice not in type(self).__bases__
        head = {"kind": kind_of(type(self))} if named else {}
        return head | {name: plain(value) for name, value in _values(self).items()}

    def checked(self) -> Self:
        """An equal object whose fields, and those of the choices inside, were validated as those
        of a file are: for what was built in Python.

        Raises `pydantic.ValidationError` (a ValueError) with every error and its path.
        """
        return self._validated(_values(self))

    def noted(self) -> dict[str, Any]:
        """`dump` for a file, which also notes the plug-ins of the choices in it."""
        made_with = origins([self])
        return self.dump() | ({"plugins": made_with} if made_with else {})

    @classmethod
    def _kind(cls, name: Any) -> type[Self]:
        """The class that a name stands for; itself where a single class needs no name."""
        if name is None:
            if inspect.isabstract(cls):
                raise _error(f"needs `kind`, one of: {', '.join(cls.offered())}")
            return cls
        wanted = flat(str(name))
        for kind, alike in cls._by_name().items():
            if flat(kind) == wanted:
                if len(alike) > 1:
                    modules = ", ".join(f"one in {one.__module__}" for one in alike)
                    raise _error(f"two {kind_of(cls)}s are called {kind}: {modules}")
                return alike[0]
        raise _error(f"unknown {kind_of(cls)} {str(name)!r}{cls._remedy(str(name))}")

    @classmethod
    def _remedy(cls, name: str) -> str:
        """What a user can do about a name that is no kind."""
        if told := plugins.remedy(name):
            return told
        alike = [one for one in _family(cls) if flat(one.__name__) == flat(name)]
        if alike and (reason := _unfit(alike[-1])) is not None:
            return f": {reason}"
        return did_you_mean(name, list(cls.offered()))

    @classmethod
    def _validated(cls, fields: dict[str, Any]) -> Self:
        from pydantic import ValidationError
        from pydantic_core import InitErrorDetails

        try:
            return cls(**_checker(cls).validate_python(_typed(cls, fields)))  # type: ignore[arg-type]
        except ValidationError as error:
            rewritten = []
            for e in error.errors(include_url=False):
                message = e["msg"]
                if e["type"] == "int_parsing_size":  # pydantic's words name no limit
                    message = "Input should be between -2^63 and 2^63"
                if e["type"] == "extra_forbidden" and len(e["loc"]) == 1:
                    name = str(e["loc"][0])
                    own = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
                    meant = option_meant(name, e["input"], fields, own)
                    message = f"{kind_of(cls)} has no option {name!r}{meant}"
                rewritten.append(
                    InitErrorDetails(type=_error(message), loc=e["loc"], input=e["input"])
                )
            raise ValidationError.from_exception_data(cls.__name__, rewritten) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def inner(value: Any) -> Any:
            return value.checked() if isinstance(value, cls) else cls.parse(value)

        return core_schema.no_info_plain_validator_function(inner)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _typed(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, what was typed as what its option takes; ValidationError where it is no YAML."""
    from pydantic import ValidationError
    from pydantic_core import InitErrorDetails

    hints, found, wrong = _hints(cls), {}, []
    for name, value in fields.items():
        try:
            found[name] = typed(value, hints[name]) if name in hints else value
        except ValueError as error:
            wrong.append(InitErrorDetails(type=_error(str(error)), loc=(name,), input=value))
    if wrong:
        raise ValidationError.from_exception_data(cls.__name__, wrong)
    return found


@functools.cache
def _checker(cls: Any) -> Any:
    """Checks the given fields of one class; what is not given keeps the dataclass's default."""
    from typing import NotRequired

    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict

    made: Any = TypedDict
    hints = _hints(cls)
    fields = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        fields[field.name] = hint if needed(field) else NotRequired[hint]
    checked = made(cls.__name__, fields)
    checked.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return TypeAdapter(checked)


def needed(field: dataclasses.Field[Any]) -> bool:
    """Whether an option has no default."""
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def replaced(choice: Choice, **fields: Any) -> Any:
    """A copy with some fields changed and checked, as `dataclasses.replace` but through the
    validation.
    """
    return type(choice)._validated(_values(choice) | fields)


def origins(choices: Sequence[Choice]) -> dict[str, str]:
    """The plug-ins that choices and those inside them come from: kind -> plug-in."""
    found: dict[str, str] = {}
    for one in _inside(choices):
        source = plugins.origin(type(one))
        if source is not None:
            found[kind_of(type(one))] = source
    return found


def _family(cls: type[Any]) -> Iterator[type[Any]]:
    """A class and all below it, each level in the order of definition."""
    yield cls
    for one in cls.__subclasses__():
        yield from _family(one)


def _unfit(cls: type[Choice]) -> str | None:
    """Why a class from outside cannot be named; None where it can."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    if not plugins.counts(cls):
        return f"{name} is of no plug-in; give --plugin (in Python: fewstep.plugins.load)"
    if inspect.isabstract(cls):
        left_out = ", ".join(sorted(cls.__abstractmethods__))  # type: ignore[attr-defined]
        return None if cls.__module__.startswith("fewstep.") else f"{name} leaves out {left_out}"
    settings = vars(cls).get("__dataclass_params__")
    if settings is None or not settings.frozen:
        return f"{name} is no frozen dataclass; put @dataclass(frozen=True) above it"
    return None


def _inside(value: Any) -> Iterator[Choice]:
    """All choices in a value, itself among them."""
    if isinstance(value, Choice):
        yield value
        value = list(_values(value).values())
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _inside(one)


def _values(choice: Choice) -> dict[str, Any]:
    return {f.name: getattr(choice, f.name) for f in dataclasses.fields(choice)}  # type: ignore[arg-type]


def _error(message: str) -> "PydanticCustomError":
    from pydantic_core import PydanticCustomError

    return PydanticCustomError("choice", "{message}", {"message": message})


def plain(value: Any) -> Any:
    """Choices, alone, in lists or by name, as a file holds them."""
    if isinstance(value, Choice):
        return value.dump()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
