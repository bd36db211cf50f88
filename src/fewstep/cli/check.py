"""`fewstep check`."""

import inspect
import sys
from types import ModuleType

from fewstep import plugins
from fewstep.choice import flat, kind_of
from fewstep.contracts.laws import Verdict, named, verdicts
from fewstep.learning.method import Method


def check(what: str, method: str | None, law: list[str]) -> None:
    """Brings methods before the laws. ValueError where one of them is broken, with what a method
    raised as its cause.
    """
    laws = named(law)
    broken: list[str] = []
    cause = None
    for cls in chosen(what, method):
        print(f"{kind_of(cls)} ({cls.__module__})")
        found = []
        for verdict in verdicts(cls, laws):
            print_verdict(verdict)
            found.append(verdict)
            cause = cause or verdict.error
        failed = [verdict.law for verdict in found if verdict.reason is not None]
        if left := len(laws) - len(found):
            print(f"  {left} laws of training were not tried")
        if failed:
            broken.append(f"{kind_of(cls)} breaks {', '.join(failed)}")
    if broken:
        raise ValueError("; ".join(broken)) from cause


def print_verdict(verdict: Verdict) -> None:
    """One line, as soon as it is known."""
    if verdict.reason is None:
        print(f"  passed  {verdict.law}", flush=True)
    else:
        print(f"  FAILED  {verdict.law}: {verdict.reason}", flush=True)


def chosen(what: str, method: str | None) -> list[type[Method]]:
    """The methods of a plug-in, or the one of that name. ValueError where there is none."""
    known = {flat(name): cls for name, cls in Method.offered().items()}
    if flat(what) in known:
        return [known[flat(what)]]
    found = methods_in(plugins.load(what))
    if not found:
        raise ValueError(f"{what} defines no method: no class in it derives from Method")
    if method is None:
        return found
    wanted = [cls for cls in found if flat(kind_of(cls)) == flat(method)]
    if not wanted:
        names = ", ".join(kind_of(cls) for cls in found)
        raise ValueError(f"{what} defines no method {method!r}; it has {names}")
    return wanted


def methods_in(module: ModuleType) -> list[type[Method]]:
    """The methods that a module, or what is below it, defines. ValueError for one that cannot be
    named in a run.
    """
    place = module.__name__
    found: list[type[Method]] = []
    for name in sorted(sys.modules):
        if name == place or name.startswith(f"{place}."):
            found += _defined(sys.modules[name])
    return found


def _defined(module: ModuleType) -> list[type[Method]]:
    kinds = Method.kinds()
    found = []
    for one in vars(module).values():
        if not inspect.isclass(one) or not issubclass(one, Method):
            continue
        is_base = inspect.isabstract(one) and one.__subclasses__()
        if one.__module__ != module.__name__ or is_base:
            continue
        if kinds.get(kind_of(one)) is not one:
            Method.parse(kind_of(one))  # which says what is wrong with the class
        found.append(one)
    return found
