"""The captions of a table: a column of texts, or of lists of texts; what they may leave unsaid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewstep.data.captions import Captions

Counts = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def texts_of(value: Any) -> Captions:
    """The captions of one row, without empty ones."""
    several = value if isinstance(value, list) else [value]
    return tuple(str(text) for text in several if text not in (None, ""))


def with_shorter(captions: Captions, words: Sequence[str]) -> Captions:
    """The captions, and behind them what is left of those that hold some of these words without
    them, and without the comma before them.
    """
    found = list(captions)
    for caption in captions:
        left = caption
        for word in words:
            left = re.sub(rf"[\s,;]*(?<!\w){re.escape(word)}(?!\w)", "", left)
        if left != caption:
            found.append(left.strip(" ,;"))
    return tuple(dict.fromkeys(filter(None, found)))


def caption_counts(values: Any) -> Counts | None:
    """How many captions each row of pyarrow's column has, (n,); None where it holds no texts."""
    kind = getattr(values.type, "storage_type", values.type)
    inner = kind.value_type if _is_list(kind) else kind
    if not _is_text(inner):
        return None
    counts = [_counts(chunk) for chunk in values.chunks]
    return np.concatenate([np.zeros(0, np.int64), *counts])


def _counts(chunk: Any) -> Counts:
    from pyarrow import compute

    if not _is_list(chunk.type):
        return _there(chunk).astype(np.int64)
    rows = compute.list_parent_indices(chunk).to_numpy(zero_copy_only=False)
    there = _there(compute.list_flatten(chunk))
    return np.bincount(rows[there], minlength=len(chunk))


def _there(texts: Any) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether each is a text that is not empty."""
    from pyarrow import compute

    lengths = compute.utf8_length(texts.cast("large_string"))
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
        compute.fill_null(lengths, 0).to_numpy(zero_copy_only=False) > 0
    )
    return found


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    tests = types.is_string, types.is_large_string, types.is_string_view, types.is_null
    return any(test(kind) for test in (*tests, types.is_integer))
