"""Rows of batches, read ahead of their use by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from fewstep.data.dataset import Rows

Read = Callable[[int, range], Rows]
AHEAD = 2  # batches that each worker has ready


class Reader:
    """Reads rows of numbered batches: `share` of each batch by workers, batch after batch ahead of
    the training, any others at once.

    read: the rows at these places of a batch. The workers call it too, so nothing depends on how
    many there are.
    """

    def __init__(self, read: Read, share: range, workers: int):
        self.read, self.share, self.workers = read, share, workers
        self._ahead: Iterator[Any] | None = None
        self._number = -1
        self._rows: Rows = {}

    def __call__(self, number: int, rows: range, pinned: bool) -> Rows:
        """These rows of batch `number`; `pinned` ones move to a GPU without waiting."""
        inside = self.share.start <= rows.start and rows.stop <= self.share.stop
        if not self.workers or not inside:
            return self.read(number, rows)
        if number != self._number:
            self._advance(number, pinned)
        start, stop = rows.start - self.share.start, rows.stop - self.share.start
        return {name: column[start:stop] for name, column in self._rows.items()}

    def close(self) -> None:
        """Ends the workers."""
        self._ahead = None
        self._number = -1

    def _advance(self, number: int, pinned: bool) -> None:
        if self._ahead is None or number != self._number + 1:
            self._ahead = self._started(number, pinned)
        read = next(self._ahead)
        if isinstance(read, Failure):
            self.close()
            raise read.error
        self._number, self._rows = number, read

    def _started(self, first: int, pinned: bool) -> Iterator[Any]:
        loader: DataLoader[Any] = DataLoader(
            _Batches(self.read, self.share),
            batch_size=None,
            sampler=_From(first),
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            pin_memory=pinned,
            worker_init_fn=_quiet,
            generator=torch.Generator(),  # of its own: the process's generator stays as it is
        )
        return iter(loader)


class Failure:
    """An error of a worker, handed over whole: the loader would wrap it in its traceback."""

    def __init__(self, error: Exception):
        self.error = error


class _From:
    """first, first + 1, … without end."""

    def __init__(self, first: int):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        number = self.first
        while True:
            yield number
            number += 1


class _Batches(MapDataset[Any]):
    def __init__(self, read: Read, share: range):
        self.read, self.share = read, share

    def __getitem__(self, number: int) -> Rows | Failure:
        try:
            return self.read(number, self.share)
        except (ValueError, OSError, MemoryError) as error:
            return Failure(error)


def _quiet(worker: int) -> None:
    """Ctrl-C reaches a whole terminal; the main process decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
