"""What lies in a folder: every file is taken once, or counted with the reason why not."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

DEPTH = 10
OF_SYSTEMS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
NAMED = 3  # files that are named for each reason

Passed = tuple[Path, str]  # what is passed over, and why
Above = tuple[tuple[int, int], ...]  # the numbers of the folders that hold one, by the system


@dataclass
class Tree:
    """A folder. inner: by name, in their order, sub-folders and the files that a source can read.
    others: what it cannot.
    """

    path: Path
    inner: dict[str, Tree | Path] = field(default_factory=dict)
    others: list[Passed] = field(default_factory=list)

    @property
    def folders(self) -> dict[str, Tree]:
        """The sub-folders by name."""
        return {name: one for name, one in self.inner.items() if isinstance(one, Tree)}

    @property
    def loose(self) -> list[Path]:
        """The files that lie in no sub-folder."""
        return [one for one in self.inner.values() if isinstance(one, Path)]

    def files(self) -> list[Path]:
        """All files that can be read, by name."""
        found = []
        for one in self.inner.values():
            found.extend(one.files() if isinstance(one, Tree) else [one])
        return found

    def passed(self) -> list[Passed]:
        """All that cannot, and empty folders."""
        found = list(self.others)
        for one in self.folders.values():
            found.extend(one.passed() or ([] if one.inner else [(one.path, "empty folder")]))
        return found


def walk(path: Path, suffixes: Collection[str] | None = None, depth: int = DEPTH) -> Tree:
    """The tree of a folder, `depth` levels of it, or of a file alone; suffixes: of the files that
    can be read, None for all. OSError where a folder cannot be looked into.
    """
    if path.is_dir():
        return _walk(path, suffixes, depth, (), path.resolve())
    readable = path.is_file() and (suffixes is None or path.suffix.lower() in suffixes)
    return Tree(path, {path.name: path} if readable else {})


def _walk(
    path: Path, suffixes: Collection[str] | None, depth: int, above: Above, root: Path
) -> Tree:
    found, stat = Tree(path), path.stat()
    here = (*above, (stat.st_dev, stat.st_ino))
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            reason = _reason(entry, suffixes, depth, here, root)
            if reason:
                found.others.append((path / entry.name, reason))
            elif entry.is_dir():
                inner = _walk(path / entry.name, suffixes, depth - 1, here, root)
                found.inner[entry.name] = inner
            else:
                found.inner[entry.name] = path / entry.name
    return found


def _reason(
    entry: os.DirEntry[str],
    suffixes: Collection[str] | None,
    depth: int,
    here: Above,
    root: Path,
) -> str | None:
    """Why this is passed over; None where it is not."""
    if entry.name.startswith(".") or entry.name in OF_SYSTEMS:
        return "hidden"
    if entry.is_symlink():
        file = Path(entry.path)
        if not file.exists():  # also where links go round in circles
            return "link to nothing"
        stat, target = file.stat(), file.resolve()
        inside = target.is_relative_to(root) or root.is_relative_to(target)
        if (stat.st_dev, stat.st_ino) in here or (inside and target.is_dir()):
            return "link to a folder that is read itself"
    if entry.is_dir():
        return None if depth > 1 else "deeper folder"
    if not entry.is_file():
        return "special file"
    suffix = os.path.splitext(entry.name)[1].lower()  # faster than Path where files are many
    if suffixes is None or suffix in suffixes:
        return None
    return suffix or "no suffix"


def files_below(path: Path, depth: int = DEPTH) -> list[Path]:
    """The files in a folder and its sub-folders, `depth` levels in all, by name, without hidden
    ones; a file itself.
    """
    return walk(path, None, depth).files()


def passed_over(passed: Iterable[Passed], root: Path) -> dict[str, str]:
    """The note on what is passed over: how many for each reason, and the first of them by name;
    none where there is nothing.
    """
    by_reason: dict[str, list[str]] = {}
    for path, reason in passed:
        name = path.relative_to(root) if path.is_relative_to(root) else path
        by_reason.setdefault(reason, []).append(str(name))
    told = []
    for reason, names in by_reason.items():
        more = ", …" if len(names) > NAMED else ""
        told.append(f"{reason}: {len(names)} ({', '.join(names[:NAMED])}{more})")
    return {"passed over": "; ".join(told)} if told else {}


def left_beside(path: Path, taken: Collection[Path]) -> dict[str, str]:
    """The note on all that lies in a folder and was not taken; none for a file."""
    if not path.is_dir():
        return {}
    known = set(taken)
    passed = [one for one in walk(path, ()).passed() if one[0] not in known]
    return passed_over(passed, path)
