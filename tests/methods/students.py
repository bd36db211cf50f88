"""Students for methods in continuous time: any function of (x, t, s), and gains that are
trained.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Answer, Exact, JumpGain, net

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding
from fewstep.learning.method import Clock
from fewstep.models.conditioner import Unconditional

MEANS = torch.tensor(
    [0.7, -0.4, 0.2], dtype=torch.float64
)  # of the data: class 0, class 1, without a label


def labelled(process, answer, scale=1.0):
    """A real `Denoiser` whose x0 is answer(data, x_t, t, s) with the data N(m, 0.5²) of its label,
    guided by `scale`.

    The ideal x0 is affine in the mean: D_null + g (D - D_null) is that of m_null + g (m - m_null).
    """

    def function(x, t, cond, s):
        mean = MEANS[2] + scale * (MEANS[cond["label"]] - MEANS[2])
        return answer(Gaussian(process, mean[:, None], 0.5), x, t, s)

    return net(process, function, ("label", "s"))


def ideal(data, x, t, s):
    return data(x, t)


def labels(n):
    """Classes 0 and 1 in turn; 2 is no label."""
    return Cond({"label": torch.arange(n) % 2}, {"label": torch.full((n,), 2)})


def assert_guides_only_what_knows_no_label(plain, guided):
    """The same method without guidance takes a teacher that knows no "no label"."""
    teacher = Denoiser(Answer(lambda x, t, s: x), VarianceExploding(), Edm())
    model = SimpleNamespace(conditioner=Unconditional().build(), denoiser=teacher)
    assert plain.build_nets(model, lambda name, inputs=(): teacher).teacher is teacher
    with pytest.raises(ValueError, match="no label"):
        guided.build_nets(model, lambda name, inputs=(): teacher)


def descend(parameters, loss, steps, lr):
    """Adam with half a cosine to 0 on loss(step)."""
    optimizer = torch.optim.Adam(list(parameters), lr=lr, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def samples(n, seed=1, d=1):
    """N(0, 0.5²), float64."""
    return 0.5 * torch.randn(
        n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def assert_reaches_the_exact_map(method, process, tolerance):
    """Trains a gain for 400 steps; its jumps are those of the exact flow map, up to a share of the
    sample's size.
    """
    data = Gaussian(process, 0.0, 0.5)
    network, steps = JumpGain(process), 400
    student = Denoiser(network, process, Edm())
    parts = method.Nets(student, Exact(process, data))
    (update,) = method.updates(Clock(0, steps, 256))
    descend(
        network.parameters(),
        lambda k: sum(
            update.loss(parts, batch_of(samples(256, k), k), Clock(k, steps, 256)).terms.values()
        ).mean(),
        steps,
        1e-2,
    )
    flow = RectifiedFlow()
    late = torch.tensor([0.3, 0.5, 0.5, 0.7, 0.7, 0.9, 0.9, 0.9], dtype=torch.float64)
    early = torch.tensor([0.05, 0.05, 0.3, 0.05, 0.5, 0.02, 0.3, 0.8], dtype=torch.float64)
    ends = torch.tensor([[process.t_max], [process.t_min]], dtype=torch.float64)
    t, s = (torch.cat([process.time_of(flow.angle(u)), end]) for u, end in zip((late, early), ends))
    x = data.spread(t)[:, None]
    made = process.step(x, student(x, t, Cond(), s), t, s)
    exact = data.flow(x, t, s)
    first_order = process.step(x, data(x, t), t, s)
    size = data.spread(s)[:, None]
    assert ((first_order - exact) / size).abs().max() > 0.25
    assert ((made - exact) / size).abs().max() < tolerance
