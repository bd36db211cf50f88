"""`Run`: what one training run is made of, and `distil`, which carries it out."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.choice import Choice, Share, kind_of
from fewstep.data.dataset import Dataset
from fewstep.data.source import Source
from fewstep.data.stream import Stream
from fewstep.diffusion.denoiser import Denoiser
from fewstep.errors import RefusedError
from fewstep.files import read_json, write_bytes, write_json
from fewstep.learning.dropout import seeded
from fewstep.learning.method import Clock, Method
from fewstep.metrics.classifier import Classification
from fewstep.models.adapters import FullCopy
from fewstep.models.bundle import DiffusionModel
from fewstep.models.classifier import Classifier
from fewstep.models.source import Fresh, ModelSource, Saved
from fewstep.report.figures import write_grid
from fewstep.training.checkpoint import Checkpoints, Lock
from fewstep.training.config import TrainerConfig, difference
from fewstep.training.health import Health
from fewstep.training.processes import World, together
from fewstep.training.trainer import Trainer, Watch
from fewstep.yaml import read_yaml, to_yaml


@dataclass(frozen=True)
class Run(Choice):
    """One training run: `method` on `data`, from `teacher`."""

    data: Source
    """What is trained on."""
    method: Method
    """How the student is trained."""
    teacher: ModelSource = field(default_factory=Fresh)
    """A saved model (name or folder), or a fresh network for methods that train one."""
    start: ModelSource | None = None
    """Another model, whose weights the student begins with."""
    dropout: Share | None = None
    """Dropout of the networks that the method makes; the teacher's own if not given."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The loop: steps, batch, optimizer, averages, precision, checkpoints."""


def distil(
    run: Run,
    folder: Path | str,
    *,
    restart: bool = False,
    watch: Watch | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Carries out a run in its folder; an unfinished one goes on. Returns False where it was
    finished already.

    Raises RefusedError where the folder holds a run with another configuration, or is in use;
    ValueError and OSError for data or models that cannot be read; DivergedError.
    """
    with together(run.trainer.timeout) as world:
        return _carried_out(
            run, Path(folder), world, restart, watch, say if world.leads else _silent
        )


def _carried_out(
    run: Run,
    folder: Path,
    world: World,
    restart: bool,
    watch: Watch | None,
    say: Callable[[str], None],
) -> bool:
    locks: list[Lock] = []  # one process holds it for all
    world.first(lambda: locks.append(Lock(folder)))
    try:
        if not restart and world.first(lambda: _finished(run, folder)):
            return False
        everything = run.data.read()
        dataset = run.data.choose(everything)
        model = run.teacher.load(dataset.space, run.trainer.seed)
        begin = model if run.start is None else run.start.load(dataset.space, run.trainer.seed)
        if isinstance(model, Classifier) != isinstance(run.method, Classification):
            raise ValueError(
                f"{kind_of(type(run.method))} does not train the model of "
                f"teacher={run.teacher.dump()}"
            )
        if isinstance(model, DiffusionModel) and (reason := unlike(begin.denoiser, model.denoiser)):
            raise ValueError(f"start: {reason}")
        with seeded(run.trainer.seed, torch.device("cpu")):  # new heads
            nets = run.method.build_nets(
                model, FullCopy(begin.denoiser, run.trainer.seed, run.dropout)
            )
        stream = Stream(
            dataset, model.codec, model.conditioner, run.trainer.seed, run.trainer.batch
        )
        trainer = Trainer(run.method, nets, stream, run.trainer, folder, world)
        world.first(lambda: _begin(run, folder, restart, trainer.state.roles.exports))
        teacher = model if isinstance(run.teacher, Saved) else None
        health = None
        if run.trainer.health_every:
            health = Health(
                run.method, nets, stream, held_out(run.data, everything), teacher, trainer.device
            )
        trainer.fit(
            watch,
            health,
            say,
            Gallery(run, folder, model, world) if run.trainer.sample_every else None,
        )
        _save(run, folder, model, trainer, stream)
        return True
    finally:
        if locks:
            if [path.name for path in folder.iterdir()] == [".lock"]:  # it never began
                shutil.rmtree(folder)
            locks[0].release()


def unlike(start: Denoiser, teacher: Denoiser) -> str | None:
    """Why a student of this teacher cannot begin with the weights of `start`; None where it can."""
    if (start.process, start.own) != (teacher.process, teacher.own):
        return f"its process is {start.process.dump()}, the teacher's {teacher.process.dump()}"
    mine, theirs = (getattr(d.parameterization, "of", d.parameterization) for d in (start, teacher))
    if mine.boundary() != theirs.boundary():
        return f"its network predicts {mine.dump()}, the teacher's {theirs.dump()}"
    return None


class Gallery:
    """Grids of the averaged networks, of the same seeds each time: samples/step-00000100-2.png for
    2 steps.
    """

    images = 40

    def __init__(self, run: Run, folder: Path, model: Any, world: World):
        self.run, self.folder, self.model, self.world = run, folder / "samples", model, world

    def __call__(self, clock: Clock, exported: Mapping[str, nn.Module]) -> None:
        """Draws and writes, in the leading process."""
        for name, net in exported.items():
            sampler = self.run.method.sampler(clock, name)
            if sampler is not None and self.world.leads:
                made = self.model.trained(net, sampler, self.run.method.guidance(), {}, {})
                prefix = "" if name == "student" else f"{name}-"
                for steps in self.run.trainer.sample_steps:
                    path = self.folder / f"{prefix}step-{clock.step + 1:08d}-{steps}.png"
                    write_grid(path, made.generate(num=self.images, steps=steps))


def _silent(line: str) -> None:
    """What other processes than the leading one say."""


def _begin(run: Run, folder: Path, restart: bool, exports: tuple[str, ...]) -> None:
    """Writes the run file, behind removing what a restart throws away."""
    if restart:
        for name in ("samples", *exports):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (
            "status.json",
            "log.jsonl",
        ):  # first: a restart that is cut must not pass for the old run
            (folder / name).unlink(missing_ok=True)
        Checkpoints(folder / "checkpoints").discard_all()
    write_bytes(folder / "run.yaml", to_yaml(run.noted()).encode())


def _save(run: Run, folder: Path, model: Any, trainer: Trainer, stream: Stream) -> None:
    """Writes every exported network with its averages, sampler, guidance and card."""
    clock = trainer.clock(run.trainer.steps - 1)
    for name in trainer.state.roles.exports:
        net = trainer.state.exported(name)
        variants = {
            f"{d:g}": trainer.state.exported(name, d).get_submodule("network").state_dict()
            for d in run.trainer.ema[1:]
        }
        card = {
            "method": run.method.dump(),
            "trainer": run.trainer.dump(),
            # Not where it lies on this machine: models are handed on.
            "data": {k: v for k, v in run.data.dump().items() if k != "path"}
            | {"fingerprint": stream.fingerprint, "images": len(stream.dataset)},
            "ema": run.trainer.ema[0],
            "batches": trainer.batches,
        }
        made = model.trained(
            net, run.method.sampler(clock, name), run.method.guidance(), card, variants
        )
        trainer.world.first(lambda: made.save(folder / name))  # noqa: B023
    status = {
        "state": "finished",
        "step": run.trainer.steps,
        "steps": run.trainer.steps,
        "reason": "",
    }
    trainer.world.first(lambda: write_json(folder / "status.json", status))


def held_out(source: Source, everything: Dataset) -> Dataset | None:
    """The test split of a source that trains on the other part; None where nothing is held out."""
    found = source.choose(everything, "test", empty=True) if source.split == "train" else None
    return found if found is not None and len(found) else None


def _finished(run: Run, folder: Path) -> bool:
    """Whether the folder holds this run, finished. RefusedError where it holds another one."""
    path = folder / "run.yaml"
    if not path.is_file():
        return False
    old, new = read_yaml(path), run.dump()
    parts = {"trainer": TrainerConfig.free, "data": Source.free}
    if not isinstance(old, dict) or not all(isinstance(old.get(part), dict) for part in parts):
        raise RefusedError(f"{path} is no run file; --restart begins again")
    old.pop("plugins", None)
    for part, names in parts.items():
        for free in names:
            old[part].pop(free, None)
            new[part].pop(free, None)
    if old != new:
        raise RefusedError(
            f"{folder} holds a run with another configuration: {difference(old, new)}; "
            "choose another name=, or --restart to begin again"
        )
    try:
        status = read_json(folder / "status.json")
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(status, dict) and status.get("state") == "finished"
