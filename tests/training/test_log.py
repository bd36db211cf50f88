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
