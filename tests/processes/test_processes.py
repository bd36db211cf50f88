"""Two processes under torchrun do what one does. checks.py measures, in one start; here the numbers
are judged.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from tests.processes.going_on import CUT
from tests.processes.launch import LIMIT, memory, torchrun
from tests.processes.measuring import is_key_bias
from tests.test_contracts import METHODS

from fewstep.contracts.trial import teacher
from fewstep.data.digits import Digits
from fewstep.diffusion.process import VarianceExploding

pytestmark = pytest.mark.processes

SHARDED = ("none", "full")
NOTICE = "going on in another setting"


class Measured:
    """What both processes measured, by check."""

    def __init__(self, folder: Path, code: int, said: str):
        paths = [folder / f"values-{rank}.json" for rank in range(2)]
        self.values = [json.loads(path.read_text()) if path.is_file() else {} for path in paths]
        failures = [path.read_text() for path in sorted(folder.glob("failed-*.txt"))]
        self.failure = "\n".join(failures) or f"torchrun ended with {code}:\n{said[-3000:]}"

    def of(self, name):
        """One entry per process."""
        if any(name not in values for values in self.values):
            pytest.fail(f"{name} was not measured. {self.failure}", pytrace=False)
        return [{k: v for k, v in values[name].items() if k != "seconds"} for values in self.values]

    def both(self, name, part=None):
        """What the two processes must agree on: all that they measured, or a part of it."""
        one, two = (found if part is None else found[part] for found in self.of(name))
        assert one == two
        return one


@pytest.fixture(scope="module")
def measured():
    with memory() as folder:
        with torchrun("-m", "tests.processes.checks", folder) as process:
            try:
                said, _ = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                said = f"not at its end after {LIMIT:.0f} s"
        return Measured(folder, process.returncode, said)


def assert_equal_runs(found, lines=3, weights=1e-5, losses=1e-5):
    """moved: how far the weights went at all, which must be far beyond the tolerance."""
    assert found["lines"] == lines
    assert found["losses"] <= losses
    assert found["weights"] <= weights
    assert found["moved"] >= 100 * weights


@pytest.mark.parametrize("name", METHODS)
def test_plain_descent_is_that_of_one_process(measured, name):
    assert_equal_runs(measured.both(f"descent-{name}"))


@pytest.mark.parametrize("name", METHODS)
def test_sharded_descent_is_that_of_one_process(measured, name):
    assert_equal_runs(measured.both(f"sharded-{name}"))


@pytest.mark.parametrize("name", METHODS)
def test_adam_is_that_of_one_process_up_to_signs_of_nothing(measured, name):
    """Adam's first steps hardly know a gradient's size: where it is rounding alone they are
    arbitrary.

    That is so for the key biases (`is_key_bias`), and for some weights in thousands whose gradient
    happens to be small.
    """
    found = measured.both(f"adam-{name}")
    assert found["lines"] == 3
    assert found["losses"] <= 1e-5
    assert (
        found["beyond"] <= 5e-3 * found["count"]
    )  # of all weights but the key biases, further apart than 1e-5
    assert found["moved"] > 1e-3


def test_only_key_biases_have_no_gradient():
    """In float64 their gradient is 1e-12 of the others' or less, and no other weight's is, of those
    that were read.
    """
    digits = Digits(limit=64).dataset()
    model = teacher(VarianceExploding())
    denoiser = model.denoiser.double()
    x, goal = (torch.randn(20, *digits.shape, dtype=torch.float64) for _ in range(2))
    out = denoiser(
        x,
        torch.logspace(-2, 1, 20, dtype=torch.float64),
        model.conditioner({"label": torch.arange(20) % 10}),
    )
    (out * goal).sum().backward()
    gradients = {name: p.grad for name, p in denoiser.named_parameters()}
    top = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        nothing = is_key_bias(name, gradient)
        if name.endswith("label_emb.weight"):
            nothing[10] = True  # "no label", which no row has
        assert torch.equal(gradient.abs() < 1e-12 * top, nothing), name


@pytest.mark.parametrize("sharding", SHARDED)
def test_clipping_is_by_the_norm_over_all_processes(measured, sharding):
    found = measured.both("clipped")[sharding]
    assert_equal_runs(found, lines=6, weights=1e-6)
    assert min(found["norms"]) > 100 * 1e-3  # the limit


@pytest.mark.parametrize("micro", ["0", "4"])
def test_a_batch_may_be_odd(measured, micro):
    runs = [found[micro] for found in measured.of("odd")]
    assert [found["rows"] for found in runs] == [7, 8]
    assert runs[0]["bits"] == runs[1]["bits"]
    assert_equal_runs(runs[0], lines=6, weights=1e-6)


def test_all_pass_an_odd_batch_in_equal_parts(measured):
    """Otherwise they halve them differently where memory runs out, and what a resumed run takes
    over fits only one.
    """
    leading, other = measured.of("odd")
    assert leading["0"]["micro"] == other["0"]["micro"] == 8
    assert leading["4"]["micro"] == other["4"]["micro"] == 4


def test_a_batch_that_cannot_be_split_is_refused(measured):
    found = measured.both("refusals")
    assert "trainer.batch=1 " in found["too small"]
    assert "trainer.batch=15" in found["odd and sharded"]


def test_a_transformer_is_split_block_by_block(measured):
    runs = measured.of("transformer")
    for found in runs:
        assert_equal_runs(found)
        assert 0.45 < found["held"] < 0.55  # each process holds half of the weights
    assert sum(found["held"] for found in runs) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["bf16", "bf16 sharded", "fp16"])
def test_other_arithmetic_accumulates_alike(measured, name):
    found = measured.both("precisions")[name]
    assert_equal_runs(found, lines=2, weights=5e-6, losses=1e-4)
    assert found["from fp32"] > 1e-7  # it was another arithmetic


@pytest.mark.parametrize("sharding", SHARDED)
def test_accumulation_gives_the_whole_batch(measured, sharding):
    assert_equal_runs(measured.both("accumulated")[sharding], lines=6, weights=1e-6)


@pytest.mark.parametrize("optimizer", ["Sgd", "AdamW"])
@pytest.mark.parametrize("sharding", SHARDED)
def test_a_row_that_is_not_a_number_skips_the_update_in_all_processes(
    measured, sharding, optimizer
):
    """Row 5, the second process's, in batch 5: the student's in the second step. The other network
    goes on.
    """
    found = measured.both("not_a_number")[f"{sharding} {optimizer}"]
    student, fake = found["student"], found["fake"]
    assert student[2] == student[1]
    assert len(set(student)) == len(student) - 1
    assert len(set(fake)) == len(fake)
    assert found["finite"]
    assert found["skipped"] == [0, 1, 0, 0, 0, 0]
    assert found["flags"] == [1]


def test_too_many_skips_end_all_processes(measured):
    found = measured.both("diverged")
    assert found["said"].startswith("2 of the last 100 steps had a non-finite loss or gradient")
    assert found["steps"] == [2, 3]
    assert found["ids"] == [24, 24]  # three batches of 8, whole
    assert (found["status"]["state"], found["status"]["step"]) == ("diverged", 3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "int64", "mixed"])
def test_sums_go_through_buckets(measured, dtype):
    found = measured.both("sums")[dtype]
    assert all(found["equal"])
    assert found["in place"]
    assert found["buckets"] == [
        1 + 3 + 0 + 6,
        25,
        1,
        16,
        7 + 1,
        12,
        24,
    ]  # of up to 10; a larger tensor goes alone
    assert sum(found["buckets"]) == sum(found["sizes"])


def test_the_leading_process_answers_for_all(measured):
    leading, other = measured.of("agreements")
    assert leading["leader"]
    assert not other["leader"]
    assert (leading["asked"], other["asked"]) == ([0, 0], [])
    assert leading["given"] == other["given"] == 0
    assert leading["path"]
    assert other["path"]
    assert (leading["failure"], other["failure"]) == ("OSError", "RuntimeError")
    assert leading["behind it"] == other["behind it"] == 7


def test_max_and_rows(measured):
    leading, other = measured.of("agreements")
    assert leading["max"] == other["max"] == [1, 5, -3, 2**40 + 1]
    for size, one, two in zip((16, 15, 2), leading["rows"], other["rows"]):
        assert one + two == list(range(size))


@pytest.mark.parametrize("sharding", SHARDED)
def test_all_begin_with_the_weights_of_the_leading_process(measured, sharding):
    leading, other = (found[sharding] for found in measured.of("spread"))
    assert leading["before"] != other["before"]
    assert leading["after"] == other["after"] == leading["before"]
    assert leading["nets"] == ["fake", "head", "student", "teacher"]


@pytest.mark.parametrize("sharding", SHARDED)
def test_one_process_writes(measured, sharding):
    leading, other = (found[sharding] for found in measured.of("written"))
    assert leading["writes"] > 20  # what counts them works
    assert other["writes"] == 0, other["first"]
    assert leading["checkpoints"] == other["checkpoints"] == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("name", ["2 to 2", "sharded to sharded"])
def test_a_run_that_goes_on_in_the_same_setting_has_the_same_bits(measured, name):
    found = measured.both("resumed", name)
    assert found["bits"] == found["straight"]
    assert found["same log"]
    assert found["said"] == []


CHANGES = {
    "1 to 2": "processes: 1 -> 2",
    "2 to 1": "processes: 2 -> 1",
    "sharded to not": "sharding: full -> none",
    "not to sharded": "sharding: none -> full",
    "sharded to 1": "processes: 2 -> 1, sharding: full -> none",
    "1 to sharded": "processes: 1 -> 2, sharding: none -> full",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_goes_on_in_another_setting(measured, name):
    """The same data and noise: the whole run in one process is met within rounding, its optimizers
    as well.
    """
    runs = [found[name] for found in measured.of("resumed") if found[name]]
    assert len(runs) == (1 if name.endswith("to 1") else 2)
    for found in runs:
        assert_equal_runs(found, lines=6, weights=1e-6, losses=1e-5)
        assert found["optimizers"] <= 1e-6
        assert found["batches"] == 18
        assert found["micro"] == (8 if name.endswith("to 1") else 4)  # all rows of a process
        assert [line.partition(" (")[0] for line in found["said"]] == [NOTICE]
        assert f"({CHANGES[name]})" in found["said"][0]


def test_a_run_of_an_odd_batch_goes_on_with_the_same_bits(measured):
    found = measured.both("resumed_odd")
    assert found["bits"] == found["straight"]
    assert found["said"] == []


def test_a_sharded_network_goes_on_unsharded(measured):
    assert_equal_runs(measured.both("resumed_network"), lines=2)


@pytest.mark.parametrize("sharding", SHARDED)
def test_exported_networks_are_equal_and_whole(measured, sharding):
    found = measured.both("exported")
    assert found[sharding]["plain"]
    assert found[sharding]["saved"]  # the averages of the checkpoint
    assert found[sharding]["untouched"]
    assert not found[sharding]["training"]
    assert found["apart"] <= 1e-6


def test_networks_that_share_a_base_learn_as_in_one_process(measured):
    found = measured.both("shared")
    assert_equal_runs(found)
    assert found["once"]
    assert found["saved"] == ["down", "up"]
    assert "sharding=full does not go with" in found["refused"]


def test_all_go_down_to_the_micro_batch_that_one_needs(measured):
    found = measured.both("out_of_memory")
    assert_equal_runs(found, lines=6, weights=1e-6)
    assert found["micro"] == 2


@pytest.mark.parametrize("name", ["two", "half"])
def test_the_command_line_does_in_two_processes_what_it_does_in_one(measured, name):
    leading, other = measured.of("by_command")
    assert other[name] == {"code": 0, "said": []}
    found = leading[name]
    assert found["code"] == 0
    assert found["lines"] == 6
    assert found["log"] <= 1e-5
    assert found["student"] <= 1e-5
    assert found["status"].pop("seconds") > 0
    assert found["status"].pop("threads") == 1
    assert found["status"] == {"state": "finished", "step": 6, "steps": 6, "reason": ""}
    assert found["report"]
    notices = [line for line in found["said"] if NOTICE in line]
    assert len(notices) == (name == "half")
    first = CUT + 1 if name == "half" else 1
    told = [line.split(",")[0] for line in found["said"] if ": step " in line]
    assert told == [f"{name}: step {n} of 6" for n in range(first, 7)]
    assert leading["middle"] == CUT


def test_what_the_leading_process_refuses_is_said_once(measured):
    leading, other = (found["refused"] for found in measured.of("by_command"))
    assert leading["code"] == 3
    assert len(leading["said"]) == 1
    assert "another configuration: trainer.steps: 6 -> 5" in leading["said"][0]
    assert (leading["waits"], other["waits"]) == (
        [0.0],
        [5.0],
    )  # by then torchrun has ended the other
    assert other["code"] == 1
