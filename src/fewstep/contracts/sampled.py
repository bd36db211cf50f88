"""Laws of what a finished student does."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fewstep.contracts.trial import STEPS, Trial, students
from fewstep.diffusion.process import Process, VarianceExploding
from fewstep.models.bundle import DiffusionModel
from fewstep.models.folder import load_folder
from fewstep.training.students import save_students

OTHERS = {
    name: cls
    for name, cls in Process.kinds().items()
    if cls.__module__.startswith("fewstep.") and cls is not VarianceExploding
}
NUM = 4  # images of a trial


def any_process_will_do(trial: Trial) -> str | None:
    """From a teacher of every process the method trains finitely, or refuses at the door."""
    for name, cls in OTHERS.items():
        if reason := trains_from(trial, cls()):
            return f"process {name}: {reason}"
    return None


def trains_from(trial: Trial, process: Process) -> str | None:
    """Three steps from a teacher of that process, and finite samples; they begin at t_max, where
    alpha may be 0.
    """
    try:
        tried = trial.prepared(process)
    except ValueError:
        return None  # refused before the first step, with words
    try:
        tried.trainer.fit()
    except ValueError as error:
        return f"refused in training ({error}); refuse it in build_nets, with a ValueError"
    if bad := tried.trainer.skips.steps(STEPS - 1):
        return f"loss or gradient of step {bad[0] + 1} is not finite"
    for sampler, made in students(tried):
        images = made.generate(num=NUM, steps=2)
        if not torch.isfinite(images).all():
            return f"the student's images are not finite in 2 steps of {type(sampler).__name__}"
    return None


def the_sampler_costs_what_it_says(trial: Trial) -> str | None:
    """The saved student makes images in [0, 1], with the evaluations that its sampler announces."""
    tried = trial.finished
    for sampler, made in students(tried):
        calls: list[int] = []
        hook = made.denoiser.network.register_forward_pre_hook(lambda *_, n=calls: n.append(1))
        images = made.generate(num=NUM, steps=2)
        hook.remove()
        said = made.evaluations(sampler.with_steps(2))
        if len(calls) != said:
            return (
                f"{type(sampler).__name__} with 2 steps announces {said} evaluations and needed "
                f"{len(calls)}"
            )
        shape = (NUM, *tried.model.image_shape)
        if tuple(images.shape) != shape:
            return f"{NUM} images have the shape {tuple(images.shape)}, not {shape}"
        if not (images.min() >= 0 and images.max() <= 1):
            return f"the images reach from {images.min():.3g} to {images.max():.3g}, not 0 to 1"
    return None


def the_student_saves_and_loads(trial: Trial) -> str | None:
    """What is saved is loaded: the same sampler, and the same images to the bit."""
    tried = trial.finished
    if not list(students(tried)):
        return None
    with tempfile.TemporaryDirectory() as home:
        models = save_students(tried.trainer, tried.model, Path(home), {})
        for name, model in models.items():
            loaded = load_folder(Path(home) / name)
            if loaded.sampler != model.sampler:
                return f"{name} was saved with {model.sampler}, and loads with {loaded.sampler}"
            before, after = _images(model), _images(loaded)
            if not torch.equal(before, after):
                most = float((before - after).abs().max())
                return f"images of {name} differ by {most:.3g} when it was saved and loaded"
    return None


def _images(model: DiffusionModel) -> Tensor:
    return model.generate(num=NUM, steps=2)
