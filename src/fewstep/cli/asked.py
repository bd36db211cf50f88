"""What a person asks models for, as words of the command line: labels and prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.cli.configure import source_of
from fewstep.meant import did_you_mean

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def asked_of(
    labels: str | None, prompt: Sequence[str] | None, prompts: Path | None, num: int | None
) -> dict[str, Any]:
    """The columns of a request. prompts: a file or folder of data with captions. num: how many
    images, for which labels and a file's prompts are taken in turn.

    ValueError or FileNotFoundError for what cannot be read.
    """
    if prompt and prompts is not None:
        raise ValueError("--prompt and --prompts are two ways to say the same: give one of them")
    asked: dict[str, Any] = {}
    if labels is not None:
        asked["label"] = in_turn(labels_of(labels), num)
    if prompt:
        asked["caption"] = list(prompt)
    if prompts is not None:
        asked["caption"] = in_turn(prompts_of(prompts), num)
    return asked


def dtype_of(name: str) -> torch.dtype:
    """The type of numbers by the name that options give it. ValueError for others."""
    if name not in DTYPES:
        raise ValueError(f"no dtype {name!r}{did_you_mean(name, [*DTYPES])}")
    return DTYPES[name]


def in_turn(values: list[Any], num: int | None) -> list[Any]:
    """So many, from the first on again behind the last; all of them where nobody says."""
    if num is None:
        return values
    return [values[i % len(values)] for i in range(num)]


def labels_of(text: str) -> list[int | None]:
    """Numbers of classes with commas between them; none is no label. ValueError for others."""
    try:
        return [None if word.strip() == "none" else int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--labels {text!r}: expected whole numbers, or none, with commas between them"
        ) from None


def prompts_of(path: Path) -> list[str]:
    """The captions of a file or folder of data, row by row; of several in a row the first."""
    found = source_of(str(path)).dataset("all")
    for name in ("caption", "captions"):
        if name in found.columns:
            column = found.rows(torch.arange(len(found)), [name])[name]
            return [text if isinstance(text, str) else text[0] for text in column]
    raise ValueError(f"{path} holds no prompts, only {', '.join(found.columns)}")
