"""COCO: folders of pictures with annotations/captions_*.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from fewstep.choice import Natural
from fewstep.data.bounds import MOST_BYTES, memory_for
from fewstep.data.captions import Captions
from fewstep.data.dataset import Dataset
from fewstep.data.labels import listed
from fewstep.data.lazy import of_files
from fewstep.data.pictures import Channels, How, OnBad, left_out
from fewstep.data.source import Source, located
from fewstep.data.splits import check_sets, of_training
from fewstep.data.tree import files_below, left_beside
from fewstep.files import read_json
from fewstep.models.space import Space, image_space

PREFIX = "captions_"
FOLDER = "annotations"
TRIED = 100  # names that are looked for in each folder
WHAT = f"{FOLDER}/{PREFIX}*.json beside folders of pictures"


@dataclass(frozen=True)
class Coco(Source):
    """The folder that holds `annotations` and the pictures' folders, or one captions_*.json; that
    of the training set where there are others too. A picture has all of its captions, of which
    training draws one each time.
    """

    path: str = ""
    """The folder or file."""
    size: Natural = 0
    """Short side of a picture in pixels, its middle square is kept; 0 keeps sizes, which must be
    equal."""
    channels: Channels = "auto"
    """1 channel for grey, 3 for rgb; auto takes 1 if all pictures are grey."""
    on_bad: OnBad = "error"
    """skip leaves out what cannot be read, up to 1 % of all, each named; skip_all any number; else
    it is an error."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        """With captions all files: they speak for the pictures."""
        captions = annotations_at(path)
        if not captions:
            return []
        return captions + [file for file in files_below(path) if file not in captions]

    def foreseen(self) -> Space | None:
        """Where size and channels are said."""
        shape = How(self.size, self.channels).shape
        return image_space(shape) if shape else None

    def read(self, beside: Path | None = None) -> Dataset:
        path = located(self.path, WHAT)
        found = of_training(annotations_at(path), path, True)
        check_sets(found, path)
        if len(found) != 1:
            told = f"several, {listed(found)}: data.path= names one" if found else "none"
            raise ValueError(f"expected {WHAT} in {path}, found {told}")
        file = found[0]
        with memory_for(file):
            captions, notes = captions_in(file)
        folder = _folder_of(file, list(captions))
        names = [name for name in captions if (folder / name).is_file()]
        bad = [(name, f"{folder / name}: no such file") for name in captions.keys() - set(names)]
        files = [folder / name for name in names]
        notes = {
            "files": f"{len(files)} in {folder}, captions in {file}",
            **left_out(sorted(bad), len(captions), self.on_bad),
            **notes,
            **left_beside(path, {file, *files}),
        }
        how = How(self.size, self.channels, self.on_bad)
        texts = [captions[name] for name in names]
        return of_files(files, folder, None, 0, how, notes, self.workers, beside, texts)


def annotations_at(path: Path) -> list[Path]:
    """The files of captions in a folder and its `annotations`; such a file itself."""
    below = [path] if path.is_file() else files_below(path, 2)
    home = {path, path.parent} if path.is_file() else {path, path / FOLDER}
    return [
        file
        for file in below
        if file.parent in home and file.name.startswith(PREFIX) and file.suffix.lower() == ".json"
    ]


def _folder_of(file: Path, names: Sequence[str]) -> Path:
    """Where the pictures of these names lie. ValueError where that is not found."""
    root = file.parent.parent if file.parent.name == FOLDER else file.parent
    of_set = file.stem.removeprefix(PREFIX)
    tried = [root / of_set, root / "images" / of_set, root / "images", root]
    for folder in tried:
        if any((folder / name).is_file() for name in names[:TRIED]):
            return folder
    raise ValueError(f"the pictures of {file} ({names[0]} …) lie in none of {listed(tried)}")


def captions_in(file: Path) -> tuple[dict[str, Captions], dict[str, str]]:
    """The captions of each picture by its name, in the order of names, and notes. ValueError that
    names the entry where it is none.
    """
    whole = read_json(file, MOST_BYTES)
    by_id = _names(file, whole)
    found: dict[str, list[str]] = {name: [] for name in sorted(by_id.values())}
    others = 0
    for place, entry in enumerate(_entries(file, whole, "annotations")):
        caption, key = entry.get("caption"), entry.get("image_id")
        if not isinstance(caption, str) or not isinstance(key, int | str):
            raise ValueError(f"{file}: annotation {place} has no caption and image_id")
        if key not in by_id:
            others += 1
        elif caption.strip():
            found[by_id[key]].append(caption.strip())
    notes = {"captions of pictures that are not listed": f"{others}"} if others else {}
    return {name: tuple(several) for name, several in found.items()}, notes


def _names(file: Path, whole: Any) -> dict[int | str, str]:
    """The name of each picture by its id."""
    found: dict[int | str, str] = {}
    names = set[str]()
    for place, picture in enumerate(_entries(file, whole, "images")):
        name, key = picture.get("file_name"), picture.get("id")
        where = f"{file}: picture {place}"
        if not isinstance(name, str) or not isinstance(key, int | str):
            raise ValueError(f"{where} has no file_name and id")
        if not name or "\0" in name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ValueError(f"{where}: {name!r} is no name of a file in its folder")
        if key in found or name in names:
            raise ValueError(f"{where}: {name} or its id {key} is there twice")
        found[key] = name
        names.add(name)
    return found


def _entries(file: Path, whole: Any, name: str) -> list[Mapping[str, Any]]:
    entries = whole.get(name) if isinstance(whole, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
        raise ValueError(f"{file} is no COCO captions: it has no list of {name}")
    if not entries:
        raise ValueError(f"{file} has no {name}")
    return entries
