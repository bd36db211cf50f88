"""The models that a run makes of its exported networks."""

from pathlib import Path
from typing import Any

from fewstep.diffusion.denoiser import Denoiser
from fewstep.errors import DivergedError, NotFiniteError
from fewstep.learning.method import UNGUIDED
from fewstep.models.adapters import Addition, addition, merged
from fewstep.models.bundle import DiffusionModel
from fewstep.training.run_folder import RESULTS
from fewstep.training.trainer import Trainer


def save_students(
    trainer: Trainer, model: Any, folder: Path, card: dict[str, Any]
) -> dict[str, Any]:
    """The models by the name of their network, each saved in a folder of that name with its
    averages, sampler, guidance and card; in all processes.

    What was measured of models that were there before is removed. model: what they were trained
    from, a `DiffusionModel` or a `Part`. Of networks that share weights plain ones are saved, which
    load without the others. DivergedError, and nothing saved of it, where a sample of one is not
    finite.
    """
    models = {}
    trainer.world.on_leader(lambda: (folder / RESULTS).unlink(missing_ok=True))
    for name in trainer.state.roles.exports:
        made = student(trainer, model, name, card, trainer.config.steps)
        trainer.world.on_leader(lambda: _save(made, folder / name))  # noqa: B023
        models[name] = made
    return models


def student(trainer: Trainer, model: Any, name: str, card: dict[str, Any], step: int) -> Any:
    """The model of an exported network as it is behind so many steps; a collective call."""
    state, method, config = trainer.state, trainer.method, trainer.config
    variants = {}
    for decay in config.ema[1:]:
        network = merged(state.exported(name, decay))
        if isinstance(network, Denoiser):
            network = network.network
        variants[f"{decay:g}"] = network.state_dict()
    sampler = method.sampler(trainer.clock(step - 1), name)
    guidance = method.student_guidance(getattr(model, "guidance", UNGUIDED))
    net = merged(state.exported(name))
    if isinstance(net, Denoiser):
        net.autocast = None  # as it is when it is loaded
    made = model.with_student(net, sampler, guidance, card, variants)
    if isinstance(made, DiffusionModel):
        made.additions = _additions(trainer, name)
    return method.completed(made, trainer.data)


def _additions(trainer: Trainer, name: str) -> dict[str, Addition]:
    """Of a network that is an addition to others' weights, that alone, for each average."""
    found = {}
    for place, decay in enumerate(trainer.config.ema):
        if own := addition(trainer.state.exported(name, decay)):
            found[f"{decay:g}" if place else ""] = own
    return found


def _save(made: Any, folder: Path) -> None:
    """Saves a model that makes a sample of finite numbers, or that is not asked for samples."""
    try:
        if isinstance(made, DiffusionModel) and made.sampler is not None and _asked(made):
            made.generate(num=1)
        made.save(folder)
    except NotFiniteError as error:
        raise DivergedError(f"{folder.name} is not saved: {error}") from None


def _asked(made: DiffusionModel) -> bool:
    """Whether it can be asked for a sample where nobody says of what."""
    return bool(made.asked_of(0, 1)) or not made.conditioner.spec.reads
