"""Prompts without pictures."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.data.bounds import MOST_BYTES
from fewstep.data.captions import lines_of
from fewstep.data.dataset import Dataset, Held
from fewstep.data.source import Source, located
from fewstep.models.space import Space, Text, data_space

COLUMNS = {"caption": Text()}


@dataclass(frozen=True)
class Prompts(Source):
    """A text file (.txt), a prompt a line, for what needs no pictures. Empty lines are passed over,
    and counted. Prompts in Parquet, CSV, TSV or JSON lines are read by `table`.
    """

    path: str = ""
    """The file."""

    @classmethod
    def files_at(cls, path: Path) -> list[Path]:
        """A file alone: in folders, texts are mostly something else."""
        return [path] if path.is_file() and path.suffix.lower() == ".txt" else []

    def foreseen(self) -> Space:
        return data_space(COLUMNS)

    def read(self, beside: Path | None = None) -> Dataset:
        file = located(self.path, "a text file of prompts, one a line")
        if not file.is_file():
            raise ValueError(f"{file} is no text file: give data.path=FILE, a prompt a line")
        lines = lines_of(file, MOST_BYTES)
        prompts = [line for line in lines if line]
        if not prompts:
            raise ValueError(f"no prompts in {file}")
        empty = len(lines) - len(prompts) - (not lines[-1])  # behind the last there is no line
        notes = {"files": str(file)} | ({"passed over": f"{empty} empty lines"} if empty else {})
        return Held({"caption": prompts}, COLUMNS, torch.arange(len(prompts)), notes)
