"""`Choice`: the base of everything that a run file, a command line or `model.json` names by its
class.

The object is the configuration. A choice is a frozen dataclass; its fields are its options.
`dump()` writes it as plain data, `parse()` reads it back and validates every field, with errors
that name the dotted path and the nearest valid name. There is no second description anywhere.

    PseudoHuber(c=0.03).dump()                        # {"kind": "pseudo_huber", "c": 0.03}
    Metric.parse({"kind": "pseudo_huber", "c": 0.03})  # PseudoHuber(c=0.03)
    Metric.parse("pseudo_huber")                       # its defaults
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]


def kind_of(cls: type) -> str:
    """The name of a class in files and on the command line: `CmBoundary` -> `cm_boundary`,
    `Dpmpp2m` -> `dpmpp_2m`.
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z])(?=[0-9])", "_", cls.__name__).lower()


def _flat(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def did_you_mean(name: str, valid: list[str]) -> str:
    """`"; did you mean bins?"`, or the list of valid names where nothing is close."""
    close = difflib.get_close_matches(name, valid, n=2, cutoff=0.6)
    return (
        f"; did you mean {' or '.join(close)}?"
        if close
        else f"; valid: {', '.join(sorted(valid)) or 'none'}"
    )


class Choice:
    """Base of all named alternatives; subclasses are frozen dataclasses, abstract or final.

    `folder`: the package whose files hold the alternatives (one file each), searched by name; None
    where they stand beside the abstract class.
    """

    folder: ClassVar[str | None] = None

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """All concrete alternatives by name. Imports every file of the folder."""
        if cls.folder is not None:
            package = importlib.import_module(cls.folder)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{cls.folder}.{module.name}")
        found: dict[str, type[Self]] = {}
        waiting: list[type[Self]] = [cls]
        while waiting:
            one = waiting.pop()
            waiting.extend(one.__subclasses__())
            if not inspect.isabstract(one) and "__dataclass_fields__" in vars(one):
                found[kind_of(one)] = one
        return dict(sorted(found.items()))

    @classmethod
    def parse(cls, value: Any) -> Self:
        """A validated choice from plain data: a mapping with `kind`, or the kind alone.

        Raises `pydantic.ValidationError` (a ValueError) with every error and its path.
        """
        if isinstance(value, cls):
            return value
        chosen, fields = cls._chosen(value)
        return chosen._validated(fields)

    def dump(self) -> dict[str, Any]:
        """Plain data (str, numbers, lists, mappings) from which `parse` makes an equal object."""
        named = Choice not in type(self).__bases__
        head = {"kind": kind_of(type(self))} if named else {}
        return head | {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def _chosen(cls, value: Any) -> tuple[type[Self], dict[str, Any]]:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            raise _error(f"expected a name or a mapping with its options, got {value!r}")
        fields = dict(value)
        name = fields.pop("kind", None)
        if name is None:
            if inspect.isabstract(cls):
                raise _error(f"needs `kind`, one of: {', '.join(cls.kinds())}")
            return cls, fields
        kinds = cls.kinds()
        by_name = {_flat(k): c for k, c in kinds.items()}
        if _flat(str(name)) not in by_name:
            raise _error(
                f"unknown {kind_of(cls)} {str(name)!r}{did_you_mean(str(name), list(kinds))}"
            )
        return by_name[_flat(str(name))], fields

    @classmethod
    def _validated(cls, fields: dict[str, Any]) -> Self:
        from pydantic import ConfigDict, ValidationError, create_model
        from pydantic_core import InitErrorDetails, PydanticCustomError

        hints = get_type_hints(cls, include_extras=True)
        names = {
            f.name: (hints[f.name], ...)
            for f in dataclasses.fields(cls)  # type: ignore[arg-type]
            if f.name in fields
            or (f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
        }
        own = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        model = create_model(cls.__name__, __config__=config, **names)  # type: ignore[call-overload]
        try:
            checked = model.model_validate(fields)
        except ValidationError as error:
            rewritten = []
            for e in error.errors(include_url=False):
                message = e["msg"]
                if e["type"] == "extra_forbidden" and len(e["loc"]) == 1:
                    message = (
                        f"{kind_of(cls)} has no option "
                        f"{str(e['loc'][0])!r}{did_you_mean(str(e['loc'][0]), own)}"
                    )
                rewritten.append(
                    InitErrorDetails(
                        type=PydanticCustomError("choice", "{message}", {"message": message}),
                        loc=e["loc"],
                        input=e["input"],
                    )
                )
            raise ValidationError.from_exception_data(cls.__name__, rewritten) from None
        return cls(**{name: getattr(checked, name) for name in names})

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(cls.parse)


def replaced(choice: Choice, **fields: Any) -> Any:
    """A copy with some fields changed and checked, as `dataclasses.replace` but through the
    validation.
    """
    return type(choice)._validated(
        {f.name: getattr(choice, f.name) for f in dataclasses.fields(choice)} | fields  # type: ignore[arg-type]
    )


def _error(message: str) -> Exception:
    from pydantic_core import PydanticCustomError

    return PydanticCustomError("choice", "{message}", {"message": message})


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.dump()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
