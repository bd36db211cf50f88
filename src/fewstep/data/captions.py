"""Captions of pictures: where files hold them, several of one picture, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.bounds import BLOCK, check_text
from fewstep.data.dataset import Dataset, Rows, captioned
from fewstep.data.pictures import some
from fewstep.data.tree import Passed
from fewstep.models.space import Column, Text, Texts

SUFFIXES = (".txt", ".caption")  # of a file beside a picture's
MOST_BYTES = 1 << 20  # of such a file
LINES = re.compile(r"\r\n|\r|\n")
CHUNK = 1000  # rows that are looked at together
SHOWN = 3  # captions

Captions = tuple[str, ...]  # of one picture; () where there are none


def lines_of(file: Path, most: int) -> list[str]:
    """The lines of a text in UTF-8, without white space around them. ValueError where it is none,
    or has more than `most` bytes.
    """
    if file.stat().st_size > most:
        with file.open("rb") as stream:
            check_text(file, stream.read(BLOCK))
        raise ValueError(f"{file} has more than {most:,} bytes: refused as text")
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: byte {error.start} is none of it") from None
    check_text(file, content)
    return [line.strip() for line in LINES.split(text)]


def beside(files: Sequence[Path], others: Sequence[Passed]) -> tuple[list[Captions], set[Path]]:
    """The captions of pictures by the text files of their names, a caption a line, and the files
    that were read. others: what lies there and is no picture. ValueError where a text cannot be
    read, or a picture has two.
    """
    texts: dict[Path, list[Path]] = {}
    for path, reason in others:
        if reason in SUFFIXES:
            texts.setdefault(path.with_suffix(""), []).append(path)
    found: list[Captions] = []
    taken: set[Path] = set()
    for file in files:
        mine = texts.get(file.with_suffix(""), [])
        if len(mine) > 1:
            raise ValueError(f"{mine[0]} and {mine[1]} are both captions of {file.name}")
        lines = [line for text in mine for line in lines_of(text, MOST_BYTES)]
        found.append(tuple(filter(None, lines)))
        taken.update(mine)
    return found, taken


def columns_of(captions: Collection[Captions]) -> dict[str, Column]:
    """`caption`, and `captions` where a picture has several; nothing where none has any."""
    most = max(map(len, captions), default=0)
    columns: dict[str, Column] = {"caption": Text()} if most else {}
    return columns | ({"captions": Texts()} if most > 1 else {})


def rows_of(captions: Sequence[Captions], names: Sequence[str]) -> Rows:
    """These columns; a picture without captions has an empty one."""
    found: Rows = {}
    for name in names:
        if name == "caption":
            found[name] = [several[0] if several else "" for several in captions]
        if name == "captions":
            found[name] = [several or ("",) for several in captions]
    return found


def missing(names: Sequence[str], rows: int, what: str = "pictures") -> dict[str, str]:
    """The note on those of so many rows that have no caption, by their names."""
    if not names:
        return {}
    return {"captions": f"missing in {len(names):,} of {rows:,} {what}, read as '': {some(names)}"}


def told(dataset: Dataset) -> Mapping[str, str]:
    """How many captions there are, of how many words, and a few of them; nothing without any."""
    if "caption" not in dataset.columns:
        return {}
    words: set[str] = set()
    count, total, longest = 0, 0, ""
    shown: dict[str, None] = {}
    for caption in every(dataset):
        split = caption.split()
        count, total = count + 1, total + len(split)
        words.update(split)
        longest = max(longest, caption, key=lambda text: len(text.split()))
        if len(shown) < SHOWN:
            shown[caption] = None
    each = total / max(count, 1)
    return {
        "captions in all": f"{count:,} in {len(dataset):,} rows, {each:.1f} words each, "
        f"{len(words):,} different words",
        "longest caption": f"{len(longest.split())} words: {longest}",
        "first captions": "; ".join(shown),
    }


def all_of(dataset: Dataset, index: Tensor) -> list[Captions]:
    """The captions of these rows."""
    if "captions" in dataset.columns:
        return [tuple(several) for several in dataset.rows(index, ["captions"])["captions"]]
    return [(caption,) for caption in dataset.rows(index, ["caption"])["caption"]]


def one_of_each(dataset: Dataset, num: int, seed: int) -> list[str]:
    """A caption of each of `num` rows, spread evenly over all, and again from the first on where
    there are fewer; of several one is drawn. Nothing where the data have none.
    """
    if "caption" not in dataset.columns:
        return []
    rows = len(dataset)
    index = torch.arange(num) * rows // num if num < rows else torch.arange(num) % rows
    captions = all_of(dataset, index)
    chosen = captioned(seed, 0, range(num), list(map(len, captions)))
    return [several[i] for several, i in zip(captions, chosen.tolist())]


def every(dataset: Dataset) -> list[str]:
    """All captions that are not empty."""
    name = "captions" if "captions" in dataset.columns else "caption"
    found: list[str] = []
    for first in range(0, len(dataset), CHUNK):
        index = torch.arange(first, min(first + CHUNK, len(dataset)))
        for several in dataset.rows(index, [name])[name]:
            found.extend([several] if isinstance(several, str) else several)
    return [caption for caption in found if caption]
