"""Files are whole or absent, links are never followed, and what a file system does not know stops
nothing.
"""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fewstep import files
from fewstep.files import (
    append_text,
    beside,
    load_tensors,
    new_folder,
    read_json,
    remove_leftovers,
    replace_tensors,
    save_tensors,
    sync,
    write_bytes,
    write_json,
)

ONE = {"a": torch.ones(3)}


def by_write_bytes(path):
    write_bytes(path, b"new")


def by_write_json(path):
    write_json(path, {"a": 1})


def by_replace_tensors(path):
    replace_tensors(path, ONE)


def by_new_folder(path):
    with new_folder(path) as inside:
        (inside / "a").write_text("new")


WAYS = [by_write_bytes, by_write_json, by_replace_tensors, by_new_folder]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    return int(subprocess.run(["sh", "-c", "echo $$"], capture_output=True, check=True).stdout)


class TestUnknownToTheFileSystem:
    @pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES])
    def test_folders_that_cannot_be_synced(self, tmp_path, monkeypatch, code):
        fsync = os.fsync

        def filed(handle):
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(code, os.strerror(code))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", filed)
        with pytest.warns(RuntimeWarning, match="cannot sync"):
            by_new_folder(tmp_path / "x")
        assert names(tmp_path) == ["x"]

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
    def test_an_error_of_the_disk_is_one(self, tmp_path, monkeypatch, code):
        def broken(handle):
            raise OSError(code, os.strerror(code))

        write_bytes(tmp_path / "x", b"old")
        monkeypatch.setattr(os, "fsync", broken)
        for work in (sync, by_write_bytes):
            with pytest.raises(OSError, match=os.strerror(code)) as error:
                work(tmp_path / "x")
            assert error.value.errno == code
        assert error.value.filename == str(tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == b"old"
        assert names(tmp_path) == ["x"]

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_no_modes(self, tmp_path, monkeypatch, code):
        def refused(*_, **__):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "chmod", refused)
        monkeypatch.setattr(Path, "chmod", refused)
        with pytest.warns(RuntimeWarning, match="no modes"):
            save_tensors(tmp_path / "x", ONE)
        assert load_tensors(tmp_path / "x")["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027, 0o002])
def test_the_umask_is_kept(tmp_path, mask):
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "weights", ONE)
        by_replace_tensors(tmp_path / "index")
        by_write_bytes(tmp_path / "file")
        append_text(tmp_path / "log", "x")
        by_new_folder(tmp_path / "folder")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("folder") == 0o777 & ~mask
    assert modes == dict.fromkeys(modes, 0o666 & ~mask)


class TestLinks:
    @pytest.fixture
    def mine(self, tmp_path):
        """A folder and a file of the user's, elsewhere."""
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("mine")
        (tmp_path / "run").mkdir()
        yield tmp_path / "mine"
        assert names(tmp_path / "mine") == ["file"]
        assert (tmp_path / "mine" / "file").read_text() == "mine"

    @pytest.mark.parametrize("to", ["file", ".", "nothing"])
    @pytest.mark.parametrize("way", WAYS)
    def test_a_link_is_replaced(self, tmp_path, mine, way, to):
        path = tmp_path / "run" / "x"
        path.symlink_to(mine / to)
        if to == "." and way is not by_new_folder:
            path.unlink()
            path.symlink_to(mine / "file")
        way(path)
        assert not path.is_symlink()
        assert names(tmp_path / "run") == ["x"]

    @pytest.mark.parametrize("to", ["file", "."])
    @pytest.mark.parametrize("way", WAYS)
    def test_under_the_name_beside(self, tmp_path, mine, way, to):
        """Whoever may write there can guess it."""
        path = tmp_path / "run" / "x"
        beside(path).symlink_to(mine / to)
        way(path)
        assert names(tmp_path / "run") == ["x"]

    def test_nothing_is_added_to_what_a_link_names(self, tmp_path, mine):
        (tmp_path / "run" / "log").symlink_to(mine / "file")
        with pytest.raises(OSError, match="log"):
            append_text(tmp_path / "run" / "log", "more")

    def test_weights(self, tmp_path, mine):
        (tmp_path / "run" / "x").symlink_to(mine / "file")
        with pytest.raises(FileExistsError):
            save_tensors(tmp_path / "run" / "x", ONE)

    def test_leftovers(self, tmp_path, mine):
        (tmp_path / "run" / ".tmp-99-a").symlink_to(mine)
        (tmp_path / "run" / ".del-99-b").symlink_to(mine / "file")
        remove_leftovers(tmp_path / "run", own=True)
        assert names(tmp_path / "run") == []


def test_a_device_is_no_place_for_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no regular file"):
        write_bytes(tmp_path / "pipe", b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x"])
def test_names_as_long_as_the_system_allows(tmp_path, way, name):
    way(tmp_path / name)
    assert names(tmp_path) == [name]


class TestLeftovers:
    """What a killed process was writing goes at the next start; what somebody writes now stays."""

    def left(self, folder, process, kind="tmp", host=None):
        """As `beside` names it in that process."""
        begin, _, machine, *rest = beside(folder / "x", kind).name.split("-")
        path = folder / "-".join([begin, str(process), host or machine, *rest])
        path.write_text("half")
        return path

    @pytest.mark.parametrize("kind", ["tmp", "del"])
    @pytest.mark.parametrize("way", WAYS)
    def test_of_a_dead_process(self, tmp_path, dead, way, kind):
        self.left(tmp_path, dead, kind)
        way(tmp_path / "y")
        assert names(tmp_path) == ["y"]

    def test_of_a_process_before_that_had_the_same_number(self, tmp_path):
        """As in a container, where each has the number 1."""
        self.left(tmp_path, os.getpid())
        by_write_bytes(tmp_path / "x")
        by_new_folder(tmp_path / "y")
        assert names(tmp_path) == ["x", "y"]

    @pytest.mark.parametrize("own", [False, True])
    def test_of_a_living_process(self, tmp_path, own):
        path = self.left(tmp_path, os.getppid())
        remove_leftovers(tmp_path, own)
        assert path.exists()

    def test_of_another_machine(self, tmp_path, dead):
        path = self.left(tmp_path, dead, host="abcdef")
        remove_leftovers(tmp_path)
        assert path.exists()
        os.utime(path, (time.time() - 1e6,) * 2)
        remove_leftovers(tmp_path)
        assert not path.exists()

    def test_what_only_looks_like_it_is_the_users(self, tmp_path):
        for name in (".tmp-2024-backup", ".tmp-notes", ".del-99-x"):
            (tmp_path / name).write_text("mine")
        by_write_bytes(tmp_path / "x")
        assert names(tmp_path) == [".del-99-x", ".tmp-2024-backup", ".tmp-notes", "x"]
        remove_leftovers(tmp_path, own=True)  # in a run's folder a number is fewstep's
        assert names(tmp_path) == [".tmp-notes", "x"]

    def test_what_is_being_written_stays(self, tmp_path):
        with new_folder(tmp_path / "a") as inside:
            (inside / "file").write_text("x")
            by_write_bytes(tmp_path / "b")
            remove_leftovers(tmp_path, own=True)
        assert names(tmp_path) == ["a", "b"]
        assert names(tmp_path / "a") == ["file"]

    @pytest.mark.parametrize("place", ["os.replace", "os.rename"])
    def test_a_real_kill(self, tmp_path, place):
        code = (
            "import os; from pathlib import Path; from tests.test_files import *\n"
            f"{place} = lambda *_, **__: os.kill(os.getpid(), 9)\n"
            f"by_write_bytes(Path('x')) if {place!r} == 'os.replace' else by_new_folder(Path('x'))"
        )
        root = str(Path(__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])}
        ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
        assert ended.returncode == -9
        assert len(names(tmp_path)) == 1
        by_write_bytes(tmp_path / "y")
        assert names(tmp_path) == ["y"]


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 200_000, "1" * 5000, "{", "", "\ud800"],
    ids=["lists", "mappings", "a number", "a brace", "nothing", "no text"],
)
def test_json_of_any_content_is_damaged_by_its_name(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")


def test_the_length_of_json_is_looked_at_first(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    (tmp_path / "x.json").write_text(json.dumps("x" * 10))
    with pytest.raises(ValueError, match=r"x\.json is damaged: .* less than 10 bytes"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match="zero is damaged"):  # a file without a size
        read_json(Path("/dev/zero"))
