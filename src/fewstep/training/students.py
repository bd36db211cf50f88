"""The models that a run makes of its exported networks."""

from pathlib import Path
from typing import Any

from fewstep.diffusion.denoiser import Denoiser
from fewstep.models.adapters import merged
from fewstep.training.trainer import Trainer


def save_students(
    trainer: Trainer, model: Any, folder: Path, card: dict[str, Any]
) -> dict[str, Any]:
    """The models by the name of their network, each saved in a folder of that name with its
    averages, sampler, guidance and card; in all processes.

    model: what they were trained from, a `DiffusionModel` or a `Classifier`. Of networks that share
    weights plain ones are saved, which load without the others.
    """
    state, method, config = trainer.state, trainer.method, trainer.config
    models, clock = {}, trainer.clock(config.steps - 1)
    for name in state.roles.exports:
        variants = {}
        for decay in config.ema[1:]:
            network = merged(state.exported(name, decay)).get_submodule("network")
            variants[f"{decay:g}"] = network.state_dict()
        sampler, guidance = method.sampler(clock, name), method.student_guidance()
        net = merged(state.exported(name))
        if isinstance(net, Denoiser):
            net.autocast = None  # as it is when it is loaded
        made = model.with_student(net, sampler, guidance, card, variants)
        trainer.world.on_leader(lambda: made.save(folder / name))  # noqa: B023
        models[name] = made
    return models
