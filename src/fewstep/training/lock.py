"""The lock of a run's folder."""

import contextlib
import errno
import os
import re
import socket
import warnings
from pathlib import Path
from typing import TextIO

from fewstep.errors import RefusedError
from fewstep.files import NOFOLLOW, UNKNOWN, remove, unless_unknown

HOLDER = re.compile(r"process \d+ on \S+")


class Lock:
    """One run per folder: an flock that dies with its process, so a killed run leaves no
    obstacle.
    """

    def __init__(self, folder: Path, option: str = "name="):
        self.folder, self.path = folder, folder / ".lock"
        self.option = option  # that names another folder
        self._file: TextIO | None = None
        self._made: list[Path] = []

    @property
    def taken(self) -> bool:
        """Whether this object holds the folder."""
        return self._file is not None

    def take(self) -> None:
        """Holds the folder, which is made if need be. RefusedError where another one does.

        Where the system knows no locks it is a warning.
        """
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder; choose another {self.option}")
        self._made = [path for path in (self.folder, self.path) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._opened()
        try:
            self._hold(file)
            self._sign(file)
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):
                error.filename = str(self.path)
                self.unmake()
            raise
        self._file = file

    def release(self) -> None:
        """Lets the next run in."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def unmake(self) -> None:
        """Removes what `take` made: no run began."""
        with contextlib.suppress(OSError):  # the reason why it did not begin is what counts
            if self._made:
                remove(self._made[0])

    def _opened(self) -> TextIO:
        """The file, of which nothing is lost by opening it. ValueError where it is a link."""
        flags = os.O_RDWR | os.O_CREAT | NOFOLLOW
        try:
            handle = os.open(self.path, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ValueError(
                    f"{self.path} is a link, which is not followed: remove it"
                ) from None
            raise
        file = os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
        if os.fstat(handle).st_nlink > 1:
            file.close()
            raise ValueError(f"{self.path} is a hard link, to which nothing is written: remove it")
        return file

    def _hold(self, file: TextIO) -> None:
        unlocked = f"this file system has no locks: nothing keeps a second run out of {self.folder}"
        try:
            import fcntl
        except ImportError:  # not every system has them
            warnings.warn(unlocked, RuntimeWarning, stacklevel=3)
            return
        try:
            with unless_unknown(unlocked, UNKNOWN | {errno.ENOLCK}):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read(200)
            holder = text if HOLDER.fullmatch(text) else "another process"
            raise RefusedError(
                f"{self.folder} is in use by {holder}; wait for it or choose another {self.option}"
            ) from None

    def _sign(self, file: TextIO) -> None:
        """Says who holds the folder, where the file holds nothing that is not of a run."""
        text = file.read(200)
        if text and not HOLDER.fullmatch(text):
            return
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
