"""Checkpoints are checked against where they lie; links are not followed when something is removed;
a full disk is seen before it is written to.
"""

import errno
import json
import os
import shutil
from collections import namedtuple

import pytest
import torch
from tests.training.conftest import saved
from tests.training.test_checkpoint import assert_is, flat, names, newest

from fewstep.errors import RefusedError
from fewstep.training.checkpoint import CheckpointContent, Checkpoints, _own_hash


def manifest_of(path, **changes):
    """A manifest whose own hash is right."""
    file = path / "manifest.json"
    manifest = json.loads(file.read_text()) | changes
    manifest.pop("sha256")
    file.write_text(json.dumps(manifest | {"sha256": _own_hash(manifest)}))


@pytest.mark.parametrize("step", [4, 12, 123456789])
def test_a_copy_under_another_number_is_not_used(store, said, step):
    name = f"step-{step:08d}"
    shutil.copytree(store.folder / "step-00000002", store.folder / name)
    assert_is(newest(store), 3)
    assert f"checkpoint {name} is damaged (manifest.json is that of step 2)" in said[0]
    store.save(step, saved(step))
    assert_is(newest(store), step)


def test_where_there_are_only_such_copies_the_run_is_refused(folder):
    store = Checkpoints(folder)
    store.save(7, saved(7))
    (folder / "step-00000007").rename(folder / "step-00000012")
    with pytest.raises(RefusedError, match=r"step-00000012: manifest\.json is that of step 7"):
        store.newest()


@pytest.mark.parametrize("name", ["step-4", "step-00000009 (copy)", "step-000000012", "step-x"])
def test_other_names_are_no_checkpoints(store, name):
    shutil.copytree(store.folder / "step-00000002", store.folder / name)
    assert_is(newest(store), 3)
    assert (store.folder / name).is_dir()


def test_they_stand_in_the_order_of_their_numbers(folder):
    store = Checkpoints(folder)
    for step in (99_999_999, 100_000_000):
        store.save(step, saved(step))
    assert store.newest() == 100_000_000


@pytest.mark.parametrize("name", ["../step-00000002/nets.safetensors", "/etc/hostname", "."])
def test_files_elsewhere_are_not_its_files(store, said, name):
    manifest_of(store.folder / "step-00000003", files={name: {"size": 1, "sha256": ""}})
    assert_is(newest(store), 2)
    assert "which is no file of it" in said[0]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format": 1' + "0" * 5000 + "}"])
def test_a_manifest_that_no_reader_can_read_is_damaged(store, said, text):
    (store.folder / "step-00000003" / "manifest.json").write_text(text)
    assert_is(newest(store), 2)
    assert "manifest.json cannot be read" in said[0]


class TestLinks:
    @pytest.fixture
    def elsewhere(self, store, tmp_path):
        """Where the user moved the oldest checkpoint, and linked it."""
        target = tmp_path / "elsewhere"
        shutil.move(store.folder / "step-00000001", target)
        (store.folder / "step-00000001").symlink_to(target)
        before = flat(target)
        yield target
        assert flat(target) == before

    def test_pruning_passes_over_it(self, store, elsewhere):
        for step in (4, 5, 6):
            store.save(step, saved(step))
        assert names(store.folder) == ["step-00000001", *(f"step-0000000{i}" for i in (4, 5, 6))]

    def test_it_can_be_used(self, store, elsewhere):
        for step in (2, 3):
            shutil.rmtree(store.folder / f"step-0000000{step}")
        assert_is(newest(store), 1)

    def test_a_restart_removes_the_link(self, store, elsewhere):
        store.discard_all()
        assert names(store.folder) == []

    def test_damage_sets_the_link_aside(self, store, said, elsewhere):
        (store.folder / "step-00000009").symlink_to(elsewhere)
        (store.folder / "step-00000010").symlink_to(elsewhere / "nothing")
        assert_is(newest(store), 3)
        assert len(said) == 2

    def test_a_save_over_a_link_to_nothing(self, store, tmp_path):
        (store.folder / "step-00000004").symlink_to(tmp_path / "nothing")
        store.save(4, saved(4))
        assert_is(newest(store), 4)


class TestSpace:
    SIZE = 400_000

    @pytest.fixture
    def large(self):
        return CheckpointContent({"nets": {"a": torch.zeros(self.SIZE // 4)}}, {})

    def save_with(self, monkeypatch, store, content, free, total=10**12):
        usage = namedtuple("usage", "total used free")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage(total, total - free, free))
            store.save(4, content)

    def test_none_is_an_error_before_anything_is_written(self, store, large, monkeypatch):
        before = flat(store.folder)
        touched = []
        monkeypatch.setattr(os, "fsync", touched.append)
        with pytest.raises(OSError, match="no space left for a checkpoint") as error:
            self.save_with(monkeypatch, store, large, self.SIZE - 1)
        assert error.value.errno == errno.ENOSPC
        assert error.value.filename == str(store.folder)
        assert "0.40 MB are free, a checkpoint takes 0.40 MB" in error.value.strerror
        assert touched == []
        assert flat(store.folder) == before

    def test_little_is_said_and_used(self, store, said, large, monkeypatch):
        self.save_with(monkeypatch, store, large, 2 * self.SIZE - 1)
        assert store.newest() == 4
        assert len(said) == 1
        assert "0.80 MB are free, a checkpoint takes 0.40 MB; the next one may find" in said[0]

    @pytest.mark.parametrize(("free", "total"), [(800_000, 10**12), (0, 0)])
    def test_enough_or_unknown_is_not_said(self, store, said, large, monkeypatch, free, total):
        self.save_with(monkeypatch, store, large, free, total)
        assert store.newest() == 4
        assert said == []
