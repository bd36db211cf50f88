"""Laws of what a method does while it trains."""

import contextlib
import tempfile
from pathlib import Path

import torch

from fewstep.contracts.trial import (
    STEPS,
    Trial,
    batch_of,
    changed,
    largest,
    losses_of,
    unequal,
    updates,
    weights,
)
from fewstep.diffusion.denoiser import Denoiser
from fewstep.models.adapters import borrowed
from fewstep.training.precision import MODES, Precision
from fewstep.training.seen import Seen


def trains_at_all(trial: Trial) -> str | None:
    """Three steps change every network that trains or moves, and one is saved."""
    tried = trial.finished
    roles = tried.trainer.state.roles
    if not roles.exports:
        return "no network is saved; its role is trained(exported=True)"
    if "student" not in roles.exports:
        return f"the saved networks are {', '.join(roles.exports)}; one of them must be `student`"
    moved = changed(tried.before, weights(tried.trainer))
    for name in (*roles.trains, *roles.moves):
        if not any(key.startswith(f"{name}/") for key in moved):
            verb = "trained" if name in roles.trains else "moved"
            return f"{name} is {verb}(), but {STEPS} steps did not change it"
    return None


def losses_are_one_number_per_row(trial: Trial) -> str | None:
    """Every term of every loss is finite and has one number for each row."""
    trainer = trial.finished.trainer
    for clock, index, update in updates(trainer):
        losses = losses_of(trainer, clock, index, update, [range(trial.rows)], seed=0)
        for name, term in {**losses.terms, **losses.notes}.items():
            if tuple(term.shape) != (trial.rows,):
                return (
                    f"{name!r} has the shape {tuple(term.shape)} for {trial.rows} rows; "
                    "give one number for each row, the trainer takes the mean"
                )
            if not torch.isfinite(term).all():
                bad = int((~torch.isfinite(term)).sum())
                return f"{name!r} is not finite in {bad} of {trial.rows} rows"
    return None


def rows_do_not_mix(trial: Trial) -> str | None:
    """The losses of the first rows stay what they are when all other rows are others."""
    trainer = trial.finished.trainer
    group = trainer.method.group()
    half = max(1, trial.rows // 2 // group) * group
    rows = range(half)
    others = range(half, 2 * half), range(2 * half, 3 * half)
    for clock, index, update in updates(trainer):
        one, two = (
            losses_of(trainer, clock, index, update, [rows, other], seed=0) for other in others
        )
        for name, term in one.terms.items():
            if term.ndim == 0:
                return f"{name!r} is one number for all rows of the batch"
            again = two.terms[name][:half]
            rounding = 1e-5 * float(term.abs().max())
            if not torch.allclose(term[:half], again, rtol=0, atol=rounding):
                return (
                    f"{name!r} of rows 0 … {half - 1} changes by {largest(term[:half], again)} "
                    f"when only the other rows of the batch are others; a loss may look at its own "
                    f"row alone (or say in group() how many it compares)"
                )
    return None


def draws_from_the_batch(trial: Trial) -> str | None:
    """The losses of the same rows are equal to the bit, whatever Python's random state is."""
    trainer = trial.finished.trainer
    for clock, index, update in updates(trainer):
        one, two = (
            losses_of(trainer, clock, index, update, [range(trial.rows)], seed) for seed in (0, 1)
        )
        for name, term in one.terms.items():
            if not torch.equal(term, two.terms[name]):
                return (
                    f"{name!r} of the same rows differs by {largest(term, two.terms[name])} from "
                    "call to call; random numbers come from batch.draws and batch.noise() only"
                )
    return None


def gradients_reach_what_trains(trial: Trial) -> str | None:
    """A loss has gradients in the networks of its update and in no other."""
    trainer = trial.prepared().trainer
    for clock, index, update in updates(trainer):
        losses = update.loss(
            trainer.nets, batch_of(trainer, clock, index, [range(trial.rows)]), clock
        )
        torch.stack([term.sum() for term in losses.terms.values()]).sum().backward()
        for name, module in trainer.state.modules.items():
            reached = any(p.grad is not None for p in module.parameters())
            if reached and name not in update.trains:
                return f"the loss of {', '.join(update.trains)} has gradients in {name}"
            if name in update.trains and not reached:
                return f"the loss of {', '.join(update.trains)} has no gradient in {name}"
            module.zero_grad(set_to_none=True)
    return None


def only_declared_networks_change(trial: Trial) -> str | None:
    """Three steps leave frozen networks and the model that was handed in as they were."""
    model, trainer, before = trial.finished
    roles = trainer.state.roles
    declared = (*roles.trains, *roles.moves)
    after = weights(trainer)
    for key in changed(before, after):
        name = key.split("/")[0]
        if name not in declared:
            return (
                f"{key} changed by {largest(before[key], after[key])}, but {name} is frozen(); "
                "declare it trained() or moved(), or write a clone of it"
            )
    fresh = trial.prepared().model.denoiser.state_dict()
    for key, value in model.denoiser.state_dict().items():
        if not torch.equal(value, fresh[key]):
            return (
                f"{key} of the model changed by {largest(value, fresh[key])}; "
                "the teacher is never written: clone what moves"
            )
    return None


def micro_batches_equal_the_batch(trial: Trial) -> str | None:
    """Four passes of a quarter of the rows train to the same weights as one pass."""
    parts = trial.trained(micro_batch=trial.rows // 4)
    reason = unequal(weights(trial.finished.trainer), weights(parts.trainer), 2e-6)
    if reason is None:
        return None
    return (
        f"after {STEPS} steps in 4 passes {reason}; draws belong to rows (batch.draws), and a loss "
        "is a number of its row, no mean of the pass"
    )


def a_repeated_run_is_equal(trial: Trial) -> str | None:
    """A second run ends with the same bits."""
    again = trial.trained()
    reason = unequal(weights(trial.finished.trainer), weights(again.trainer))
    if reason is None:
        return None
    return f"in a second run {reason}; nothing may be kept outside the networks and the clock"


def a_stopped_run_goes_on_equal(trial: Trial) -> str | None:
    """A run that stops behind its second step and goes on from its checkpoint ends with the bits of
    one that never stopped.
    """
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        first = trial.prepared(folder=folder, save_every=1).trainer
        with contextlib.suppress(_StopError):
            first.fit(_stop)
        second = trial.prepared(folder=folder, save_every=1).trainer
        second.fit(say=_silent)
        reason = unequal(weights(trial.finished.trainer), weights(second))
    if reason is None:
        return None
    return (
        f"after a stop behind step {STEPS - 1} {reason}; what changes must be in networks that are "
        "trained() or moved(), which a checkpoint holds"
    )


def a_longer_run_begins_the_same(trial: Trial) -> str | None:
    """A run of twice as many steps has the same bits half way, unless the method says that it
    `reads_length`, or its phases lie elsewhere.
    """
    trainer = trial.prepared(steps=2 * STEPS).trainer
    short = trial.finished.trainer.phases[:-1]
    if trainer.method.reads_length or short != trainer.phases[: len(short)]:
        return None
    with contextlib.closing(trainer.steps(0, _silent)) as steps:
        for seen in steps:
            if seen.done == STEPS:
                break
    reason = unequal(weights(trial.finished.trainer), weights(trainer))
    if reason is None:
        return None
    return (
        f"half way through a run of twice as many steps {reason}; a method whose steps depend on "
        "how many there are says so: reads_length"
    )


def bf16_follows_fp32(trial: Trial, precision: Precision = "bf16") -> str | None:
    """The first loss in lower precision is within 5 % of that in fp32 (within 1e-5 of one that is 0
    there), and weights that change stay in fp32; what they share with others is of no matter.
    """
    losses = []
    both: tuple[Precision, ...] = ("fp32", precision)
    for name in both:
        trainer = trial.prepared(precision=name).trainer
        clock = trainer.clock(0)
        done = trainer.step(trainer.method.updates(clock)[0], clock, 0, 0)
        losses.append(float(next(iter(done.numbers.values()))))
    lent = {id(one) for module in trainer.state.modules.values() for one in borrowed(module)}
    for net, module in trainer.state.modules.items():
        kept = net in (*trainer.state.kept, *trainer.state.roles.twins)
        kept = kept or not isinstance(module, Denoiser)
        wanted = {torch.float32 if kept else MODES[precision][1]}
        own = {p.dtype for p in module.parameters() if id(p) not in lent}
        if own and own != wanted:
            return f"the weights of {net} are not in {wanted.pop()}"
    if abs(losses[1] - losses[0]) <= (0.05 * abs(losses[0]) or 1e-5):
        return None
    return (
        f"the first loss is {losses[1]:.6g} in {precision} and {losses[0]:.6g} in fp32, more than "
        "5 % apart; x0 and coefficients are float32 and float64, keep them so"
    )


def recomputing_changes_nothing(trial: Trial) -> str | None:
    """With trainer.checkpointing a run ends with the same weights."""
    again = trial.trained(checkpointing=True)
    reason = unequal(weights(trial.finished.trainer), weights(again.trainer), 1e-6)
    return None if reason is None else f"with trainer.checkpointing=true {reason}"


class _StopError(Exception):
    """Ends a run as a kill would, behind its checkpoint."""


def _stop(seen: Seen) -> None:
    if seen.done == STEPS - 1:
        raise _StopError


def _silent(line: str) -> None:
    """Nobody has to know that a trial goes on."""
