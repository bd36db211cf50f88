"""The list of laws, and a method before them."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.contracts import guided, sampled, trained, written
from fewstep.contracts.trial import Trial
from fewstep.learning.method import Method
from fewstep.meant import did_you_mean

Law = Callable[[Trial], str | None]

WRITTEN: tuple[Law, ...] = (
    written.docstring_names_a_source,
    written.options_are_explained,
    written.knows_no_loop,
    written.options_round_trip,
    written.phases_begin_at_0_and_rise,
)
TRAINED: tuple[Law, ...] = (
    trained.losses_are_one_number_per_row,
    trained.rows_do_not_mix,
    trained.draws_from_the_batch,
    trained.gradients_reach_what_trains,
    trained.only_declared_networks_change,
    trained.micro_batches_equal_the_batch,
    trained.a_repeated_run_is_equal,
    trained.a_stopped_run_goes_on_equal,
    trained.a_longer_run_begins_the_same,
    trained.bf16_follows_fp32,
    trained.recomputing_changes_nothing,
    sampled.the_sampler_costs_what_it_says,
    sampled.the_student_saves_and_loads,
    sampled.any_process_will_do,
    guided.a_guided_teacher_is_distilled_or_refused,
)
LAWS: dict[str, Law] = {law.__name__: law for law in (*WRITTEN, trained.trains_at_all, *TRAINED)}


class Verdict(NamedTuple):
    """How a method stands before a law. reason: why it breaks it, None where it keeps it. error:
    what the method raised meanwhile.
    """

    law: str
    reason: str | None
    error: Exception | None = None


def named(names: Sequence[str]) -> list[str]:
    """The laws of these names, of all where there are none. ValueError for an unknown one."""
    for name in names:
        if name not in LAWS:
            raise ValueError(f"no law {name!r}{did_you_mean(name, list(LAWS))}")
    return list(names) or list(LAWS)


def verdicts(cls: type[Method], names: Sequence[str]) -> Iterator[Verdict]:
    """The method before each of these laws; a method that does not train is not brought before the
    laws of training.
    """
    trial = Trial(cls)
    trains = [law.__name__ for law in TRAINED]
    gate = trained.trains_at_all.__name__
    stuck = False
    for name in names:
        if stuck and name in trains:
            continue
        verdict = judged(name, trial)
        stuck = stuck or (name == gate and verdict.error is not None)
        yield verdict


def judged(name: str, trial: Trial) -> Verdict:
    """One law. What the method raises is a verdict too: it says what and where."""
    try:
        return Verdict(name, LAWS[name](trial))
    except Exception as error:
        words = " ".join(str(error).split())
        return Verdict(name, f"{type(error).__name__}: {words}{_place(error)}", error)


def _place(error: Exception) -> str:
    """Where outside of libraries it was raised: the last line of the method's own file."""
    home = Path(__file__).parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        ours = file.is_relative_to(home) and not file.is_relative_to(home / "methods")
        if not ours and "site-packages" not in file.parts:
            return f" ({file.name}, line {frame.lineno})"
    return ""
