"""`fewstep check`: a method from outside that keeps the laws passes, each that breaks one is told
so.
"""

import sys
from pathlib import Path

import pytest
from tests.cli.lab_method import GOOD, broken

from fewstep import plugins
from fewstep.contracts.laws import LAWS

MOVES = "        ema_update(nets.target, nets.student, self.slow)"
ERROR = "error = (answer - goal / 2 + batch.data / 50).square().flatten(1).mean(1)"
LIAR = '''
@dataclass(frozen=True)
class Liar(FlowMap):
    """Half of the truth."""

    @property
    def evaluations(self):
        return 1
'''

# name: (what is changed, the law that is broken, words of the sentence, other laws that follow)
BROKEN = {
    "its_teacher_moves": (
        [(MOVES, f"{MOVES}\n        ema_update(nets.teacher, nets.student, 0.9)")],
        "only_declared_networks_change",
        ["teacher/", "teacher is frozen()", "trained() or moved()", "clone"],
        ["a_stopped_run_goes_on_equal"],
    ),
    "moved_and_not_declared": (
        [("target: Denoiser = moved()", "target: Denoiser = frozen()")],
        "only_declared_networks_change",
        ["target/", "target is frozen()", "trained() or moved()"],
        ["a_stopped_run_goes_on_equal"],
    ),
    "declared_and_not_moved": (
        [(MOVES, "        pass")],
        "trains_at_all",
        ["target is moved(), but 3 steps did not change it"],
        [],
    ),
    "rows_mixed": (
        [(ERROR, f"{ERROR}\n        error = error / error.mean().detach()")],
        "rows_do_not_mix",
        ["'answer' of rows 0 … 7 changes by", "group()"],
        ["micro_batches_equal_the_batch"],
    ),
    "a_mean_and_not_rows": (
        [(".flatten(1).mean(1)", ".mean()")],
        "losses_are_one_number_per_row",
        ["'answer' has the shape () for 16 rows", "the trainer takes the mean"],
        ["rows_do_not_mix", "micro_batches_equal_the_batch"],
    ),
    "nothing_to_learn": (
        [(ERROR, "error = (answer - answer.detach()).square().mean()")],
        "trains_at_all",
        ["student is trained()", "did not change it"],
        ["losses_are_one_number_per_row", "rows_do_not_mix"],
    ),
    "random_numbers_of_its_own": (
        [("share = batch.draws.uniform()", "share = torch.rand(len(batch.data)).double()")],
        "draws_from_the_batch",
        ["'answer' of the same rows differs by", "batch.draws"],
        ["knows_no_loop", "micro_batches_equal_the_batch"],
    ),
    "words_of_the_loop": (
        [("share = batch.draws.uniform()", "share = torch.rand(len(batch.data)).double()")],
        "knows_no_loop",
        ["line 35 has 'torch.rand'", "batch.draws"],
        ["draws_from_the_batch", "micro_batches_equal_the_batch"],
    ),
    "a_sampler_that_lies": (
        [
            ("return Renoise(steps=2)", "return Liar(steps=2)"),
            ("import Renoise", "import FlowMap"),
            ("# imports", LIAR),
        ],
        "the_sampler_costs_what_it_says",
        ["Liar with 2 steps announces 1 evaluations and needed 2"],
        [],
    ),
    "a_default_of_another_type": (
        [("slow: Share = 0.5", 'slow: Share = "0.5"'), ("self.slow)", "float(self.slow))")],
        "options_round_trip",
        ["slow='0.5'", "0.5 when it is read"],
        [],
    ),
    "a_default_that_is_not_allowed": (
        [("slow: Share = 0.5", "slow: Share = -0.5")],
        "options_round_trip",
        ["slow: Input should be greater than or equal to 0"],
        [],
    ),
    "no_docstring": (
        [
            (
                '    """The student learns the teacher\'s answers and those of its slow copy '
                '(ours, 2026)."""\n',
                "",
            )
        ],
        "docstring_names_a_source",
        ["no docstring"],
        [],
    ),
    "no_source": (
        [(" (ours, 2026)", "")],
        "docstring_names_a_source",
        ["names no source", "arXiv:"],
        [],
    ),
    "no_sentence": (
        [('    """What the slow copy keeps of itself in each step."""\n', "")],
        "options_are_explained",
        ["no sentence under slow"],
        [],
    ),
    "a_gradient_in_the_target": (
        [
            (
                "answer = nets.student(x_t, t, batch.cond)",
                "answer = nets.student(x_t, t, batch.cond)\n"
                "        nets.target.requires_grad_(True)\n"
                "        answer = answer + nets.target(x_t, t, batch.cond) - goal / 2",
            )
        ],
        "gradients_reach_what_trains",
        ["the loss of student has gradients in target"],
        [],
    ),
    "memory_of_its_own": (
        [
            ("# imports", "SEEN = []"),
            (ERROR, f"SEEN.append(1)\n        {ERROR} * (1 + len(SEEN) / 10)"),
        ],
        "a_repeated_run_is_equal",
        ["in a second run student/", "outside the networks and the clock"],
        [
            "rows_do_not_mix",
            "draws_from_the_batch",
            "micro_batches_equal_the_batch",
            "a_stopped_run_goes_on_equal",
            "a_longer_run_begins_the_same",
            "recomputing_changes_nothing",
        ],
    ),
    "spread_and_not_said": (
        [(ERROR, f"{ERROR} * (1 + clock.progress)")],
        "a_longer_run_begins_the_same",
        ["half way through a run of twice as many steps student/", "reads_length"],
        [],
    ),
    "refuses_too_late": (
        [
            (
                "process = nets.teacher.process",
                "process = nets.teacher.process\n"
                "        if process.discrete:\n"
                '            raise ValueError("times must be real numbers")',
            )
        ],
        "any_process_will_do",
        ["process variance_preserving_table: refused in training", "build_nets"],
        [],
    ),
}


@pytest.fixture(autouse=True)
def _unknown(monkeypatch):
    """Every test begins without plug-ins, and leaves none."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("outside_"):
            del sys.modules[name]


@pytest.fixture
def write(request):
    """Writes a method's file under a name of its own, which is also that of its class's module."""
    number = 0

    def call(text):
        nonlocal number
        number += 1
        path = Path(f"outside_{request.node.name.replace('[', '_').rstrip(']')}_{number}.py")
        path.write_text(text)
        return path

    return call


def said(ended):
    """What was said of each law: (passed or FAILED, sentence)."""
    found = {}
    for line in ended.out.splitlines():
        if line.startswith("  "):
            word, _, rest = line.strip().partition("  ")
            law, _, reason = rest.partition(": ")
            found[law] = (word, reason)
    return found


def only(*laws):
    words = []
    for law in laws:
        words += ["--law", law]
    return words


def test_a_good_method_keeps_every_law(fewstep, write):
    ended = fewstep("check", write(GOOD))
    assert ended.code == 0, ended
    assert list(said(ended)) == list(LAWS)
    assert {word for word, _ in said(ended).values()} == {"passed"}
    assert ended.out.startswith("lab_answers (outside_")
    assert ended.err == ""


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_told_which_law_and_why(fewstep, write, name):
    changes, law, words, _ = BROKEN[name]
    ended = fewstep("check", write(broken(*changes)), *only(law))
    assert ended.code == 2
    assert ended.err == f"error: lab_answers breaks {law}\n"
    word, reason = said(ended)[law]
    assert word == "FAILED"
    for text in words:
        assert text in reason


def test_a_checkpoint_is_compared_as_its_file_says_it(fewstep, write):
    """A default '0.5' is read again as 0.5, which is no other method."""
    changes, *_ = BROKEN["a_default_of_another_type"]
    ended = fewstep("check", write(broken(*changes)), *only("a_stopped_run_goes_on_equal"))
    assert ended.code == 0, ended


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_and_breaks_no_other_law_but_what_follows(fewstep, write, name):
    changes, law, _, others = BROKEN[name]
    found = said(fewstep("check", write(broken(*changes))))
    assert list(found) == list(LAWS)
    assert {one for one, (word, _) in found.items() if word == "FAILED"} == {law, *others}


def test_what_a_method_raises_is_told_with_its_line(fewstep, write):
    path = write(broken((ERROR, "error = answer + torch.zeros(3)")))
    ended = fewstep("check", path)
    assert ended.code == 2
    reason = said(ended)["trains_at_all"][1]
    assert reason.startswith("RuntimeError: The size of tensor")
    assert reason.endswith(f"({path.name}, line 41)")
    assert "15 laws of training were not tried" in ended.out
    assert len(ended.err.splitlines()) == 1


def test_debug_shows_where_a_method_raised(fewstep, write):
    path = write(broken((ERROR, "error = answer + torch.zeros(3)")))
    ended = fewstep("check", path, "--law", "trains_at_all", "--debug")
    assert ended.code == 2
    cause, _, rest = ended.err.partition("The above exception was the direct cause")
    assert "error = answer + torch.zeros(3)" in cause
    assert cause.rstrip().splitlines()[-1].startswith("RuntimeError: The size of tensor a")
    assert rest.splitlines()[-1].startswith("error: ")
    assert "breaks trains_at_all" in rest.splitlines()[-1]


def test_a_method_of_the_package_by_its_name(fewstep):
    ended = fewstep("check", "ConsistencyDistillation", *only("knows_no_loop"))
    assert ended.code == 0
    assert ended.out.startswith("consistency_distillation (fewstep.methods.consistency_distill")


def test_one_of_several_methods(fewstep, refused, write):
    second = GOOD[GOOD.index("@dataclass") :].replace("LabAnswers", "LabOther")
    path = write(GOOD + second)
    ended = fewstep("check", path, *only("knows_no_loop"))
    assert [line.split()[0] for line in ended.out.splitlines()[::2]] == ["lab_answers", "lab_other"]
    ended = fewstep("check", path, "--method", "LabOther", *only("knows_no_loop"))
    assert ended.out.startswith("lab_other")
    assert len(ended.out.splitlines()) == 2
    refused(2, "check", path, "--method", "none", says=["'none'", "lab_answers, lab_other"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nosuchmodule", ["cannot be imported", "nosuchmodule"]),
        ("x = (", ["cannot be imported", "SyntaxError"]),
        ("x = 3", ["defines no method", "Method"]),
        ("from fewstep.methods.dmd2 import DMD2", "defines no method"),
        (GOOD.replace("@dataclass(frozen=True)\n", ""), ["LabAnswers", "put @dataclass(frozen"]),
        (GOOD.replace("def loss(", "def lost("), ["LabAnswers", "leaves out loss"]),
        (GOOD.replace("slow: Share = 0.5", "slow: Share"), ["breaks options_round_trip"]),
    ],
    ids=["import", "syntax", "empty", "foreign", "undecorated", "abstract", "needed"],
)
def test_what_is_wrong_with_the_file(refused, write, text, says):
    refused(2, "check", write(text), *only("options_round_trip"), says=says)


def test_names(refused):
    refused(2, "check", "gone.py", says="no plug-in gone.py")
    refused(2, "check", "gone_module", says="gone_module")
    refused(2, "check", "dmd2", "--law", "rows_do_not_mixx", says="did you mean rows_do_not_mix")
