"""A student begins with weights that mean what its teacher's mean."""

import pytest
from tests.test_contracts import TINY

from fewstep.data.digits import Digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm, Epsilon, LcmBoundary, Velocity
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreservingTable,
)
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.models.source import Fresh
from fewstep.models.space import image_space
from fewstep.run import Run, distil
from fewstep.training.config import TrainerConfig
from fewstep.training.start import unlike

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
