"""Files that are either whole or absent: written beside, synced, then renamed.

A link is replaced, never followed: nothing outside the folder is touched. What a killed process
left beside its files is removed by the next one that writes in that folder. What a file system does
not know and the result does not need (modes, the syncing of folders) is a warning; an error of the
disk is an error.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

UNKNOWN = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
FORBIDDEN = {errno.EPERM, errno.EACCES, errno.EISDIR, errno.EBADF}
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
DAY = 86400.0
LARGEST_JSON = 64 << 20
FACTS = "fewstep"  # the key of a safetensors header that holds facts of ours, as JSON
_writing: set[str] = set()  # what this process writes now
IN_RUNS = re.compile(r"\.(?:tmp|del)-(?:step-\d+-)?\d+(?:-.+)?")
OURS = re.compile(r"\.(?:tmp|del)-(\d+)-([0-9a-f]{6})-fewstep-[0-9a-f]{8}")


def sha256(path: Path) -> str:
    """The hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def unless_unknown(lost: str, codes: set[int] = UNKNOWN) -> Iterator[None]:
    """Within the block an error that says that the file system does not know what is asked of it
    is a warning. lost: what the user goes without. OSError for all others.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise
        warnings.warn(lost, RuntimeWarning, stacklevel=3)


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a power loss, where the file system can."""
    codes = UNKNOWN | FORBIDDEN if path.is_dir() else UNKNOWN
    with unless_unknown("this file system cannot sync: a power loss may cost new files", codes):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def beside(path: Path, kind: str = "tmp") -> Path:
    """A name in the same folder, of this process; short, for the path's own may be as long as the
    file system allows.
    """
    return path.with_name(f".{kind}-{os.getpid()}-{_host()}-fewstep-{_tag(path.name, 4)}")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Where to write what shall then be renamed to `path`; it is gone behind the block. What is
    wrong with it is said of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    new = beside(path)
    remove(new)
    _writing.add(new.name)
    try:
        yield new
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(new)):
            error.filename = str(path)
        raise
    finally:
        _writing.discard(new.name)
        with contextlib.suppress(OSError):  # what went wrong before is what counts
            remove(new)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file in one step. ValueError where something else than a file is there."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is no regular file; choose another name")
    with _written(path) as new:
        with new.open("xb") as file:
            file.write(content)
        sync(new)
        new.replace(path)


def append_text(path: Path, text: str) -> None:
    """Adds to a file of ours, and syncs it. OSError where a link is there."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NOFOLLOW
    with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(text)
    sync(path)


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


def read_json(path: Path, most: int | None = None) -> Any:
    """The content of a JSON file; ValueError with its name where it is damaged or has more than
    `most` bytes (64 MiB).
    """
    most = LARGEST_JSON if most is None else most
    with path.open("rb") as file:
        content = file.read(most + 1)  # of /dev/zero, too, which has no size
    if len(content) > most:
        raise ValueError(f"{path} is damaged: such a file has less than {most:,} bytes")
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def remove(path: Path) -> None:
    """Removes a file or folder; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, own: bool = False) -> None:
    """Removes what a killed process was writing (.tmp-…) or removing (.del-…) in a folder.

    own: it is a run's folder and locked, so that whatever has such a name and a number is fewstep's
    and, unless its process lives, left over. Elsewhere the name must be exactly ours; what another
    machine left goes when it is a day old.
    """
    for path in [*folder.glob(".tmp-*"), *folder.glob(".del-*")]:
        if _left_over(path, own):
            with contextlib.suppress(OSError):  # another process may remove it at this moment
                remove(path)


def _left_over(path: Path, own: bool) -> bool:
    known = OURS.fullmatch(path.name)
    if known is None or path.name in _writing:
        return own and known is None and IN_RUNS.fullmatch(path.name) is not None
    process, host = known.groups()
    if host == _host() and os.name == "posix":
        return int(process) == os.getpid() or not _lives(int(process))
    try:
        return own or time.time() - path.lstat().st_mtime > DAY
    except OSError:
        return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _host() -> str:
    return _tag(socket.gethostname(), 3)


def _tag(text: str, size: int) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=size).hexdigest()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes its final name, replacing what was there, only if the block ends
    without an error.
    """
    with _written(path) as new:
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                sync(file)
        sync(new)
        old = beside(path, "del")
        if os.path.lexists(path):
            path.rename(old)
        new.rename(path)
        sync(path.parent)
        with contextlib.suppress(OSError):  # the next one that writes here tries again
            remove(old)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
) -> None:
    """A safetensors file that is not there yet. safetensors gives its files mode 0600, whatever
    the umask: mended here.

    facts: what its header tells beside the tensors, under one key, for safetensors writes keys in
    any order.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with path.open("xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        held = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
        save_file(held, path, None if facts is None else {FACTS: json.dumps(facts)})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None
    _set_mode(path, mode)


def take_mode(path: Path, like: Path) -> None:
    """Gives a file the mode of another one, where the file system has modes."""
    _set_mode(path, like.stat().st_mode & 0o777)


def _set_mode(path: Path, mode: int) -> None:
    if path.stat().st_mode & 0o777 != mode:
        lost = "this file system has no modes: new files may be readable for you alone"
        with unless_unknown(lost, UNKNOWN | FORBIDDEN):
            path.chmod(mode)


def replace_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replaces a small safetensors file in one step; its folder is made where it is missing."""
    from safetensors.torch import save

    write_bytes(path, save({k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}))


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes, by name, that a safetensors file's header tells. Errors as `load_tensors`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    check_utf8(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """The same as `load_tensors`, mapped into memory: what is not read costs nothing."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    check_utf8(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def tensor_facts(path: Path) -> dict[str, Any]:
    """What `save_tensors` noted beside the tensors; empty for none. Errors as `load_tensors`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    check_utf8(path)
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get(FACTS, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: its facts are no mapping")
    return found


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
