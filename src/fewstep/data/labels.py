"""Class labels: words as numbers, and what is said of them."""

from collections.abc import Collection, Sequence

from torch import Tensor

SHOWN = 100  # classes that are counted one by one, and names that are listed
MOST_CLASSES = 100_000
SPARSE = 1000  # from this number on, labels must fill a tenth of what they span
UNLABELLED = "-1 everywhere, which means none: read without"


def rather_ids(largest: int, distinct: int) -> bool:
    """Whether whole numbers up to `largest` are rather ids than classes."""
    return largest >= MOST_CLASSES or (largest >= SPARSE and largest >= 10 * distinct)


def numbered(words: Collection[str]) -> tuple[dict[str, int], int]:
    """The number of each word, in the order of the numbers, and how many classes that makes. Whole
    numbers are classes themselves, unless they are rather ids; other words count in their order.
    """
    distinct = sorted(set(words))
    numbers = {}
    for word in distinct:
        if word.isdecimal() and str(int(word)) == word:
            numbers[word] = int(word)
    largest = max(numbers.values(), default=-1)
    if len(numbers) < len(distinct) or rather_ids(largest, len(distinct)):
        return {word: place for place, word in enumerate(distinct)}, len(distinct)
    return dict(sorted(numbers.items(), key=lambda pair: pair[1])), largest + 1


def listed(names: Sequence[object]) -> str:
    """Names with commas between them, the first hundred."""
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def check_ids(largest: int, distinct: int, rows: int, what: str, remedy: str = "") -> None:
    """ValueError where `distinct` whole numbers up to `largest`, or words, are rather ids of rows
    than classes. remedy: a way to read them all the same.
    """
    if rather_ids(largest, distinct) or (distinct > SPARSE and 2 * distinct > rows):
        raise ValueError(
            f"{what} goes up to {largest} with {distinct} distinct labels in {rows} rows: rather "
            f"ids than classes{remedy}"
        )


def empty_classes(labels: Tensor | None, classes: int) -> list[int]:
    """The classes of which there is no label; none where there are no labels at all."""
    if labels is None:
        return []
    return sorted(set(range(classes)) - set(labels.unique().tolist()))


def counts(labels: Tensor, classes: int) -> dict[str, str]:
    """What there is of each class, to be shown: one by one where the classes are few."""
    there, found = labels.unique(return_counts=True)
    empty = empty_classes(labels, classes)
    if classes <= SHOWN:
        by_class = dict(zip(there.tolist(), found.tolist()))
        each = " ".join(str(by_class.get(one, 0)) for one in range(classes))
    else:
        least, most = (0, 0) if not len(there) else (int(found.min()), int(found.max()))
        each = f"{0 if empty else least} to {most}"
    told = {"classes": f"{classes}, images in each: {each}"}
    return told | ({"classes without images": listed(empty)} if empty else {})


def unlabelled(labels: Tensor, classes: int = 0) -> bool:
    """Whether all labels are -1, also as a byte where that is no class."""
    none = (labels == -1) | ((labels == 255) & (0 < classes <= 255))
    return bool(len(labels)) and bool(none.all())


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """ValueError where a label is not in 0 … classes - 1, with the first such image."""
    bad = ((labels < 0) | (labels >= classes)).nonzero()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{where}: {len(bad)} labels out of range 0 … {classes - 1}, the first is "
            f"{int(labels[first])} "
            f"of image {first}"
        )
