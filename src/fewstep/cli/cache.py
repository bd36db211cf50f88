"""`fewstep data cache`."""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from fewstep.choice import plain
from fewstep.cli.configure import source_of
from fewstep.data.cache_index import INDEX, CacheIndex, read_index
from fewstep.data.caching import DTYPES, encoders_for, planned, write
from fewstep.data.captions import every
from fewstep.errors import RefusedError
from fewstep.files import check_utf8, remove_leftovers
from fewstep.meant import did_you_mean
from fewstep.models.folder import load_codec, load_conditioner
from fewstep.text import tell
from fewstep.training.config import difference, pick_device
from fewstep.training.lock import Lock
from fewstep.training.start import renewed, told_of


def cache(
    source: str,
    overrides: Sequence[str] | None,
    out: Path,
    model: str | None,
    codec: str | None,
    conditioner: str | None,
    dtype: str,
    batch: int,
    device: str,
) -> None:
    """Encodes pictures and captions of a data source once."""
    if dtype not in DTYPES:
        raise ValueError(f"no dtype {dtype!r}{did_you_mean(dtype, list(DTYPES))}")
    codec, conditioner = codec or model, conditioner or model
    if codec is None and conditioner is None:
        raise ValueError("--model says whose codec and conditioner encode the data")
    check_utf8(out)
    place = pick_device(device)
    encodes = None if codec is None else load_codec(codec)
    conditions = None if conditioner is None else load_conditioner(conditioner)
    chosen = source_of(source, ["split=all", *(overrides or [])])
    dataset = chosen.dataset()
    for line in told_of(dataset, by_class=False):
        tell(line)
    encoders = encoders_for(dataset, encodes, conditions, place)
    index = planned(dataset, encoders, dtype)
    if encoders.conditioner is not None:
        captions = every(dataset)
        if cut := encoders.conditioner.truncated(captions):
            tell(f"{cut:,} of {len(captions):,} captions are cut: the conditioner reads no more")
    _check_others(out)
    lock = Lock(out, "--out")
    lock.take()
    try:
        index = _taken_up(index, out)
        _check_room(index, out)
        for done in write(index, dataset, encoders, out, batch, chosen.workers):
            if done:
                tell(f"{out}: {done:,} of {index.rows:,} rows")
    finally:
        lock.release()
    print(f"{out}: {index.size / 1e6:,.2f} MB in {dtype}; data=cached data.path={out} trains on it")


def _taken_up(index: CacheIndex, out: Path) -> CacheIndex:
    """The index of what an earlier call has written in the folder, or the new one. RefusedError
    where that is a cache of something else.
    """
    remove_leftovers(out)
    if (out / INDEX).is_file():
        old = read_index(out)
        was = renewed(index.facts, old.facts)
        if was != plain(index.facts):
            told = difference(was, plain(index.facts))
            raise RefusedError(f"{out} is a cache of something else: {told}; choose another --out")
        return old
    index.write(out)
    return index


def _check_others(out: Path) -> None:
    """ValueError where the folder holds files of something else, of which none is touched."""
    if not out.is_dir() or (out / INDEX).is_file():
        return
    if others := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
        raise ValueError(f"{out} holds other files ({others[0]}): choose another --out")


def _check_room(index: CacheIndex, out: Path) -> None:
    """OSError where the disk cannot hold what is missing."""
    needed = index.size * len(index.missing()) / (1 + len(index.shards()))
    disk = shutil.disk_usage(out)
    if disk.total and disk.free < needed:  # 0: the file system does not say
        told = f"{disk.free / 1e6:,.2f} MB are free, the cache takes {needed / 1e6:,.2f} MB more"
        raise OSError(errno.ENOSPC, f"no space left for the cache: {told}", str(out))
