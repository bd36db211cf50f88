"""Solvers and samplers make the very samples that the schedulers of diffusers make."""

import pytest
import torch
from tests.diffusion.cases import (
    close,
    f64,
    trajectory,
)
from tests.oracles import FiniteData

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import VarianceExploding, VariancePreservingTable
from fewstep.diffusion.samplers import Renoise
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun
from fewstep.diffusion.times import Explicit, Karras, Trailing

VE, TABLE = VarianceExploding(), VariancePreservingTable()

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


POINTS_3D = torch.tensor(
    [[-1.0, 0.5, 0.0], [0.2, -0.7, 0.4], [0.9, 0.9, -0.3]], dtype=torch.float64
)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def driven(scheduler, x, network):
    """The trajectory of a scheduler of diffusers; network(x, sigma or index, place) answers what it
    asks for.
    """
    points = [x]
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)  # sets its counter
        x = scheduler.step(network(x, t, i), t, x).prev_sample
        points.append(x)
    return points


def agree(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b.double(), rtol=1e-5, atol=1e-5)  # theirs computes in float32


@pytest.mark.parametrize(
    ("name", "solver"),
    [("EDMEulerScheduler", Euler()), ("EDMDPMSolverMultistepScheduler", Dpmpp2m())],
)
@pytest.mark.parametrize("n", [6, 18])
def test_the_edm_schedulers_of_diffusers(diffusers, name, solver, n):
    if name == "EDMDPMSolverMultistepScheduler":
        # Its default takes a first-order step more than ours where n < 15.
        scheduler = getattr(diffusers, name)(sigma_schedule="karras", lower_order_final=False)
    else:
        scheduler = getattr(diffusers, name)(sigma_schedule="karras")
    scheduler.set_timesteps(n)
    oracle = FiniteData(VE, POINTS_3D)

    def network(x, t, i):
        sigma = scheduler.sigmas[i].double()
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        return ((oracle(x.double(), sigma.expand(len(x))) - c_skip * x.double()) / c_out).float()

    x = 80 * torch.randn(5, 3)
    agree(
        trajectory(solver, oracle, VE, x.double(), Karras()(VE, n)), driven(scheduler, x, network)
    )


@pytest.mark.parametrize(
    ("name", "solver"), [("EulerDiscreteScheduler", Euler()), ("HeunDiscreteScheduler", Heun())]
)
@pytest.mark.parametrize("n", [5, 20])
def test_the_sigma_schedulers_of_diffusers_on_the_table(diffusers, name, solver, n):
    # They walk in VE units x/alpha; ours is the table's own process.
    scheduler = getattr(diffusers, name)(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(n)
    oracle = FiniteData(VE, POINTS_3D)

    def network(x, t, i):
        sigma = scheduler.sigmas[i].double()
        return ((x.double() - oracle(x.double(), sigma.expand(len(x)))) / sigma).float()

    noise, grid = torch.randn(5, 3), Trailing()(TABLE, n)
    ours = trajectory(solver, FiniteData(TABLE, POINTS_3D), TABLE, noise.double(), grid)
    theirs = driven(scheduler, noise / TABLE.alpha(grid[:1]).float(), network)
    theirs = (
        theirs[:1] + theirs[2::2] + theirs[-1:] if isinstance(solver, Heun) else theirs
    )  # Heun stops twice
    agree([x / TABLE.alpha(t[None]) for x, t in zip(ours, grid)], theirs)


@pytest.mark.parametrize(
    ("name", "solver", "n", "options"),
    [
        ("DDIMScheduler", Euler(), 10, {"clip_sample": False, "set_alpha_to_one": True}),
        ("DDIMScheduler", Euler(), 50, {"clip_sample": False, "set_alpha_to_one": True}),
        ("DPMSolverMultistepScheduler", Dpmpp2m(), 20, {}),
        ("DPMSolverMultistepScheduler", Dpmpp2m(), 8, {"lower_order_final": False}),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_vp_schedulers_of_diffusers_on_the_table(
    diffusers, name, solver, n, options, prediction
):
    scheduler = getattr(diffusers, name)(
        **SD, timestep_spacing="trailing", prediction_type=prediction, **options
    )
    scheduler.set_timesteps(n)
    oracle = FiniteData(TABLE, POINTS_3D)

    def network(x, t, i):
        time = f64(float(t))
        alpha, sigma, x = TABLE.alpha(time), TABLE.sigma(time), x.double()
        x0 = oracle(x, time.expand(len(x)))
        noise = (x - alpha * x0) / sigma
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "sample": x0}[
            prediction
        ].float()

    x = torch.randn(5, 3)
    agree(
        trajectory(solver, oracle, TABLE, x.double(), Trailing()(TABLE, n)),
        driven(scheduler, x, network),
    )


class GeneratorDraws(Draws):
    """One generator that runs on, as diffusers draws its noise."""

    def __init__(self, seed, num):
        super().__init__(0, range(num))
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        self.count += 1
        return torch.randn(len(self.rows), *shape, generator=self.generator)


@pytest.mark.parametrize("indices", [(0,), (0, 22), (0, 11, 22, 33)])
def test_multistep_consistency_sampling_is_that_of_diffusers(diffusers, indices):
    from fewstep.diffusion.denoiser import Denoiser
    from fewstep.diffusion.parameterization import CmBoundary

    class Network(torch.nn.Module):
        inputs = ()

        def forward(self, x, t, cond, s=None):
            return torch.tanh(2 * x.flip(1)) - 0.1 * torch.log(t).to(x)[:, None]

    network = Network()
    scheduler = diffusers.CMStochasticIterativeScheduler(clip_denoised=False)
    scheduler.set_timesteps(timesteps=list(indices[::-1]))
    generator, noise = torch.Generator().manual_seed(5), torch.randn(4, 3)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        f = network(scheduler.scale_model_input(x, t), torch.exp(t / 250)[None].expand(4), Cond())
        x = scheduler.step(f, t, x, generator=generator).prev_sample
    grid = Karras(end="t_min")(VE, 39)
    times = Explicit(between=(tuple(grid[i].item() for i in indices[1:]),))
    sampler, draws = Renoise(steps=len(indices), times=times), GeneratorDraws(5, 4)
    ours = sampler(Denoiser(network, VE, CmBoundary()), VE, noise, Cond(), draws)
    close(ours, x, rtol=1e-5, atol=1e-5)
    assert draws.count == len(indices) - 1
