"""Damage is named and set aside, never loaded; a run that does not fit is refused; a save is all or
nothing.
"""

import errno
import json
import os
import resource
import shutil
import stat
from pathlib import Path

import pytest
import torch
from tests.training.conftest import saved
from tests.training.tiny import Single, assert_same, bits, config, cut, data, state, trainer

import fewstep.training.checkpoint as checkpoint
from fewstep.errors import RefusedError
from fewstep.training.checkpoint import FORMAT, CheckpointContent, Checkpoints
from fewstep.training.optimizers import Sgd

GROUPS = ("nets.safetensors", "ema.safetensors", "optim.safetensors")
FILES = (*GROUPS, "manifest.json")


def newest(store):
    step = store.newest()
    return None if step is None else store.load(step)


def assert_is(found, step):
    expected = saved(step)
    assert found.facts == expected.facts | {"step": step}
    assert found.tensors.keys() == expected.tensors.keys()
    for group, tensors in expected.tensors.items():
        assert_same(found.tensors[group], tensors)


def flat(folder):
    """Every file below the folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# Damage


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def edit(path, **changes):
    """A manifest that is whole JSON and says something else."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "first bit": lambda path: flip(path, 0.0),
    "middle bit": lambda path: flip(path, 0.5),
    "last bit": lambda path: flip(path, 1.0),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": as_folder,
}
MANIFESTS = {
    **{
        text: lambda path, text=text: path.write_text(text)
        for text in ("{}", "[]", "null", "12", '"text"')
    },
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "no hash": lambda path: path.write_text('{"format": 1, "step": 3, "files": {}, "facts": {}}'),
    "another step": lambda path: edit(path, step=4),
    "fewer files": lambda path: edit(path, files={}),
    "another type": lambda path: edit(path, files=[]),
}
HARMLESS = ("manifest.json", "one byte more")  # a space behind the JSON: the same content
CASES = [
    (file, name, act) for file in FILES for name, act in DAMAGES.items() if (file, name) != HARMLESS
]
CASES += [("manifest.json", name, act) for name, act in MANIFESTS.items()]


@pytest.mark.parametrize(
    ("file", "damage"), [(f, a) for f, _, a in CASES], ids=[f"{f}-{n}" for f, n, _ in CASES]
)
def test_damage_to_the_newest_is_named_and_the_one_before_is_used(store, said, file, damage):
    damage(store.folder / "step-00000003" / file)
    assert_is(newest(store), 2)
    assert len(said) == 1
    assert "step-00000003" in said[0]
    assert file in said[0]
    assert names(store.folder) == [".bad-step-00000003-0", "step-00000001", "step-00000002"]
    # The step can be saved again, and is then the newest one.
    store.save(3, saved(3))
    assert_is(newest(store), 3)
    assert len(said) == 1


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_cannot_be_read_is_named(store, said, monkeypatch, file):
    broken = store.folder / "step-00000003" / file
    open_ = Path.open

    def failing(self, *arguments, **options):
        if self == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return open_(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    assert_is(newest(store), 2)
    assert "step-00000003" in said[0]
    assert file in said[0], "the message blames another file"


def test_no_flipped_bit_of_a_manifest_passes_unseen(store):
    path = store.folder / "step-00000003" / "manifest.json"
    whole = path.read_bytes()
    content = json.loads(whole)
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        try:
            if (
                store._verify(path.parent) is None
            ):  # then it must mean the same ("1e-05" and "1E-05")
                assert json.loads(changed) == content, f"bit {place % 8} of byte {place}"
        except RefusedError:  # the flip made another format of it: refused is not loaded either
            assert json.loads(changed)["format"] != FORMAT


def test_several_damaged_ones_are_all_named(store, said):
    flip(store.folder / "step-00000003" / "ema.safetensors")
    (store.folder / "step-00000002" / "manifest.json").unlink()
    assert_is(newest(store), 1)
    assert [line.split()[1] for line in said] == ["step-00000003", "step-00000002"]


def test_where_all_are_damaged_the_run_is_refused_and_stays_refused(store):
    for step in (1, 2, 3):
        flip(store.folder / f"step-{step:08d}" / "nets.safetensors")
    with pytest.raises(RefusedError, match=r"nets\.safetensors does not match its hash") as error:
        store.newest()
    assert all(f"step-{step:08d}" in str(error.value) for step in (1, 2, 3))
    # Not a fresh start by the back door: nothing was deleted, and the next attempt is refused as
    # well.
    assert names(store.folder) == [f".bad-step-{step:08d}-0" for step in (1, 2, 3)]
    with pytest.raises(RefusedError, match="--restart"):
        Checkpoints(store.folder).newest()
    store.discard_all()
    assert names(store.folder) == []
    assert store.newest() is None


@pytest.mark.parametrize("alone", [True, False])
def test_a_newer_format_is_refused_not_set_aside(folder, monkeypatch, alone):
    """What a later version wrote is no damage; going back to an older checkpoint would lose it."""
    store = Checkpoints(folder)
    if not alone:
        store.save(1, saved(1))
    monkeypatch.setattr(checkpoint, "FORMAT", FORMAT + 1)
    store.save(2, saved(2))
    monkeypatch.undo()
    before = flat(folder)
    with pytest.raises(RefusedError, match=f"format {FORMAT + 1}"):
        store.newest()
    assert flat(folder) == before


def test_a_newer_format_of_another_layout_is_refused_not_set_aside(store):
    """A later version may hash its manifest in another way, or list its files elsewhere."""
    path = store.folder / "step-00000003" / "manifest.json"
    path.write_text(json.dumps({"format": FORMAT + 1, "blake3": "0" * 64, "parts": []}))
    before = flat(store.folder)
    with pytest.raises(RefusedError, match=f"format {FORMAT + 1}"):
        store.newest()
    assert flat(store.folder) == before


# Saving


def test_what_was_saved_comes_back(folder):
    store = Checkpoints(folder)
    strange = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    tensors = {
        "nets": {
            "a/b": strange,
            "a/t": torch.arange(6.0).view(2, 3).t(),
            "a/i": torch.tensor(2**60),
        },
        "optim": {},
    }
    facts = {"numbers": [0, 1], "ratio": 0.1, "nothing": None, "nested": {"text": 'ü "quoted"'}}
    store.save(7, CheckpointContent(tensors, facts))
    found = newest(store)
    assert found.facts == facts | {"step": 7}
    assert found.tensors["optim"] == {}
    assert {k: bits(v) for k, v in found.tensors["nets"].items()} == {
        k: bits(v) for k, v in tensors["nets"].items()
    }


def test_an_empty_folder_has_no_newest(folder):
    assert Checkpoints(folder / "new").newest() is None


def test_saving_over_a_damaged_step_replaces_it_and_keeps_the_damaged_one(store, said):
    flip(store.folder / "step-00000003" / "nets.safetensors")
    broken = (store.folder / "step-00000003" / "nets.safetensors").read_bytes()
    store.save(3, saved(3))
    assert_is(newest(store), 3)
    assert (store.folder / ".bad-step-00000003-0" / "nets.safetensors").read_bytes() == broken
    flip(store.folder / "step-00000003" / "nets.safetensors", 0.9)
    store.save(3, saved(3))
    assert names(store.folder)[:2] == [".bad-step-00000003-0", ".bad-step-00000003-1"]


def test_saving_over_a_good_step_changes_nothing(store):
    before = flat(store.folder)
    store.save(3, saved(8))
    assert flat(store.folder) == before


@pytest.mark.parametrize(("keep", "kept"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_the_last_ones_stay_and_never_fewer_than_two(folder, keep, kept):
    store = Checkpoints(folder, keep)
    for step in range(1, 6):
        store.save(step, saved(step))
        assert names(folder) == [f"step-{s:08d}" for s in range(max(1, step - kept + 1), step + 1)]


def test_leftovers_of_a_killed_process_are_removed(store):
    for name in (".tmp-step-00000004-99", ".del-step-00000001-99"):
        (store.folder / name).mkdir()
        (store.folder / name / "nets.safetensors").write_bytes(b"half")
    Checkpoints(store.folder)
    assert names(store.folder) == ["step-00000001", "step-00000002", "step-00000003"]


def test_files_are_readable_for_others(store):
    umask = os.umask(0o022)
    try:
        store.save(4, saved(4))
    finally:
        os.umask(umask)
    modes = {
        p.name: stat.S_IMODE(p.stat().st_mode) for p in (store.folder / "step-00000004").iterdir()
    }
    assert modes == dict.fromkeys(FILES, 0o644)


@pytest.mark.parametrize("place", ["second file", "sync", "rename", "manifest"])
def test_a_failing_save_leaves_the_earlier_ones_and_nothing_else(store, monkeypatch, place):
    before, calls = flat(store.folder), []

    def failing(real, on):
        def call(*arguments, **options):
            calls.append(1)
            if len(calls) == on:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        return call

    if place == "second file":
        monkeypatch.setattr(checkpoint, "save_tensors", failing(checkpoint.save_tensors, 2))
    elif place == "sync":
        monkeypatch.setattr(os, "fsync", failing(os.fsync, 3))
    elif place == "rename":
        monkeypatch.setattr(Path, "rename", failing(Path.rename, 1))
    else:
        monkeypatch.setattr(Path, "write_text", failing(Path.write_text, 1))
    with pytest.raises(OSError, match="No space left"):
        store.save(4, saved(4))
    monkeypatch.undo()
    assert calls
    assert flat(store.folder) == before
    assert names(store.folder) == ["step-00000001", "step-00000002", "step-00000003"]
    store.save(4, saved(4))
    assert_is(newest(store), 4)


def test_a_full_disk_is_an_error_of_the_system_and_harms_nothing(store):
    """The real thing: a child that may write no file beyond 3000 bytes. safetensors has an error
    class of its own.
    """
    before = flat(store.folder)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
            store.save(
                4, CheckpointContent(saved(4).tensors | {"nets": {"a/b": torch.zeros(5000)}}, {})
            )
            os.write(writer, b"no error")
        except OSError as error:
            os.write(writer, f"OSError: {error}".encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        end = pipe.read()
    assert flat(store.folder) == before
    assert names(store.folder) == ["step-00000001", "step-00000002", "step-00000003"]
    assert end.startswith("OSError"), end


def test_the_name_appears_only_after_all_is_on_the_disk(store, monkeypatch):
    """A power failure may keep a rename and lose what was not synced before it."""
    events = []
    fsync, rename = os.fsync, Path.rename

    def noted_sync(handle):
        found = {p.stat().st_ino: p.name for p in (store.folder, *store.folder.rglob("*"))}
        events.append(("sync", found[os.fstat(handle).st_ino]))
        fsync(handle)

    def noted_rename(self, target):
        if Path(target).name == "step-00000004":
            events.append(("rename", self.name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    store.save(4, saved(4))
    beside = f".tmp-step-00000004-{os.getpid()}"
    place = events.index(("rename", beside))
    synced = [name for what, name in events[:place] if what == "sync"]
    assert sorted(synced[:-1]) == sorted(FILES)
    assert synced[-2:] == [
        "manifest.json",
        beside,
    ]  # the manifest vouches for the others, the folder for all names
    assert events[place + 1 :] == [("sync", store.folder.name)]


# Runs


CHANGES = {
    "rate": ({"optimizer": Sgd(lr=0.2)}, {}, {}, r"trainer: optimizer\.lr: 0\.1 -> 0\.2;"),
    "optimizer": (
        {"optimizers": {"student": Sgd(lr=0.3)}},
        {},
        {},
        r"optimizers\.student: None -> \{.*0\.3",
    ),
    "averages": ({"ema": (0.9,)}, {}, {}, r"trainer: ema: \[0\.9, 0\.5\] -> \[0\.9\];"),
    "steps": ({"steps": 9}, {}, {}, r"trainer: steps: 12 -> 9;"),
    "batch": ({"batch": 4}, {}, {}, r"trainer: batch: 8 -> 4;"),
    "two": ({"seed": 1, "clip": 2.0}, {}, {}, r"trainer: clip: 1\.0 -> 2\.0, seed: 0 -> 1;"),
    "method": ({}, {"target_decay": 0.5}, {}, r"method: target_decay: 0\.9 -> 0\.5;"),
    "data": (
        {},
        {},
        {"images_seed": 1},
        rf"data: {data().fingerprint} -> {data(images_seed=1).fingerprint};",
    ),
}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that was cut at step 4."""
    folder = tmp_path_factory.mktemp("half")

    cut(Single(), folder, 4, optimizer=Sgd(lr=0.1))
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_another_configuration_is_refused_with_the_difference(half, name):
    changed, method, stream, message = CHANGES[name]
    chosen = config(**{"optimizer": Sgd(lr=0.1), **changed})
    before = flat(half)
    with pytest.raises(RefusedError, match=message):
        trainer(Single(**method), half, chosen, data(chosen.seed, chosen.batch, **stream)).fit()
    assert flat(half) == before


def test_what_does_not_change_the_result_may_change(half, folder):
    shutil.copytree(half, folder, dirs_exist_ok=True)
    free = {"micro_batch": 4, "save_every": 3, "keep": 5, "log_every": 2, "max_skips": 0}
    one = trainer(Single(), folder, config(optimizer=Sgd(lr=0.1), **free))
    one.fit()
    assert one.batches == 12
    assert names(folder / "checkpoints") == [f"step-{step:08d}" for step in (4, 6, 9, 12)]


def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_bits(half, folder, said):
    straight = trainer(Single(), None, config(optimizer=Sgd(lr=0.1)))
    straight.fit()
    shutil.copytree(half, folder, dirs_exist_ok=True)
    cut(Single(), folder, 7, optimizer=Sgd(lr=0.1), save_every=3)
    flip(folder / "checkpoints" / "step-00000006" / "optim.safetensors", 0.3)
    again = trainer(Single(), folder, config(optimizer=Sgd(lr=0.1)))
    again.fit(say=said.append)
    damage, goes_on = said
    assert "step-00000006 is damaged" in damage
    assert goes_on == "goes on behind step 4 of 12"
    assert_same(state(again), state(straight))
