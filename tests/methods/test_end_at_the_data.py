"""Students that end at the data, where others end at t_min and leave its noise in an image."""

import pytest
import torch
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Output

from fewstep.contracts.trial import digits, teacher
from fewstep.data.digits import Digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import ConsistencyBoundary, Edm, SamplePrediction
from fewstep.diffusion.process import (
    Process,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Auto
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.progressive import Progressive
from fewstep.methods.truncated_consistency import TruncatedConsistency
from fewstep.run import Run
from fewstep.training.config import TrainerConfig

DATA = Auto("t_data")
PROCESSES = {kind: cls() for kind, cls in Process.kinds().items()}
METHODS = {
    "consistency_distillation": ConsistencyDistillation(times=DATA, sample_times=DATA),
    "consistency_training": ConsistencyTraining(times=DATA, sample_times=DATA),
    "easy_consistency": EasyConsistency(sample_times=DATA),
    "dmd2": DMD2(sample_times=DATA),
    "truncated_consistency": TruncatedConsistency(EasyConsistency(sample_times=DATA)),
    "latent_consistency": LatentConsistency(times=DATA),
}


@pytest.mark.parametrize(
    ("process", "grey"),
    [
        (VariancePreservingTable(), 3.7),
        (VariancePreservingTable(beta_start=1e-4, beta_end=0.02, schedule="linear"), 1.3),
        (VariancePreserving(), 1.3),
        (VarianceExploding(), 0.26),
        (RectifiedFlow(), 0.13),
    ],
)
def test_the_noise_that_stays_at_t_min_in_grey_levels(process, grey):
    """Of 255; pixels are in [-1, 1]."""
    t = torch.tensor([process.t_min], dtype=torch.float64)
    assert 127.5 * process.level(t).item() == pytest.approx(grey, rel=0.04)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_boundary_at_the_data_is_the_prediction_and_the_identity_there(process):
    for prediction in (Edm(), SamplePrediction()):
        boundary = prediction.boundary("t_data")
        assert boundary == ConsistencyBoundary(prediction, "t_data")
        assert prediction.boundary().boundary("t_data") == boundary
        t = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
        for mine, theirs in zip(boundary(process, t), prediction(process, t), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
        skip, out, inp = boundary(process, torch.full((1,), process.t_data, dtype=torch.float64))
        assert (skip.item(), out.item()) == (1, 0)
        assert torch.isfinite(inp).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    "process", [VariancePreservingTable(), VarianceExploding()], ids=["table", "ve"]
)
def test_a_student_trains_and_samples_to_the_data(method, process):
    model = teacher(process)
    config = TrainerConfig(steps=2, batch=8, device="cpu")
    trainer = Run(Digits(), method, trainer=config).prepared(digits(), model=model).trainer
    trainer.fit()
    student = trainer.state.modules["student"].eval()
    x, end = torch.randn(2, *digits().shape), torch.full((2,), process.t_data, dtype=torch.float64)
    cond = model.conditioner({"label": torch.arange(2)})
    with torch.no_grad():
        assert torch.equal(student(x, end, cond), x)
    sampler = method.sampler(trainer.clock(1))
    assert sampler.grid(process)[-1] == process.t_data
    made = model.with_student(student, sampler, method.student_guidance(), {}, {})
    assert torch.isfinite(made.generate(num=2)).all()


def says(process, x0):
    """A denoiser with this answer."""
    return Denoiser(Output(x0), process, SamplePrediction())


@pytest.mark.parametrize("process", [VariancePreservingTable(), VarianceExploding()])
def test_one_interval_to_the_data_learns_the_clean_sample(process):
    """The teacher's step over the whole way ends at its x0, which the first student says: loss 0.
    Without a teacher the goal is the sample of the data, bit by bit.
    """
    oracle = Gaussian(process, mean=0.3)
    options = {"times": DATA, "sample_times": DATA, "distance": Squared()}
    clock, batch = Clock(0, 2, 6), batch_of(0.3 + 0.5 * torch.randn(6, 2))
    student = says(process, oracle)
    student.parameterization = student.parameterization.boundary("t_data")
    distil = ConsistencyDistillation(bins=1, solver=Euler(), **options)
    nets = distil.Nets(student, student, says(process, oracle))
    assert distil.loss(nets, batch, clock).terms["consistency"].max() < 1e-10
    train = ConsistencyTraining(
        last=1, curriculum="fixed", density=None, weighting="uniform", **options
    )
    student = says(process, lambda x, t: torch.zeros_like(x))
    student.parameterization = student.parameterization.boundary("t_data")
    found = train.loss(train.Nets(student, None), batch, clock).terms["consistency"]
    assert torch.equal(found, Squared()(torch.zeros_like(batch.data), batch.data))


@pytest.mark.parametrize("end", ["t_min", "t_data"])
def test_a_progressive_student_of_a_table_is_sampled_on_the_grid_of_its_training(end):
    method, table = Progressive(times=Auto(end)), VariancePreservingTable()
    clock = Clock(0, 100, 8)
    sampler = method.sampler(clock)
    assert torch.equal(sampler.grid(table), method.times(table, method.rounds()[0]))


@pytest.mark.parametrize("cls", [ConsistencyDistillation, ConsistencyTraining])
def test_a_grid_and_a_sampler_of_two_ends_are_refused(cls):
    run = Run(Digits(), cls(times=DATA), trainer=TrainerConfig(steps=1, device="cpu"))
    with pytest.raises(ValueError, match="one end"):
        run.prepared(digits(), model=teacher(VarianceExploding()))
