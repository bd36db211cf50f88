"""A run is the same bytes wherever, whenever and by whomever it is made: only its log of the
terminal and the figures of speed differ.
"""

import os
import re
import time

import pytest
from tests.end_to_end.test_main_job import fewstep

TRAIN = (
    *("train", "digits_teacher", "name=x", "data.limit=64", "teacher.network.channels=8"),
    *("teacher.network.groups=4", "teacher.network.head_channels=8", "trainer.steps=4"),
    *("trainer.batch=8", "trainer.health_every=2", "trainer.save_every=2", "trainer.log_every=1"),
    *("trainer.sample_every=4", "trainer.sample_steps=[2]", "trainer.device=cpu"),
)
SAMPLE = ("sample", "runs/x", "--num", 4, "--steps", 2, "--out")
EVALUATE = (
    *("evaluate", "runs/x", "--reference", "digits", "--num", 20, "--steps", 2),
    *("--out", "result.json", "--report", "result.html"),
)
NAME = (
    "my runs\there",
    "prøve 図 тест",
    "a;b $HOME 'x' #1 [z] {1,2}=3",
    *["long" * 20] * 4,
)


def made(folder):
    """Everything that training, sampling and evaluation write, path -> bytes, without speeds."""
    fewstep(*TRAIN)
    fewstep(*SAMPLE, "x.png")
    fewstep(*SAMPLE, "x.npz")
    fewstep(*EVALUATE)
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            found[str(path.relative_to(folder))] = path.read_bytes()
    return without_speeds(found)


def without_speeds(found):
    """path -> bytes, but for figures of speed."""
    for name, content in found.items():
        if name in ("result.json", "runs/x/results.json") and isinstance(content, bytes):
            found[name] = re.sub(r'"images_per_second": [\d.]+', "", content.decode())
        if name in ("result.html", "runs/x/report.html") and isinstance(content, bytes):
            # the last column, images/s, and how long the run took
            text = re.sub(r"<td>[\d,]+</td></tr>", "", content.decode())
            found[name] = re.sub(r"<dt>time</dt><dd>\d+ (s|min)</dd>", "", text)
        if name == "runs/x/status.json" and isinstance(content, bytes):
            found[name] = re.sub(r'"seconds": [\d.]+', "", content.decode())
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What is made in an ordinary folder."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return made(folder)


def assert_same(found, plain):
    assert list(found) == list(plain)
    for name, content in plain.items():
        assert found[name] == content, name


def test_what_is_compared(plain):
    for name in (
        *("runs/x/run.yaml", "runs/x/log.jsonl", "runs/x/status.json", "runs/x/report.html"),
        *("runs/x/student/model.safetensors", "runs/x/samples/step-00000004-2.png"),
        "runs/x/checkpoints/step-00000004/manifest.json",
    ):
        assert name in plain
    assert "images_per_second" not in plain["result.json"]


def test_in_a_folder_of_any_name(tmp_path, monkeypatch, plain):
    folder = tmp_path.joinpath(*NAME)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert_same(made(folder), plain)


def test_where_runs_is_a_link_to_another_disk(tmp_path, monkeypatch, plain):
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/runs").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "home")
    found = made(tmp_path / "home")
    for path in (tmp_path / "disk").rglob("*"):
        if path.is_file() and path.name != ".lock":
            found[f"runs/{path.relative_to(tmp_path / 'disk')}"] = path.read_bytes()
    assert_same(without_speeds(dict(sorted(found.items()))), dict(sorted(plain.items())))


def test_while_the_clock_jumps(tmp_path, monkeypatch, plain):
    """An hour back at every look: a server that corrects its clock, a laptop that slept."""
    looks = iter(range(10**9))
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began - 3600 * next(looks))
    monkeypatch.chdir(tmp_path)
    assert_same(made(tmp_path), plain)


def test_files_are_as_private_as_the_user_wants(tmp_path, monkeypatch, plain):
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o077)
    try:
        found = made(tmp_path)
    finally:
        os.umask(before)
    assert_same(found, plain)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
