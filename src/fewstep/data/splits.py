"""What names say of sets: a training set, a test set. Such names are never classes."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.data.tree import files_below

TRAINING, TEST, VALIDATION, OTHER = "training", "test", "validation", "other"
WORDS = {
    TRAINING: ("train", "training", "trn", "trainval"),
    TEST: ("test", "testing", "tests", "holdout", "heldout", "t10k"),
    VALIDATION: ("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"),
    OTHER: ("extra", "unlabeled", "unlabelled", "unsupervised", "pred", "predict", "prediction"),
}
PLAIN = {"set", "sets", "split", "data", "dataset", "image", "images", "img", "imgs", "full"}
PLAIN |= {"picture", "pictures", "pic", "pics", "photo", "photos", "file", "files"}
KINDS = {word: kind for kind, words in WORDS.items() for word in words}
NO_DATA = {".py", ".sh", ".md", ".txt", ".yaml", ".yml", ".toml", ".ipynb", ".log"}


class Told(NamedTuple):
    """Which set a name speaks of, and its words that say nothing of sets."""

    kind: str
    rest: tuple[str, ...]


def set_of(name: str) -> Told | None:
    """What a name says of a set: a word of it, in any case, with digits or "set", "images" and the
    like behind it (train2017, valSet, Test_images). None where it speaks of none.
    """
    plain = re.findall(r"t10k|[a-z]+", name.lower())
    camel = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    for words in (plain, [word.lower() for word in camel]):
        kinds = [_kind(word) for word in words]
        if any(kinds):
            told = TRAINING if TRAINING in kinds else next(kind for kind in kinds if kind)
            rest = [word for word in words if not _kind(word) and word not in PLAIN]
            return Told(told, tuple(rest))
    return None


def _kind(word: str) -> str | None:
    for end in ("", *PLAIN):
        if word.endswith(end) and (found := KINDS.get(word.removesuffix(end))):
            return found
    return None


def training_of(names: Collection[str]) -> str | None:
    """Which of these names, that stand beside each other, is the training set, or the only set that
    there is; None where they speak of no sets (a class called train among others, test_tube beside
    test_pit). ValueError, with the reason, where that cannot be told.
    """
    told = _told(names)
    if len(told) < len(names):
        _check_beside(names, told)
        return None
    training = [name for name, found in told.items() if found.kind == TRAINING]
    rests = {found.rest for found in told.values() if found.rest}
    if len(rests) > 1 and len(training) in (0, len(names)):
        return None
    if len(rests) > 1 or (len(training) != 1 < len(names)):
        several = "several sets" if training else "several sets, none of them for training"
        raise ValueError(f"{several}, {', '.join(sorted(told))}")
    return next(iter(training or told), None)


def _told(names: Collection[str]) -> dict[str, Told]:
    """What each name speaks of; of other sets only beside a training set."""
    told = {name: found for name in names if (found := set_of(name))}
    told = told or glued(names)
    if any(found.kind == TRAINING for found in told.values()):
        return told
    return {name: found for name, found in told.items() if found.kind != OTHER}


def glued(names: Collection[str]) -> dict[str, Told]:
    """What names speak of that are the same but for the words of a training set and of others
    (mytrain, mytest); nothing where they are not.
    """
    found, rests = {}, set()
    for name in names:
        split = re.fullmatch(
            r"(.*?)(training|train|testing|test|valid|val|dev|eval)(.*)", name.lower()
        )
        if not split:
            return {}
        found[name] = Told(KINDS[split[2]], ())
        rests.add((split[1], re.sub(r"[^a-z]", "", split[3])))
    kinds = {told.kind for told in found.values()}
    return found if len(rests) == 1 and len(kinds) > 1 and TRAINING in kinds else {}


def _check_beside(names: Collection[str], told: Mapping[str, Told]) -> None:
    """ValueError where some names are those of sets, and others are not, or one of these is that of
    another with the word of a set (cat, cat_test).
    """
    kinds = {found.kind for found in told.values()}
    pure = [name.lower() for name, found in told.items() if not found.rest]
    others = {_words(name): name for name in names if name not in told}
    if kinds and (len(kinds) > 1 or pure not in ([], ["train"])):
        other = next(name for name in names if name not in told)
        raise ValueError(f"{other} stands beside {', '.join(sorted(told))}")
    for name, found in told.items():
        if found.rest and found.rest in others:
            raise ValueError(f"{others[found.rest]} stands beside {name}")


def _words(name: str) -> tuple[str, ...]:
    """Those of a name that speaks of no set, as `Told` has the rest of one that does."""
    return tuple(word for word in re.findall(r"[a-z]+", name.lower()) if word not in PLAIN)


def _of_path(file: Path, root: Path) -> str | None:
    """The set of a file: what its name speaks of, else the folder nearest to it."""
    for part in reversed(file.relative_to(root).parts):
        if told := set_of(part):
            return told.kind
    return None


def of_training(files: Sequence[Path], root: Path, by_name: bool = False) -> list[Path]:
    """The files that are of no test set, by their names and those of the folders below `root`; all,
    where there are only such. by_name: where names speak of a training set, its files alone.
    """
    kinds = {file: _of_path(file, root) for file in files}
    if not any(kinds.values()):
        stems = {file: re.sub(r"[^a-z]", "", file.stem.lower()) for file in files}
        alike = glued(set(stems.values()))
        kinds = {file: alike[stem].kind if alike else None for file, stem in stems.items()}
    for wanted in ((TRAINING,),) * by_name + ((TRAINING, OTHER, None),):
        if found := [file for file in files if kinds[file] in wanted]:
            return found
    return list(files)


def check_sets(taken: Sequence[Path], root: Path) -> None:
    """ValueError where only files for tests would be taken of those below `root`, and names speak
    of a training set that nobody reads, or of several sets.
    """
    if root in taken:
        return
    kinds = {_of_path(file, root) for file in taken}
    if not kinds <= {TEST, VALIDATION}:
        return
    for file in files_below(root):
        if file.suffix.lower() not in NO_DATA and _of_path(file, root) == TRAINING:
            what = f"{file} cannot be read as training data"
            raise ValueError(f"{what} beside {taken[0]}: data.path={taken[0]} takes that")
    if len(kinds) > 1:
        raise ValueError(
            f"{root} holds several sets, none of them for training: data.path= names a file of one"
        )
