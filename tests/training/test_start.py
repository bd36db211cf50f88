"""A student begins with weights that mean what its teacher's mean."""

import dataclasses

import pytest
import torch
from tests.models.made import made
from tests.test_contracts import TINY
from tests.tiny_diffusion import DATA
from tests.tiny_diffusion import TINY as TINY_DIFFUSION

from fewstep.choice import kind_of
from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm, Epsilon, LcmBoundary, Velocity
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreservingTable,
)
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.learning.method import Method
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.guided_distillation import GuidedDistillation
from fewstep.methods.mean_flow import MeanFlow
from fewstep.methods.progressive import Progressive
from fewstep.metrics.classifier import Classification
from fewstep.models.source import Fresh, Saved
from fewstep.models.space import image_space
from fewstep.parts.autoencoder import Autoencoding
from fewstep.run import Run, distil
from fewstep.training.config import TrainerConfig
from fewstep.training.first_lines import summary
from fewstep.training.start import (
    goes_by_class,
    told_of,
    told_of_few_steps,
    told_of_teacher,
    unlike,
    with_examples,
)

VE, TABLE = VarianceExploding(), VariancePreservingTable()


@pytest.mark.parametrize(
    ("start", "teacher", "reason"),
    [
        ((VE, Edm()), (VE, Edm()), None),
        ((VE, Edm().boundary()), (VE, Edm()), None),  # a consistency student of it
        ((VE, Velocity().boundary()), (VE, Velocity()), None),
        ((TABLE, LcmBoundary(Epsilon())), (TABLE, Epsilon()), None),
        ((VE, Edm(0.4).boundary()), (VE, Edm()), "predicts"),
        ((VE, Velocity().boundary()), (VE, Edm()), "predicts"),
        ((RectifiedFlow(), Edm()), (VE, Edm()), "process"),
        ((VarianceExploding(t_max=40.0), Edm()), (VE, Edm()), "process"),
    ],
)
def test_the_prediction_and_the_process_must_agree(start, teacher, reason):
    network = Fresh(network=TINY).load(image_space((1, 8, 8), 10), 0).denoiser.network
    found = unlike(Denoiser(network, *start), Denoiser(network, *teacher))
    assert found is None if reason is None else reason in found


def test_the_networks_own_process_counts():
    network = Fresh(network=TINY).load(image_space((1, 8, 8), 10), 0).denoiser.network
    assert "process" in unlike(
        Denoiser(network, Trig(), Edm(), VE), Denoiser(network, Trig(), Edm())
    )


def test_a_run_refuses_such_a_start(tmp_path):
    """It would train on times that mean nothing to the network, with finite losses."""
    run = Run(
        Digits(limit=32),
        ConsistencyDistillation(),
        teacher=Fresh(network=TINY),
        start=Fresh(network=TINY, process=RectifiedFlow()),
        trainer=TrainerConfig(steps=1),
    )
    with pytest.raises(ValueError, match=r"start: its process is .*rectified_flow"):
        distil(run, tmp_path / "run")


def rows(*labels, classes=4):
    images = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    notes = {"files": "many", "passed over": ".gif: 1 (a.gif)"}
    return held_images(images, torch.tensor(labels), classes, notes=notes)


def test_classes_without_images_are_not_asked_for():
    teacher = made(classes=4)
    whole = with_examples(teacher, rows(0, 1, 2, 3))
    assert whole is teacher
    assert whole.asked_of(0, 5)["label"].tolist() == [0, 1, 2, 3, 0]
    part = with_examples(teacher, rows(3, 1))
    assert (part.examples, teacher.examples) == ({"label": [1, 3]}, {})
    assert part.asked_of(1, 3)["label"].tolist() == [3, 1, 3]
    # A student of such a teacher knows what both were trained on.
    assert with_examples(part, rows(0, 1, 2)).examples == {"label": [1]}
    assert with_examples(part, rows(0, 1, 2, 3)).examples == {"label": [1, 3]}
    assert with_examples(part, rows(0, 0)).examples == {"label": [0]}


def test_what_a_run_says_of_its_data():
    assert told_of(rows(0, 1, 2, 3)) == ["data: passed over: .gif: 1 (a.gif)"]
    assert told_of(rows(1, classes=3))[1:] == [
        "warning: no images of 2 of 3 classes: 0, 2; they are not trained"
    ]
    assert told_of(rows(1, classes=3), by_class=False) == told_of(rows(0, 1, 2, 3))


def test_classes_are_missed_where_they_are_read():
    labels, text = made(classes=4), TINY_DIFFUSION.load(DATA, 0)
    assert goes_by_class(ConsistencyDistillation(), labels)
    assert not goes_by_class(ConsistencyDistillation(), text)
    assert goes_by_class(Classification(), None)
    assert not goes_by_class(Autoencoding(), None)


@pytest.mark.parametrize(
    ("method", "asks"),
    [
        (ConsistencyDistillation(), True),
        (Progressive(), True),
        (DMD2(), True),
        (ConsistencyTraining(), False),
        (MeanFlow(), False),
        (Diffusion(), False),
    ],
    ids=lambda value: kind_of(type(value)) if isinstance(value, Method) else None,
)
def test_a_teacher_that_knows_nothing_is_warned_of(method, asks):
    model = made(classes=10)
    source = Fresh(network=TINY)
    run = Run(Digits(limit=32), method, source, trainer=TrainerConfig(steps=4, batch=2))
    ready = run.prepared(model=model)
    lines = told_of_teacher(ready.trainer.method, ready.nets, source)
    assert [line.partition(" is ")[0] for line in lines] == asks * [
        f"warning: the teacher of {kind_of(type(method))}"
    ]
    assert told_of_teacher(ready.trainer.method, ready.nets, Saved("digits_teacher")) == []


def test_a_teacher_of_few_steps_is_warned_of():
    """But not one along the ODE in few steps, and not where no teacher is asked."""
    jumps = dataclasses.replace(made(classes=10), sampler=Renoise(2))
    few = dataclasses.replace(
        made(classes=10), sampler=Ode(4), card={"method": {"kind": "progressive"}}
    )
    named = dataclasses.replace(made(classes=10), card={"distilled": "its name says lcm"})
    for model, reason in (
        (jumps, "its sampler is renoise"),
        (named, "its name says lcm"),
        (few, None),
        (made(classes=10), None),
    ):
        for method in (GuidedDistillation(), ConsistencyTraining()):
            config = TrainerConfig(steps=4, batch=2)
            ready = Run(Digits(limit=32), method, trainer=config).prepared(model=model)
            lines = told_of_few_steps(ready.trainer.method, ready.nets, model)
            warned = reason is not None and isinstance(method, GuidedDistillation)
            assert len(lines) == warned
            if warned:
                start = f"warning: the teacher is a few-step model already ({reason}), whose"
                assert lines[0].startswith(start)


def test_the_summary():
    """What learns, what does not, on what and where."""
    config = TrainerConfig(steps=1, batch=2, device="cpu")
    run = Run(Digits(limit=32), ConsistencyDistillation(target_decay=0.9), trainer=config)
    ready = run.prepared(model=made(classes=10))
    count = sum(p.numel() for p in ready.nets.student.parameters())
    size = f"{count / 1000:.0f} k"
    threads = torch.get_num_threads()
    mib = 4 * count / 2**20
    assert summary(ready, run) == [
        "data: digits, 32 rows of image (1×8×8), label (10 classes)",
        f"consistency_distillation of a new network (unet): student learns {size}, target has "
        f"{size}, teacher has {size} parameters",
        f"1 step of 2 rows in fp32 on cpu, {threads} thread{'s' * (threads != 1)}",
        # Student, target, teacher and an average; a gradient and two numbers of Adam.
        f"memory: weights and averages {4 * mib:,.0f} MiB, gradients and optimizer about "
        f"{3 * mib:,.0f} MiB, activations beside them (fewstep plan)",
    ]


def test_a_run_says_it_first(tmp_path):
    config = TrainerConfig(steps=1, batch=2, health_every=0, device="cpu")
    run = Run(Digits(limit=32), ConsistencyDistillation(), Fresh(network=TINY), trainer=config)
    said = []
    distil(run, tmp_path / "run", progress=False, say=said.append)
    assert any(line.startswith("warning: the teacher of consistency_distil") for line in said)
