"""Checkpoints that survive being killed at any moment (docs/architecture.md, "Checkpoints").

A checkpoint is a folder `step-NNNNNNNN` of safetensors files and a manifest with their sizes and
hashes. It is written beside, synced and renamed, so under its final name it is whole; damage that
comes later is found by the hashes. There is no pointer to the newest one: the newest that verifies
is used.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fewstep.errors import RefusedError
from fewstep.files import (
    load_tensors,
    read_json,
    remove,
    remove_leftovers,
    save_tensors,
    sha256,
    sync,
)

FORMAT = 1
NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})")


class CheckpointContent(NamedTuple):
    """What a checkpoint holds: groups of tensors (nets, ema, optim) and plain facts (step,
    counters, data …).
    """

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. `keep`: how many of the newest stay, at least 2; every: those of
    multiples of this step stay too (0: none), and that with the lowest score. say: where notices
    about damage go.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        say: Callable[[str], None] = print,
        writes: bool = True,
        every: int = 0,
    ):
        self.folder, self.keep, self.every, self.say = folder, max(2, keep), every, say
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder, own=True)

    def save(self, step: int, content: CheckpointContent, prune: bool = True) -> None:
        """Writes step `step`, and removes those that need not stay. Nothing appears under the final
        name before all of it is on the disk. OSError where that has no space for it.

        The fact `score`, where it is given, says how good it is: the lower, the better.
        """
        final = self.folder / f"step-{step:08d}"
        if os.path.lexists(final):
            if self._verify(final) is None:
                return
            self._quarantine(final)
        self._check_room(content)
        beside = self.folder / f".tmp-{final.name}-{os.getpid()}"
        beside.mkdir()
        try:
            files = {}
            for group, tensors in content.tensors.items():
                path = beside / f"{group}.safetensors"
                save_tensors(path, tensors)
                sync(path)
                files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
            manifest = {"format": FORMAT, "step": step, "files": files, "facts": content.facts}
            manifest["sha256"] = _own_hash(manifest)
            (beside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            sync(beside / "manifest.json")
            sync(beside)
            beside.rename(final)
            sync(self.folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        if prune:
            self._prune()
        remove_leftovers(self.folder, own=True)

    def _check_room(self, content: CheckpointContent) -> None:
        """OSError, before anything is written, where the disk cannot hold the checkpoint; a notice
        where it cannot hold two.
        """
        size = 0
        for tensors in content.tensors.values():
            size += sum(tensor.nbytes for tensor in tensors.values())
        disk = shutil.disk_usage(self.folder)
        if disk.total == 0 or disk.free >= 2 * size:  # 0: the file system does not say
            return
        found = f"{disk.free / 1e6:,.2f} MB are free, a checkpoint takes {size / 1e6:,.2f} MB"
        if disk.free < size:
            reason = (
                f"no space left for a checkpoint: {found}; free some, and the same command goes on"
            )
            raise OSError(errno.ENOSPC, reason, str(self.folder))
        self.say(f"{self.folder}: {found}; the next one may find no space")

    def load(self, step: int) -> CheckpointContent:
        """The checkpoint of that step, which `newest` has verified."""
        path = self.folder / f"step-{step:08d}"
        names = read_json(path / "manifest.json")["files"]
        groups = {Path(name).stem: load_tensors(path / name) for name in names}
        return CheckpointContent(groups, self.facts(step))

    def facts(self, step: int) -> dict[str, Any]:
        """Its plain facts alone."""
        manifest = read_json(self.folder / f"step-{step:08d}" / "manifest.json")
        return manifest["facts"] | {"step": manifest["step"]}

    def newest(self) -> int | None:
        """The step of the newest checkpoint that verifies; damaged ones are named and set aside.
        None: there is none.

        RefusedError where checkpoints exist and none can be used.
        """
        reasons = []
        for path in reversed(self._all()):
            reason = self._verify(path)
            if reason is None:
                return _step(path)
            reasons.append(f"{path.name}: {reason}")
            self.say(
                f"checkpoint {path.name} is damaged ({reason}); it is set aside and the one before "
                f"is used"
            )
            self._quarantine(path)
        if reasons or any(self.folder.glob(".bad-*")):
            found = "; ".join(reasons) or "all were set aside before"
            raise RefusedError(
                f"no checkpoint in {self.folder} can be used ({found}); --restart begins at step 0"
            )
        return None

    def steps(self) -> list[int]:
        """Those that there are, the oldest first, whole or not."""
        return [_step(path) for path in self._all()]

    def best(self) -> int | None:
        """The step of the one with the lowest score; None where none has one."""
        path = self._best(self._all())
        return None if path is None else _step(path)

    def damage(self, step: int) -> str | None:
        """None, or what is wrong with that checkpoint, which stays where it is."""
        return self._verify(self.folder / f"step-{step:08d}")

    def discard_all(self) -> None:
        """Removes every checkpoint, for a restart; of a link the link alone."""
        for path in [*self._all(), *self.folder.glob(".bad-*")]:
            self._remove(path)

    def _all(self) -> list[Path]:
        """Whatever has the name of a checkpoint, the oldest first."""
        return sorted((p for p in self.folder.glob("step-*") if NAME.fullmatch(p.name)), key=_step)

    def _verify(self, path: Path) -> str | None:
        """None, or what is wrong."""
        reading = "manifest.json"
        try:
            manifest = read_json(path / reading)
            if (
                manifest["format"] > FORMAT
            ):  # its layout is not known here, so nothing of it can be called damaged
                raise RefusedError(
                    f"{path} has format {manifest['format']}; this fewstep knows up to {FORMAT}"
                )
            if manifest.pop("sha256") != _own_hash(manifest):
                return "manifest.json does not match its own hash"
            if manifest["step"] != _step(path):
                return f"manifest.json is that of step {manifest['step']}"
            for name, expected in manifest["files"].items():
                file = path / (reading := name)
                if file.name != name:
                    return f"manifest.json names {name!r}, which is no file of it"
                if not file.is_file():
                    return f"{name} is missing"
                if file.stat().st_size != expected["size"]:
                    return f"{name} has {file.stat().st_size} bytes of {expected['size']}"
                if sha256(file) != expected["sha256"]:
                    return f"{name} does not match its hash"
        except RefusedError:
            raise
        except FileNotFoundError:
            return f"{reading} is missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{reading} cannot be read: {type(error).__name__}"
        return None

    def _quarantine(self, path: Path) -> None:
        number = 0
        while os.path.lexists(target := self.folder / f".bad-{path.name}-{number}"):
            number += 1
        path.rename(target)

    def _prune(self) -> None:
        """Removes what need not stay. A link stays: whoever put it there wants to keep it."""
        found = self._all()
        best = self._best(found)
        for path in found[: -self.keep]:
            milestone = self.every and _step(path) % self.every == 0
            if path != best and not milestone and not path.is_symlink():
                self._remove(path)

    def _best(self, found: Sequence[Path]) -> Path | None:
        """That with the lowest score, the first of equal ones; None where none has a score. It
        never goes, so it is the best of all that there were.
        """
        scores = {}
        for path in found:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                score = read_json(path / "manifest.json")["facts"].get("score")
                if isinstance(score, float):
                    scores[path] = score
        return min(scores, key=scores.__getitem__, default=None)

    def _remove(self, path: Path) -> None:
        doomed = self.folder / f".del-{path.name}-{os.getpid()}"
        path.rename(doomed)
        remove(doomed)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
