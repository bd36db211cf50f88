"""What a cache of latents and embeddings is made of: index.json, and files of tensors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.choice import plain
from fewstep.errors import option_errors
from fewstep.files import read_json, sha256, write_json
from fewstep.models.space import Column

FORMAT = 1
MOST_FILES = 100_000
INDEX, NULL, SHARD = "index.json", "null.safetensors", "shard-{:05d}.safetensors"


@dataclass
class CacheIndex:
    """facts: what was encoded, by what, in which type; another cache has others. columns: of its
    rows. shard: rows of each file but the last. size: bytes of all files, without their heads.
    files: those that are whole, with their sha256.
    """

    facts: Mapping[str, Any]
    columns: Mapping[str, Column]
    rows: int
    shard: int
    size: int
    files: dict[str, str] = field(default_factory=dict)

    def shards(self) -> dict[str, range]:
        """The rows of each file."""
        starts = range(0, self.rows, self.shard)
        return {
            SHARD.format(place): range(start, min(start + self.shard, self.rows))
            for place, start in enumerate(starts)
        }

    def missing(self) -> list[str]:
        """The files that are not written yet."""
        return [name for name in (NULL, *self.shards()) if name not in self.files]

    def is_whole(self, file: Path) -> bool:
        """Whether a file of the cache is there as it was written."""
        return file.is_file() and sha256(file) == self.files.get(file.name)

    def write(self, folder: Path) -> None:
        """Replaces the folder's index."""
        described = {
            "format": FORMAT,
            "facts": plain(self.facts),
            "columns": plain(self.columns),
            "rows": self.rows,
            "shard": self.shard,
            "bytes": self.size,
            "files": self.files,
        }
        write_json(folder / INDEX, described)


def read_index(folder: Path) -> CacheIndex:
    """The index of a cache. FileNotFoundError or ValueError where there is none, or it is damaged
    or newer.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no cache: it has no {INDEX}")
    found = read_json(path)
    try:
        if found["format"] > FORMAT:
            raise ValueError(
                f"format {found['format']} is newer than this fewstep knows ({FORMAT})"
            )
        index = CacheIndex(
            dict(found["facts"]),
            {str(name): Column.parse(one) for name, one in found["columns"].items()},
            int(found["rows"]),
            int(found["shard"]),
            int(found["bytes"]),
            {str(name): str(digest) for name, digest in found["files"].items()},
        )
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {'; '.join(option_errors(error)) or error}") from None
    sizes = min(index.rows, index.shard) > 0 and index.rows <= index.shard * MOST_FILES
    if not sizes or set(index.files) - {NULL, *index.shards()}:
        raise ValueError(f"{path} is damaged: rows {index.rows}, shard {index.shard}")
    return index
