"""How a folder of pictures is laid out: which sub-folders are sets, which are classes."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fewstep.data.labels import listed
from fewstep.data.splits import NO_DATA, TRAINING, set_of, training_of
from fewstep.data.tree import Passed, Tree

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
OTHER_PICTURES = {".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2"}
OTHER_PICTURES |= {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".svg", ".psd", ".raw", ".dng"}

CAMERA = re.compile(
    r"(?:(?:mv)?img|imag|dsc[nf]?|pxl|mvi|gopr|sam|cimg|pict|wp|screenshot)[- ]?\d*|(?:19|20)\d{6}",
    re.IGNORECASE,
)
"""What cameras and telephones write before the first `_`: their own word, or a date."""
MOST_ODD = 0.1  # of the names of pictures, where the others are classes


def class_level(tree: Tree, passed: list[Passed], labelled: bool = True) -> Tree:
    """The folder whose sub-folders are the classes, where there are such: inside the training set
    and inside folders that hold all pictures. What is left out on the way goes to `passed`.
    ValueError where sets cannot be told from classes; labelled: whether classes are wanted.
    """
    while inner := step_down(tree, passed, labelled):
        tree = inner
    return _training_in_classes(tree, passed)


def step_down(tree: Tree, passed: list[Passed], labelled: bool = True) -> Tree | None:
    """The sub-folder that is the training set, or the only one; None where there is no such."""
    folders = with_pictures(tree)
    name = _training(folders, tree.path, labelled)
    if name and tree.loose and len(folders) == 1:
        raise unsure(tree.path, f"pictures lie beside {name}")
    if not name and not tree.loose and len(folders) == 1 and not _empty(tree):
        name = next(iter(folders))
    if not name:
        return None
    _check_training(name, tree)
    for other in tree.inner.values():
        if other is not folders[name]:
            passed.extend(left(other, f"beside {name}"))
    passed.extend(tree.others)
    return folders[name]


def _check_training(chosen: str, tree: Tree) -> None:
    """ValueError where a test set would be taken beside a training set that nobody reads."""
    told = set_of(chosen)
    if told is None or told.kind == TRAINING:
        return
    for path, _ in tree.others:
        told = set_of(path.name)
        if told and told.kind == TRAINING and path.suffix.lower() not in NO_DATA:
            raise ValueError(
                f"{path} is no folder of pictures, beside {chosen}: "
                f"give {tree.path / chosen} where that is meant"
            )


def with_pictures(tree: Tree) -> dict[str, Tree]:
    """The sub-folders that hold pictures, also such as nobody reads, or are called like a set."""
    found = {}
    for name, folder in tree.folders.items():
        unread = any(reason in OTHER_PICTURES for _, reason in folder.passed())
        if unread or set_of(name) or folder.files():
            found[name] = folder
    return found


def _training(folders: dict[str, Tree], where: Path, labelled: bool) -> str | None:
    """The sub-folder that is the training set, None where they are no sets."""
    try:
        name = training_of(folders)
    except ValueError as error:
        raise unsure(where, str(error)) from None
    if name or len(folders) < 2:
        return name
    return _by_contents(folders, where, labelled)


def _by_contents(folders: dict[str, Tree], where: Path, labelled: bool) -> str | None:
    """The same of folders whose names speak of no sets: such that hold the same sub-folders may be
    sets all the same.
    """
    inner = {name: set(with_pictures(folder)) for name, folder in folders.items()}
    names = set[str]().union(*inner.values())
    training = [name for name in folders if "train" in name.lower()]
    if not _share(list(inner.values())):
        if any(inner[name] for name in training if set_of(name)):
            raise unsure(where, f"{training[0]} holds folders with pictures, others do not")
        return None
    if len(names) > 1 and len(training) == 1:
        return training[0]
    if training or (labelled and len(names) > 1 and not any(map(set_of, names))):
        raise unsure(where, f"{listed(list(folders)[:3])} … hold the same sub-folders")
    return None


def _share(sets: Sequence[set[str]]) -> bool:
    """Whether each has something that another one has too."""
    counts = Counter[str]()
    for one in sets:
        counts.update(one)
    shared = {name for name, count in counts.items() if count > 1}
    return all(one & shared for one in sets)


def _training_in_classes(tree: Tree, passed: list[Passed]) -> Tree:
    """The same tree, where each class holds sets (cat/train, cat/test) with the training sets
    only.
    """
    names = {name for folder in tree.folders.values() for name in with_pictures(folder)}
    try:
        chosen = training_of(sorted(names))
    except ValueError as error:
        raise unsure(tree.path, f"in its sub-folders, {error}") from None
    if not chosen:
        return tree
    kept = Tree(tree.path, dict(tree.inner), tree.others)
    for name, folder in tree.folders.items():
        if folder.loose:
            raise unsure(folder.path, f"pictures lie beside {chosen}")
        inner = folder.inner
        for other, one in inner.items():
            if other != chosen:
                passed.extend(left(one, f"beside {chosen}"))
        only = {chosen: inner[chosen]} if chosen in inner else {}
        kept.inner[name] = Tree(folder.path, only, folder.others)
    return kept


def _empty(tree: Tree) -> list[str]:
    """Sub-folders in which there is nothing at all."""
    return [name for name, one in tree.folders.items() if not one.files() and not one.passed()]


def check_classes(tree: Tree) -> None:
    """ValueError where pictures lie beside class folders, or such a folder holds none that can be
    read.
    """
    full = {name for name, folder in tree.folders.items() if folder.files()}
    if tree.loose and (len(full) > 1 or (full and any(by_name(tree.loose, []).values()))):
        raise ValueError(
            f"{tree.path}: pictures ({tree.loose[0].name}) lie beside folders with pictures "
            f"({listed(sorted(full)[:3])}): label=none reads all of them without classes, "
            "label=folder only the folders"
        )
    if tree.loose:
        return
    missing = sorted({*with_pictures(tree), *_empty(tree)} - full)
    if len(full) > 1:
        missing = sorted(set(tree.folders) - full)
    if missing:
        raise without_pictures(tree.path, missing)


def without_pictures(where: Path, classes: Sequence[str]) -> ValueError:
    """The error of class folders of which nothing is left."""
    return ValueError(
        f"{where}: no picture (PNG, JPEG or WebP) that can be read in the class {listed(classes)}; "
        "move it away, or label=none reads without classes"
    )


def by_folder(tree: Tree) -> dict[Path, str]:
    """Each picture in a sub-folder with that folder's name."""
    words: dict[Path, str] = {}
    for name, folder in tree.folders.items():
        words |= dict.fromkeys(folder.files(), name)
    return words


def by_name(files: Sequence[Path], passed: list[Passed], labelled: bool = True) -> dict[Path, str]:
    """Each of the pictures of one folder with what stands before the first `_` of its name, ""
    where that is no class of several pictures, or what cameras and telephones write there. Where
    all names have sets in front or behind that (train_cat_1, cat_train_1), only those of the
    training set are kept; sets are no classes.
    ValueError where a few names alone have no class; labelled: whether classes are wanted.
    """
    stems = _of_set({file: file.stem for file in files}, passed)
    words = {file: stem.partition("_")[0] for file, stem in stems.items() if "_" in stem}
    names = sorted(set(words.values()))
    if not _may_be_classes(names, len(words)):
        return dict.fromkeys(stems, "")
    if len(words) < len(stems):
        if labelled:
            _check_odd(list(stems), list(words))
        return dict.fromkeys(stems, "")
    try:
        chosen = training_of(names)
    except ValueError as error:
        raise unsure(files[0].parent, str(error)) from None
    if chosen:
        passed.extend((file, f"beside {chosen}") for file in words if words[file] != chosen)
        return {file: "" for file, word in words.items() if word == chosen}
    kept = _of_set({file: stems[file].partition("_")[2] for file in words}, passed)
    return {file: words[file] for file in kept}


def _may_be_classes(names: Sequence[str], pictures: int) -> bool:
    """Whether these words of so many names tell kinds of pictures apart."""
    return 1 < len(names) < pictures and not all(CAMERA.fullmatch(name) for name in names)


def _check_odd(files: Sequence[Path], named: Sequence[Path]) -> None:
    """ValueError where nearly all of these files have a class in their name."""
    if len(named) < (1 - MOST_ODD) * len(files):
        return
    odd = next(file for file in files if file not in named)
    raise ValueError(
        f"{odd} has no class in its name, of {len(files)} pictures {len(named)} have one "
        f"({named[0].name}): move it away, or label=none reads without classes"
    )


def _of_set(stems: dict[Path, str], passed: list[Passed]) -> dict[Path, str]:
    leads = {}
    for file, stem in stems.items():
        found = re.match(r"[A-Za-z]+", stem)
        leads[file] = found[0] if found else ""
    if not all(map(set_of, leads.values())):
        return stems
    try:
        chosen = training_of(sorted(set(leads.values())))
    except ValueError as error:
        raise unsure(next(iter(stems)).parent, str(error)) from None
    if not chosen:
        return stems
    passed.extend((file, f"beside {chosen}") for file in stems if leads[file] != chosen)
    kept = [file for file in stems if leads[file] == chosen]
    return {file: stems[file].partition("_")[2] for file in kept}


def left(one: Tree | Path, reason: str) -> list[Passed]:
    """All of a folder, or a file, as passed over."""
    if isinstance(one, Path):
        return [(one, reason)]
    return [*((file, reason) for file in one.files()), *one.passed()]


def unsure(where: Path, reason: str) -> ValueError:
    """The error of names that may be sets or classes."""
    return ValueError(
        f"{where}: cannot tell training and test sets from classes, {reason}: give the folder of "
        "one set, or label=folder, which makes every sub-folder a class"
    )
