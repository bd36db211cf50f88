"""docs/options.md: every option of everything that can be named, from the text that `fewstep
inspect` shows.

python tools/options.py    # `make docs`; tests/test_options.py holds that the page is up to date
"""

from pathlib import Path

from fewstep.choice import Choice, kind_of
from fewstep.options import Option, about, families, options_of

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
HEAD = """# Options

Written by `make docs` from the sentences in the source; `fewstep inspect NAME` shows the same,
with plug-ins. The options of a run are under [run](#run). On the command line a dotted path leads
to an option: `trainer.optimizer.lr=1e-4`, `method.times=karras method.times.rho=5`. What stands
behind `=` where the type is text, a name or a kind is taken as it stands ([cli.md](cli.md)).
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for family in families():
        kinds = {name: cls for name, cls in family.offered().items() if ours(cls)}
        if family in kinds.values():
            parts += [f"## {kind_of(family)}\n", table(family)]
            continue
        parts.append(f"## {kind_of(family)}\n\n{about(family)}\n")
        for name, cls in kinds.items():
            parts += [f"### {name}\n\n{about(cls)}\n", table(cls)]
    return "\n".join(part for part in parts if part)


def ours(cls: type[Choice]) -> bool:
    """Whether a kind is of the package, not of a plug-in."""
    return cls.__module__.startswith("fewstep.")


def table(cls: type[Choice]) -> str:
    """A row for each option; nothing where there are none."""
    options = options_of(cls)
    if not options:
        return ""
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    for option in options:
        default = "needed" if option.default is None else f"`{option.default}`"
        rows.append(f"| `{option.name}` | {words(option)} | {default} | {option.sentence} |")
    return "\n".join(rows) + "\n"


def words(option: Option) -> str:
    """The type, with links to the kinds that it takes."""
    text = option.words.replace("|", "\\|")
    for family in dict.fromkeys(option.families):
        name = kind_of(family)
        text = text.replace(name, f"[{name}](#{name})")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
