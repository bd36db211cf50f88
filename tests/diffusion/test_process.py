"""Processes: published numbers, the laws that tie alpha, sigma, rates and times, and the Gaussian
closed forms.
"""

import math

import pytest
import torch
from tests.diffusion.cases import PROCESSES, close, every, f64, inner_times, narrowed, rows
from tests.oracles import Gaussian

from fewstep.choice import replaced
from fewstep.diffusion.process import (
    PURE_NOISE,
    Process,
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.diffusion.times import Karras, Uniform

PAIRS = {f"{a}-{b}": (PROCESSES[a], PROCESSES[b]) for a in PROCESSES for b in PROCESSES if a != b}

# t: (alpha_bar, alpha, sigma, sigma/alpha) of Stable Diffusion 1.5.
SD15 = {
    0: (0.999150, 0.999575, 0.029155, 0.02917),
    19: (0.982244, 0.991082, 0.133252, 0.13445),
    239: (0.691751, 0.831715, 0.555202, 0.66754),
    249: (0.675432, 0.821847, 0.569708, 0.69320),
    259: (0.658976, 0.811773, 0.583973, 0.71938),
    339: (0.524892, 0.724494, 0.689281, 0.95140),
    499: (0.277670, 0.526944, 0.849900, 1.61289),
    519: (0.251578, 0.501575, 0.865114, 1.72479),
    699: (0.083128, 0.288320, 0.957534, 3.32108),
    739: (0.061318, 0.247624, 0.968856, 3.91261),
    759: (0.052213, 0.228501, 0.973544, 4.26056),
    779: (0.044200, 0.210239, 0.977650, 4.65018),
    999: (0.004660, 0.068265, 0.997667, 14.61464),
}


def matched(process, angle):
    return process.time_of(angle)


def rescaled(x, t, process, other_t, other):
    """The same point in another process: rows are scaled by the ratio of √(alpha² + sigma²)."""
    rho = [torch.hypot(p.alpha(u), p.sigma(u)) for p, u in ((process, t), (other, other_t))]
    return x * (rho[1] / rho[0])[:, None]


@every("process", PROCESSES)
def test_the_level_is_sigma_over_alpha_and_leads_back(process):
    t = inner_times(process)
    at = process.at(t)
    close(process.level(t), at.sigma / at.alpha)
    close(process.at_level(process.level(t)), t, rtol=1e-9)


@pytest.mark.parametrize("process", [RectifiedFlow(), Trig()])
def test_where_alpha_is_zero_the_level_is_infinite(process):
    assert process.level(f64(process.t_max)) > PURE_NOISE
    close(process.at_level(f64(math.inf)), f64(process.t_max))


# Published numbers


@pytest.mark.parametrize("t", SD15)
def test_the_table_of_stable_diffusion(t):
    table, at = VariancePreservingTable(), f64(t)
    alpha_bar, alpha, sigma, ratio = SD15[t]
    assert abs(table.alpha(at).item() ** 2 - alpha_bar) < 6e-7
    assert abs(table.alpha(at).item() - alpha) < 6e-7
    assert abs(table.sigma(at).item() - sigma) < 6e-7
    assert abs((table.sigma(at) / table.alpha(at)).item() - ratio) < 6e-6


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_the_table_is_the_product_of_one_minus_beta(schedule):
    table = VariancePreservingTable(beta_start=1e-4, beta_end=0.02, schedule=schedule)
    power = 2 if schedule == "scaled_linear" else 1
    ends = (1e-4 ** (1 / power), 0.02 ** (1 / power))
    alpha_bar, expected = 1.0, []
    for i in range(1000):
        alpha_bar *= 1 - (ends[0] + i / 999 * (ends[1] - ends[0])) ** power
        expected.append(alpha_bar)
    close(table.alpha(torch.arange(1000, dtype=torch.float64)) ** 2, f64(*expected), rtol=1e-10)
    if schedule == "linear":
        assert abs(expected[-1] - 4.0358e-5) < 1e-9  # Ho et al. 2020


def test_the_table_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).alphas_cumprod
    ours = VariancePreservingTable().alpha(torch.arange(1000, dtype=torch.float64)) ** 2
    assert (ours - theirs).abs().max() < 5e-7  # theirs is a float32 product


def test_the_table_is_data_at_minus_one_and_even_in_angle_between_indices():
    table = VariancePreservingTable()
    assert table.alpha(f64(-1)).item() == 1
    assert table.sigma(f64(-1)).item() == 0
    for t in (-1, 0, 500, 998):
        ends, inside = table.angle(f64(t, t + 1)), table.angle(f64(t + 0.25))
        close(inside, ends[:1] + 0.25 * (ends[1] - ends[0]))


def test_the_continuous_vp_process_in_the_form_of_edm():
    # Karras et al. 2022: sigma/alpha = √(exp(beta_d t²/2 + beta_min t) - 1), with beta_d = 19.9.
    t = f64(1e-3, 0.1, 0.5, 1.0)
    process = VariancePreserving()
    ratio = torch.sqrt(torch.expm1(0.5 * 19.9 * t**2 + 0.1 * t))
    close(process.sigma(t) / process.alpha(t), ratio)
    close(
        process.time_of(torch.atan(ratio)),
        (torch.sqrt(0.1**2 + 2 * 19.9 * torch.log1p(ratio**2)) - 0.1) / 19.9,
    )


@pytest.mark.parametrize(
    ("process", "std"),
    [
        (VarianceExploding(), 80.0),
        (VariancePreserving(), 1.0),
        (VariancePreservingTable(), 1.0),
        (RectifiedFlow(), 1.0),
        (Trig(sigma_data=0.5), 0.5),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, Process) else "",
)
def test_the_prior_is_the_published_start(process, std):
    noise = torch.randn(3, 2)
    close(process.prior(noise), std * noise, rtol=1e-6)


# Laws of every process


@every("process", PROCESSES)
def test_data_at_one_end_and_noise_growing_from_there(process):
    data = f64(process.t_data)
    assert process.alpha(data).item() == 1
    assert process.sigma(data).item() == 0
    assert process.t_data <= process.t_min < process.t_max
    angles = process.angle(torch.linspace(process.t_data, process.t_max, 333, dtype=torch.float64))
    assert (angles.diff() > 0).all()
    assert angles[-1] <= math.pi / 2


@every("process", PROCESSES)
def test_rates_are_derivatives(process):
    t, h = inner_times(process), 1e-5 * (process.t_max - process.t_min)
    for rate, curve in zip(process.rates(t), (process.alpha, process.sigma), strict=True):
        close(rate, (curve(t + h) - curve(t - h)) / (2 * h), rtol=1e-6, atol=1e-10)


@every("process", PROCESSES)
def test_a_velocity_is_the_derivative_of_add_noise(process):
    t, h = inner_times(process), 1e-5 * (process.t_max - process.t_min)
    x0, noise = torch.randn(2, len(t), 3, dtype=torch.float64)
    alpha_rate, sigma_rate = process.rates(t)
    numerical = (process.add_noise(x0, noise, t + h) - process.add_noise(x0, noise, t - h)) / (
        2 * h
    )
    close(alpha_rate[:, None] * x0 + sigma_rate[:, None] * noise, numerical, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow(), Trig(sigma_data=1.0)])
def test_the_determinant_of_flow_processes_is_one(process):
    t = inner_times(process)
    alpha_rate, sigma_rate = process.rates(t)
    close(process.alpha(t) * sigma_rate - alpha_rate * process.sigma(t), torch.ones_like(t))


@every("process", PROCESSES)
def test_time_of_inverts_angle(process):
    t = torch.cat([f64(process.t_min, process.t_max), inner_times(process)])
    # Relative to the range; tan loses digits where alpha is almost 0.
    close(process.time_of(process.angle(t)), t, rtol=1e-11, atol=1e-12 * process.t_max)
    angle = torch.linspace(0.05, 1.45, 29, dtype=torch.float64)
    close(process.angle(process.time_of(angle)), angle)
    assert process.time_of(f64(0)).item() == process.t_data


@every("process", PROCESSES)
def test_time_of_keeps_the_digits_of_a_small_angle_in_float32(process):
    """Near the data the cosine is 1 with all its digits."""
    t = process.t_min + (process.t_max - process.t_min) * f64(0, 1e-3, 1e-2, 0.1)
    close(
        process.time_of(process.angle(t).float()).double(),
        t,
        rtol=3e-6,
        atol=1e-4 * process.discrete,
    )
    assert math.isfinite(process.time_of(f64(math.pi / 2)).item())


@every("process", PROCESSES)
def test_add_noise_is_alpha_data_plus_sigma_noise(process):
    t = inner_times(process)
    x0, noise = torch.randn(2, len(t), 3, 2, 2, dtype=torch.float64)
    per_row = [process.alpha(t)[i] * x0[i] + process.sigma(t)[i] * noise[i] for i in range(len(t))]
    close(process.add_noise(x0, noise, t), torch.stack(per_row))


@every("process", PROCESSES)
def test_add_noise_gives_the_marginals_of_gaussian_data(process):
    t, n = inner_times(process), 40_000
    oracle = Gaussian(process, mean=0.3, std=0.5)
    x0, noise = 0.3 + 0.5 * torch.randn(len(t), n), torch.randn(len(t), n)
    x_t, spread = process.add_noise(x0, noise, t).double(), oracle.spread(t)
    # Four standard errors of a mean and of a standard deviation.
    assert ((x_t.mean(1) - 0.3 * process.alpha(t)).abs() < 4 * spread / math.sqrt(n)).all()
    assert ((x_t.std(1) / spread - 1).abs() < 4 / math.sqrt(2 * n)).all()


@every("process", PROCESSES)
def test_a_step_with_the_true_x0_keeps_the_noise(process):
    t = inner_times(process)
    s = t.flip(0)  # some rows go down, some up
    x0, noise = torch.randn(2, len(t), 3, dtype=torch.float64)
    stepped = process.step(process.add_noise(x0, noise, t), x0, t, s)
    close(stepped, process.add_noise(x0, noise, s), rtol=1e-10, atol=1e-10)


@every("process", PROCESSES)
def test_a_step_ends_at_x0_and_stays_where_it_is(process):
    t = torch.cat([inner_times(process), f64(process.t_max)])
    x_t, x0 = torch.randn(2, len(t), 3)
    assert torch.equal(process.step(x_t, x0, t, rows(process.t_data, len(t))), x0)
    assert torch.equal(process.step(x_t, x0, t, t), x_t)


@every("process", PROCESSES)
def test_x0_between_inverts_step(process):
    t = inner_times(process)
    s = torch.cat([f64(process.t_data), t[:-1]])
    x_t, x0 = torch.randn(2, len(t), 3, dtype=torch.float64)
    close(process.x0_between(x_t, process.step(x_t, x0, t, s), t, s), x0, rtol=1e-9, atol=1e-9)


@every("process", PROCESSES)
def test_two_steps_with_one_x0_are_one(process):
    t = inner_times(process)[1:]
    middle, s = (t + process.t_min) / 2, rows(process.t_min, len(t))
    x_t, x0 = torch.randn(2, len(t), 3, dtype=torch.float64)
    close(
        process.step(process.step(x_t, x0, t, middle), x0, middle, s),
        process.step(x_t, x0, t, s),
        rtol=1e-10,
    )


@every("process", PROCESSES)
def test_coefficients_are_cast_only_at_the_end(process):
    # A step computed in float32 throughout would lose digits where sigma_s and sigma_t are close.
    t = inner_times(process)
    s = t - 1e-7 * (process.t_max - process.t_min)
    x_t, x0 = torch.randn(2, len(t), 3)
    exact = process.step(x_t.double(), x0.double(), t, s)
    stepped = process.step(x_t, x0, t, s)
    assert stepped.dtype == torch.float32
    assert (stepped - exact).abs().max() < 1e-6


# One map in every process


@every("pair", PAIRS)
def test_a_step_is_the_same_map_in_every_process(pair):
    one, other = pair
    angle = torch.linspace(0.05, 1.45, 15, dtype=torch.float64)
    target = angle.flip(0)
    t, s, other_t, other_s = (matched(p, a) for p in (one, other) for a in (angle, target))
    x_t, x0 = torch.randn(2, len(angle), 4, dtype=torch.float64)
    stepped = rescaled(one.step(x_t, x0, t, s), s, one, other_s, other)
    close(
        other.step(rescaled(x_t, t, one, other_t, other), x0, other_t, other_s),
        stepped,
        rtol=1e-9,
        atol=1e-10,
    )


@every("pair", PAIRS)
def test_snr_matching_carries_marginals_to_marginals(pair):
    one, other = pair
    t, other_t = (matched(p, torch.linspace(0.05, 1.45, 15, dtype=torch.float64)) for p in pair)
    ratio = other.alpha(other_t) / one.alpha(t)
    close(ratio * Gaussian(one).spread(t), Gaussian(other).spread(other_t), rtol=1e-10)


@every("process", PROCESSES)
def test_a_step_in_its_published_forms(process):
    t = inner_times(process)
    s = torch.cat([f64(process.t_min), t[:-1]])
    x, x0 = torch.randn(2, len(t), 3, dtype=torch.float64)
    alpha_t, sigma_t, alpha_s, sigma_s, t_, s_ = (
        v[:, None]
        for v in (process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s), t, s)
    )
    noise = (x - alpha_t * x0) / sigma_t
    stepped = process.step(x, x0, t, s)
    close(stepped, alpha_s * x0 + sigma_s * noise, rtol=1e-9, atol=1e-9)
    close(
        stepped,
        alpha_s / alpha_t * x + (sigma_s - alpha_s * sigma_t / alpha_t) * noise,
        rtol=1e-9,
        atol=1e-9,
    )
    if isinstance(process, VarianceExploding | RectifiedFlow):
        close(stepped, x + (s_ - t_) * (x - x0) / t_, rtol=1e-9, atol=1e-9)  # Euler on the velocity
    if isinstance(process, Trig):
        tangent = (torch.cos(t_) * x - x0) / torch.sin(t_)  # sigma_data·F
        close(stepped, torch.cos(t_ - s_) * x - torch.sin(t_ - s_) * tangent, rtol=1e-9, atol=1e-9)


@every("pair", PAIRS)
def test_within_leaves_the_angles_that_both_cover(pair):
    one, other = pair
    ends = [p.angle(f64(p.t_min, p.t_max)) for p in pair]
    low, high = torch.maximum(ends[0][0], ends[1][0]), torch.minimum(ends[0][1], ends[1][1])
    both = one.within(other)
    assert type(both) is type(one)
    close(both.angle(f64(both.t_min, both.t_max)), torch.stack([low, high]))


@every("process", PROCESSES)
def test_within_itself_changes_next_to_nothing_and_keeps_the_options(process):
    same = process.within(process)
    close(f64(same.t_min, same.t_max), f64(process.t_min, process.t_max), atol=1e-10)
    assert same.dump() | {"t_min": 0, "t_max": 0} == process.dump() | {"t_min": 0, "t_max": 0}


def test_within_without_a_common_range_is_refused():
    with pytest.raises(ValueError, match="no range of noise"):
        VarianceExploding(t_min=0.002, t_max=0.01).within(VariancePreservingTable())


# Gaussian closed forms


@every("process", PROCESSES)
def test_the_velocity_integrates_to_the_exact_flow(process):
    """RK4 along the exact velocity, whose only input from the process is alpha, sigma and their
    rates.
    """
    process = narrowed(process)
    table = isinstance(process, VariancePreservingTable)
    if table:  # smooth only between indices, so the steps stop there: a part of the table is enough
        process = replaced(process, t_min=150.0, t_max=230.0)
    oracle = Gaussian(process, mean=0.3, std=0.5)
    grid = (
        torch.arange(230, 149, -1, dtype=torch.float64)
        if table
        else Uniform(end="t_min")(process, 120)
    )
    x = start = torch.randn(2, 3, dtype=torch.float64)
    hair = 1e-10 * (process.t_max - process.t_min)  # a table's slope jumps at its indices

    def slope(x, t):
        return oracle.velocity(x, rows(t, 2))

    for t, s in zip(grid, grid[1:]):
        h = s - t
        k1 = slope(x, t - hair)
        k2 = slope(x + h / 2 * k1, t + h / 2)
        k3 = slope(x + h / 2 * k2, t + h / 2)
        k4 = slope(x + h * k3, s + hair)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    exact = oracle.flow(start, rows(process.t_max, 2), rows(process.t_min, 2))
    close(x, exact, rtol=1e-6, atol=1e-6)


@every("process", PROCESSES)
def test_one_step_of_the_exact_denoiser_has_a_known_gain(process):
    t = inner_times(process)
    s = torch.cat([f64(process.t_min), t[:-1]])
    oracle = Gaussian(process, mean=0.3, std=0.5)
    x = torch.randn(len(t), 3, dtype=torch.float64)
    y = x - 0.3 * process.alpha(t)[:, None]
    theta = [torch.atan2(process.sigma(u), 0.5 * process.alpha(u)) for u in (t, s)]
    gain = oracle.spread(s) / oracle.spread(t) * torch.cos(theta[0] - theta[1])
    close(gain, oracle.step_gain(t, s), rtol=1e-10)
    expected = 0.3 * process.alpha(s)[:, None] + gain[:, None] * y
    close(process.step(x, oracle(x, t), t, s), expected, rtol=1e-9, atol=1e-9)
    if isinstance(process, VarianceExploding):
        close(gain, (0.25 + t * s) / (0.25 + t**2), rtol=1e-10)


def test_the_gain_of_a_training_pair():
    # x_r = x0 + r noise regressed on x_t = x0 + t noise: one step of the exact denoiser (s = 0.5, t
    # = 2, r = 1.2).
    gain = Gaussian(VarianceExploding()).step_gain(f64(2), f64(1.2))
    assert abs(gain.item() - 0.6235294) < 1e-7


@pytest.mark.parametrize(
    ("std", "gain", "exact"), [(1.0, 0.9729024, 1.0), (0.5, 0.4770347, 0.5015143)]
)
def test_fifty_ddim_steps_on_the_table(std, gain, exact):
    oracle = Gaussian(VariancePreservingTable(), std=std)
    grid = f64(*range(999, 0, -20), 0)
    gains = oracle.step_gain(grid[:-1], grid[1:])
    assert len(gains) == 50
    assert abs(gains.prod().item() - gain) < 1e-7
    assert abs((oracle.spread(grid[-1:]) / oracle.spread(grid[:1])).item() - exact) < 1e-7
    if std == 1:  # the four segments of iCD
        ends = [999, 779, 519, 259, 0]
        parts = [
            gains[(grid[:-1] <= a) & (grid[:-1] > b)].prod().item() for a, b in zip(ends, ends[1:])
        ]
        close(f64(*parts), f64(0.99901845, 0.99615751, 0.99316433, 0.98434339), rtol=1e-8)


@pytest.mark.parametrize(("steps", "gain"), [(128, 0.9900079), (4, 0.72), (1, 0.0)])
def test_euler_steps_of_rectified_flow_shrink_unit_data(steps, gain):
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    gains = Gaussian(RectifiedFlow(), std=1.0).step_gain(grid[:-1], grid[1:])
    assert abs(gains.prod().item() - gain) < 1e-7


@pytest.mark.parametrize(
    ("points", "ratio"),
    [
        (2, 0.01025),
        (3, 0.1953),
        (11, 0.7528),
        (18, 0.8461),
        (40, 0.9297),
        (150, 0.9811),
        (1281, 0.9978),
    ],
)
def test_euler_on_karras_grids_against_the_exact_gain(points, ratio):
    oracle = Gaussian(VarianceExploding())
    grid = Karras(end="t_min")(oracle.process, points - 1)
    exact = oracle.spread(grid[-1:]) / oracle.spread(grid[:1])
    assert abs(oracle.step_gain(grid[:-1], grid[1:]).prod().item() / exact.item() - ratio) < 6e-5
