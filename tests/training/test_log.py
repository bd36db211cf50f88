"""log.jsonl: each step once, a torn last line left out, later steps cut off when a run goes
back.
"""

import json
import math

import pytest
import torch

from fewstep.training.log import Log, read_log


def written(path, steps, start=0):
    log = Log(path, start)
    for step in steps:
        log.add(step, {"loss": torch.tensor(1 / step), "rate": 0.5})
    log.flush()
    return log


def test_numbers_come_back_in_order_and_once(folder):
    log = Log(folder / "log.jsonl", 0)
    log.add(
        1,
        {
            "loss": torch.tensor(0.25, dtype=torch.float64),
            "rate": 1.0,
            "skipped": torch.tensor(True),
        },
    )
    log.add(2, {"rate": 0.5})
    expected = [{"step": 1, "loss": 0.25, "rate": 1.0, "skipped": 1.0}, {"step": 2, "rate": 0.5}]
    assert read_log(log.path) == []  # nothing is read from the device before the flush
    assert log.flush() == expected
    assert log.flush() == []
    log.add(3, {"loss": torch.tensor(1 / 3)})
    assert log.flush() == [{"step": 3, "loss": 0.333333}]
    assert read_log(log.path) == [*expected, {"step": 3, "loss": 0.333333}]


def test_values_are_those_of_their_step(folder):
    """They are read later: adding must not keep a tensor that the next step overwrites in place."""
    log = Log(folder / "log.jsonl", 0)
    value = torch.tensor(1.0)
    log.add(1, {"loss": value.clone()})
    value.fill_(2.0)
    log.add(2, {"loss": value})
    assert [line["loss"] for line in log.flush()] == [1.0, 2.0]


def test_a_log_that_is_not_there_is_empty(folder):
    assert read_log(folder / "log.jsonl") == []


def test_a_last_line_torn_at_any_byte_is_left_out_and_written_again(folder):
    path = folder / "log.jsonl"
    written(path, range(1, 5))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(last, len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = size >= len(whole) - 1  # only the end of the line is missing
        assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4][: 3 + complete]
        written(path, [4], start=3)
        assert path.read_bytes() == whole


def test_bytes_of_nothing_behind_the_last_line_are_left_out(folder):
    """Some file systems leave zeros where a write was lost."""
    path = folder / "log.jsonl"
    written(path, range(1, 4))
    path.write_bytes(path.read_bytes() + bytes(100))
    assert [line["step"] for line in read_log(path)] == [1, 2, 3]
    written(path, [4], start=3)
    assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("start", range(6))
def test_going_back_cuts_off_what_came_later(folder, start):
    path = folder / "log.jsonl"
    written(path, range(1, 6))
    whole = path.read_bytes()
    Log(path, start)
    assert [line["step"] for line in read_log(path)] == list(range(1, start + 1))
    written(path, range(start + 1, 6), start)
    assert path.read_bytes() == whole
    assert [p.name for p in folder.iterdir()] == ["log.jsonl"]


def test_every_line_is_json_by_itself(folder):
    path = folder / "log.jsonl"
    log = Log(path, 0)
    log.add(1, {"loss": torch.tensor(1e-30), "ratio": torch.tensor(1.5e20)})
    log.flush()
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {"step": 1, "loss": 1e-30, "ratio": 1.5e20}


def test_numbers_that_json_does_not_know_are_null(folder):
    """NaN and Infinity are no JSON: other readers stop at them."""
    path = folder / "log.jsonl"
    log = Log(path, 0)
    log.add(1, {"loss": torch.tensor(math.nan), "norm": torch.tensor(math.inf), "rate": 1.0})
    log.flush()
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "norm": None,
        "rate": 1.0,
    }
    (line,) = read_log(path)
    assert math.isnan(line["loss"])
    Log(path, 1)  # going on from here writes it again
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["norm"] is None


def test_bytes_that_are_no_text_end_the_log(folder):
    path = folder / "log.jsonl"
    written(path, range(1, 3))
    path.write_bytes(path.read_bytes() + b"\xff\xfe{")
    assert [line["step"] for line in read_log(path)] == [1, 2]


# Damage

BAD = [
    "",
    "{",
    "5",
    "null",
    "[]",
    '"text"',
    "{}",
    '{"loss": 1.0}',
    '{"step": "3", "loss": 1.0}',
    '{"step": true, "loss": 1.0}',
    '{"step": 3.5, "loss": 1.0}',
    '{"step": -3, "loss": 1.0}',
    '{"step": 3, "loss": "1.0"}',
    '{"step": 3, "loss": {"a": 1}}',
    '{"step": 3, "loss": 1' + "0" * 400 + "}",
    '{"step": 3, "loss": 1' + "0" * 5000 + "}",
    "[" * 100_000,
    "\ud800\x00",
]


@pytest.mark.parametrize("bad", BAD, ids=lambda text: text[:20])
def test_a_bad_line_is_lost_alone_and_said(folder, bad):
    path = folder / "log.jsonl"
    written(path, range(1, 9))
    lines = path.read_bytes().split(b"\n")
    lines[2] = bad.encode(errors="surrogatepass")
    path.write_bytes(b"\n".join(lines))
    assert [line["step"] for line in read_log(path)] == [1, 2, 4, 5, 6, 7, 8]
    said = []
    Log(path, 6, said.append)
    assert [line["step"] for line in read_log(path)] == [1, 2, 4, 5, 6]
    assert said == [f"{path} is damaged: the numbers of steps 3 are lost; the run goes on"]


@pytest.mark.parametrize(
    ("left", "lost"),
    [
        ([], "1 to 8"),
        ([1, 2, 8], "3 to 7"),
        ([3, 5, 6, 7], "1 to 2, 4, 8"),
        ([1, 3, 5, 7], "2, 4, 6, 8"),
    ],
)
def test_what_is_lost_is_named(folder, left, lost):
    said = []
    written(folder / "log.jsonl", left)
    Log(folder / "log.jsonl", 8, said.append)
    assert [f"the numbers of steps {lost} are lost" in line for line in said] == [True]


def test_many_gaps_are_no_long_line(folder):
    said = []
    written(folder / "log.jsonl", range(1, 1000, 2))
    Log(folder / "log.jsonl", 999, said.append)
    assert "steps 2, 4, 6, 8, 10 and 494 more gaps are lost" in said[0]


def test_nothing_is_said_of_a_whole_log_or_of_a_torn_end(folder):
    path = folder / "log.jsonl"
    written(path, range(1, 6))
    path.write_bytes(path.read_bytes()[:-3])
    Log(path, 4, pytest.fail)
    Log(folder / "new.jsonl", 0, pytest.fail)


def test_a_line_twice_or_at_another_place_is_there_once(folder):
    path = folder / "log.jsonl"
    written(path, range(1, 5))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([lines[3], *lines, lines[0]]))
    Log(path, 4, pytest.fail)
    assert path.read_bytes() == whole
