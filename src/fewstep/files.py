"""Files that are either whole or absent: written beside, synced, then renamed."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def sha256(path: Path) -> str:
    """The hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        beside.write_bytes(content)
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file in one step."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A name that is no UTF-8 has halves of characters in it, which JSON writes as backslashreplace.
    write_bytes(path, text.encode(errors="backslashreplace"))


def check_utf8(path: Path) -> None:
    """ValueError where the name is no UTF-8: safetensors opens no such file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{path} is no UTF-8: weights cannot be in a file of such a name; rename it"
        ) from None


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError with its name where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process was writing (.tmp-…) or removing (.del-…)."""
    for path in [*folder.glob(".tmp-*"), *folder.glob(".del-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes its final name, replacing what was there, only if the block ends
    without an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                sync(file)
        sync(beside)
        old = path.with_name(f".del-{os.getpid()}-{path.name}")
        if path.exists():
            path.rename(old)
        beside.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file. safetensors gives its files mode 0600, whatever the umask: mended
    here.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None
    path.chmod(0o644)


def replace_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replaces a safetensors file in one step; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        save_tensors(beside, tensors)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError with its name where it is damaged or of another
    format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    check_utf8(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
