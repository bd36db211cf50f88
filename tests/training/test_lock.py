"""Two runs never share a folder; a run that was killed leaves no obstacle."""

import errno
import fcntl
import os
import signal
import socket
import sys

import pytest

from fewstep.errors import RefusedError
from fewstep.training.run_folder import Lock


@pytest.fixture
def holder(folder):
    """Another process that holds the folder: its id. It ends with this one, whatever happens."""
    reader, writer = os.pipe()
    wait, alive = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(alive)
            lock = Lock(folder)
            lock.take()
            os.write(writer, b"1")
            os.read(wait, 1)
            lock.release()
        finally:
            os._exit(1)
    assert os.read(reader, 1) == b"1"
    yield child
    for end in (reader, writer, wait, alive):
        os.close(end)
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_second_run_is_refused_with_the_holders_name(folder, holder):
    for _ in range(2):  # being refused must not break the lock
        with pytest.raises(RefusedError) as error:
            Lock(folder).take()
        words = str(error.value).replace(";", " ").split()
        assert str(holder) in words
        assert socket.gethostname() in words
        assert str(folder) in words


def test_a_killed_holder_is_no_obstacle(folder, holder):
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    lock = Lock(folder)
    lock.take()
    assert (folder / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    with pytest.raises(RefusedError, match=f"process {os.getpid()} "):
        Lock(folder).take()
    lock.release()


def test_a_released_folder_can_be_taken_again(folder):
    lock = Lock(folder)
    lock.take()
    lock.release()
    lock = Lock(folder)
    lock.take()
    other = Lock(folder / "other")  # a folder that does not exist yet, and is not in use
    other.take()
    other.release()
    lock.release()


def test_a_run_in_a_folder_that_is_in_use_is_refused_before_it_touches_anything(folder, holder):
    from fewstep.data.digits import Digits
    from fewstep.methods.diffusion import Diffusion
    from fewstep.run import Run, distil

    with pytest.raises(RefusedError, match=f"process {holder} "):
        distil(Run(Digits(), Diffusion()), folder, restart=True)
    assert [p.name for p in folder.iterdir()] == [".lock"]


# What the folder's file may be


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_not_written_to(folder, link):
    mine = folder / "mine"
    mine.write_text("mine")
    run = folder / "run"
    run.mkdir()
    link(mine, run / ".lock")
    with pytest.raises(ValueError, match=r"run/\.lock is a .*link.* remove it"):
        Lock(run).take()
    assert mine.read_text() == "mine"


def test_what_another_program_keeps_there_stays(folder):
    (folder / ".lock").write_text("PID 7\n")
    lock = Lock(folder)
    lock.take()
    assert (folder / ".lock").read_text() == "PID 7\n"
    with pytest.raises(RefusedError, match="in use by another process"):
        Lock(folder).take()
    lock.release()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(folder, monkeypatch, code):
    def unknown(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unknown)
    lock = Lock(folder)
    with pytest.warns(RuntimeWarning, match=f"file system has no locks.*{folder.name}"):
        lock.take()
    assert lock.taken
    lock.release()


def test_so_is_a_platform_without_them(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    lock = Lock(folder)
    with pytest.warns(RuntimeWarning, match="no locks"):
        lock.take()
    assert lock.taken
    lock.release()


def test_an_error_of_the_disk_is_one_and_leaves_nothing(folder, monkeypatch):
    def broken(file, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match=r"Input/output error: '.*run/\.lock'"):
        Lock(folder / "run").take()
    assert list(folder.iterdir()) == []


def test_a_file_is_no_folder(folder):
    (folder / "run").write_text("mine")
    with pytest.raises(ValueError, match="run is no folder"):
        Lock(folder / "run").take()
    assert (folder / "run").read_text() == "mine"
