"""A pipeline of diffusers, loaded: the same schedule, the same network, the same samples."""

import dataclasses

import pytest
import torch
from tests.tiny_diffusion import PNDM, PROMPTS, SD, TINY_UNET, tiny_pipeline

from fewstep.choice import replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance, guided
from fewstep.diffusion.parameterization import Epsilon, LcmBoundary, SamplePrediction, Velocity
from fewstep.diffusion.samplers import FlowMap, Ode, Renoise, renoised
from fewstep.diffusion.solvers import Dpmpp2m, Euler
from fewstep.diffusion.times import Strided, Trailing
from fewstep.models.folder import load, load_codec, load_conditioner
from fewstep.models.schedulers import predicted, table

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


TRAILING = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}
SCHEDULES = {
    "PNDMScheduler": PNDM,
    "DDIMScheduler": {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "DPMSolverMultistepScheduler": SD,
    "EulerDiscreteScheduler": {**SD, "timestep_spacing": "leading", "steps_offset": 1},
    "LCMScheduler": SD,
    "TCDScheduler": SD,
    "DDPMScheduler": {"beta_schedule": "linear"},
}


@pytest.fixture(scope="module")
def pipeline():
    found = tiny_pipeline()
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / "sd"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def theirs(pipeline, name, schedule, latents, steps, guidance=7.5, **options):
    """The latents of a stock pipeline with another scheduler."""
    scheduler = getattr(diffusers, name).from_config(schedule, **options)
    other = type(pipeline)(
        **{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    return other(
        PROMPTS,
        latents=latents,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).images


@torch.no_grad()
def ours(model, sampler, noise, guidance=7.5):
    cond = model.conditioner({"caption": PROMPTS})
    denoise = guided(model.denoiser, guidance)
    return sampler(denoise, model.denoiser.process, noise, cond, Draws(0, range(2)))


def close(mine, other, tolerance=1e-4):
    assert mine.abs().max() > 0.1
    assert (mine - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)


class TestWhatIsLoaded:
    def test_the_text(self, model, pipeline):
        embeds, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
        cond = model.conditioner({"caption": PROMPTS})
        assert torch.equal(cond["text"], embeds)
        assert torch.equal(cond.null["text"], null[:1])

    def test_the_network_to_the_bit(self, model, pipeline):
        x, t = torch.randn(2, 4, 4, 4), torch.tensor([1.0, 999.0], dtype=torch.float64)
        cond = model.conditioner({"caption": PROMPTS})
        f = pipeline.unet(x, t, cond["text"]).sample
        assert torch.equal(model.denoiser.network(x, t, cond), f)

    def test_the_images(self, model, pipeline):
        images, latents = torch.rand(2, 3, 8, 8), torch.randn(2, 4, 4, 4)
        z = pipeline.vae.encode(images * 2 - 1).latent_dist.mean * 0.18215
        assert torch.equal(model.codec.encode(images), z)
        pictures = pipeline.vae.decode(latents / 0.18215).sample / 2 + 0.5
        assert torch.equal(model.codec.decode(latents), pictures.clamp(0, 1))
        assert model.image_shape == (3, 8, 8)

    def test_what_it_is_sampled_with(self, model):
        assert model.sampler == Ode(25, Trailing(), Dpmpp2m())
        assert model.guidance == Guidance("doubled", 1.0, 15.0, 7.5)
        assert model.card == {"family": "stable_diffusion", "scheduler": "PNDMScheduler"}

    def test_parts_for_another_model(self, folder, model):
        assert load_codec(folder).spec == model.codec.spec
        assert load_conditioner(folder).spec == model.conditioner.spec

    def test_saved_and_loaded_as_our_own(self, model, tmp_path):
        """The same bits, words, samples; the tokens of words, too."""
        model.save(tmp_path / "own")
        again = load(tmp_path / "own")
        assert again.sampler == model.sampler
        for name in ("denoiser", "codec", "conditioner"):
            before, after = (getattr(one, name).state_dict() for one in (model, again))
            assert before.keys() == after.keys()
            assert all(torch.equal(before[key], after[key]) for key in before)
        assert "tokenizer_json" in again.conditioner.state_dict()
        images = again.generate(prompts=PROMPTS, steps=2)
        assert torch.equal(images, model.generate(prompts=PROMPTS, steps=2))

    def test_a_learned_variance_is_left_out(self, tmp_path):
        wide = replaced(TINY_UNET, config={**TINY_UNET.config, "out_channels": 8})
        other = tiny_pipeline(network=wide)
        other.save_pretrained(tmp_path / "wide")
        found = load(tmp_path / "wide")
        x, t = torch.randn(1, 4, 4, 4), torch.tensor([500.0], dtype=torch.float64)
        cond = found.conditioner({"caption": ["a"]})
        f = other.unet(x, t, cond["text"]).sample
        assert torch.equal(found.denoiser.network(x, t, cond), f[:, :4])


class TestTheSchedule:
    @pytest.mark.parametrize("name", SCHEDULES)
    def test_noise_levels_are_the_schedulers(self, name):
        scheduler = getattr(diffusers, name)(**SCHEDULES[name])
        process = table({"_class_name": name, **scheduler.config})
        t = torch.arange(1000, dtype=torch.float64)
        kept = scheduler.alphas_cumprod.double()
        torch.testing.assert_close(process.alpha(t) ** 2, kept, rtol=2e-5, atol=1e-7)
        if name == "EulerDiscreteScheduler":
            levels = scheduler.sigmas[:-1].flip(0).double()
            torch.testing.assert_close(process.level(t), levels, rtol=2e-5, atol=1e-6)

    @pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
    def test_no_signal_in_the_last_row(self, name):
        scheduler = getattr(diffusers, name)(**SD, rescale_betas_zero_snr=True)
        process = table({"_class_name": name, **scheduler.config})
        assert process.zero_snr
        t = torch.arange(1000, dtype=torch.float64)
        kept = process.alpha(t) ** 2
        torch.testing.assert_close(kept, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)
        assert kept[-1] < 1e-30
        plain = replaced(process, zero_snr=False)
        assert torch.equal(kept[:1], plain.alpha(t[:1]) ** 2)
        assert kept[500].item() == pytest.approx(0.24102, abs=1e-5)
        assert (kept.diff() < 0).all()
        torch.testing.assert_close(process.time_of(process.angle(t)), t)

    @pytest.mark.parametrize(
        ("schedule", "says"),
        [
            ({**SD, "beta_schedule": "sigmoid"}, "known as 'sigmoid'"),
            ({**SD, "trained_betas": [0.1, 0.2]}, "no table of betas"),
            ({"shift": 3.0}, "the noise levels of FlowMatch are no table"),
        ],
    )
    def test_others_are_refused(self, schedule, says):
        with pytest.raises(ValueError, match=says):
            table({"_class_name": "FlowMatch", "num_train_timesteps": 1000, **schedule})
        with pytest.raises(ValueError, match="predicts 'flow_prediction'"):
            predicted({"prediction_type": "flow_prediction"})


class TestSamples:
    @pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
    @pytest.mark.parametrize("steps", [4, 10])
    def test_ddim(self, model, pipeline, name, steps):
        noise = torch.randn(2, 4, 4, 4)
        z = theirs(pipeline, "DDIMScheduler", SCHEDULES[name], noise, steps, **TRAILING)
        close(ours(model, Ode(steps, Trailing(), Euler()), noise), z)

    def test_ddim_down_to_the_first_row(self, model, pipeline):
        """As Stable Diffusion's own configuration has it: set_alpha_to_one=False."""
        noise = torch.randn(2, 4, 4, 4)
        options = {**TRAILING, "set_alpha_to_one": False}
        z = theirs(pipeline, "DDIMScheduler", PNDM, noise, 5, **options)
        close(ours(model, Ode(5, Trailing("t_min"), Euler()), noise), z)

    @torch.no_grad()
    def test_ddim_at_the_times_of_its_default(self, model, pipeline):
        """Leading times with an offset begin at 751: no grid of ours, but the same steps."""
        noise = torch.randn(2, 4, 4, 4)
        z = theirs(pipeline, "DDIMScheduler", PNDM, noise, 4, clip_sample=False)
        x, process = noise, model.denoiser.process
        cond = model.conditioner({"caption": PROMPTS})
        denoise = guided(model.denoiser, 7.5)
        for t, s in ((751, 501), (501, 251), (251, 1), (1, 0)):
            t, s = (torch.full((2,), n, dtype=torch.float64) for n in (t, s))
            x = Euler()(denoise, process, x, t, s, cond)
        close(x, z)

    @pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
    @pytest.mark.parametrize(("steps", "options"), [(8, {"lower_order_final": False}), (20, {})])
    def test_dpm_solver(self, model, pipeline, name, steps, options):
        noise = torch.randn(2, 4, 4, 4)
        kind = "DPMSolverMultistepScheduler"
        options = {"timestep_spacing": "trailing", **options}
        z = theirs(pipeline, kind, SCHEDULES[name], noise, steps, **options)
        close(ours(model, Ode(steps, Trailing(), Dpmpp2m()), noise), z)

    def test_euler(self, model, pipeline):
        """Theirs begins with noise of the last level alone, ours with unit noise."""
        noise, steps = torch.randn(2, 4, 4, 4), 10
        level = model.denoiser.process.level(torch.tensor([999.0], dtype=torch.float64)).item()
        scaled = noise * (1 + level**-2) ** 0.5
        schedule = SCHEDULES["EulerDiscreteScheduler"]
        kind = "EulerDiscreteScheduler"
        z = theirs(pipeline, kind, schedule, scaled, steps, timestep_spacing="trailing")
        close(ours(model, Ode(steps, Trailing(), Euler()), noise), z)

    def test_without_a_signal_at_the_start(self, pipeline, tmp_path):
        """Zero-terminal SNR with v; of epsilon nothing could be said there."""
        schedule = {**SD, **TRAILING, "rescale_betas_zero_snr": True}
        schedule["prediction_type"] = "v_prediction"
        components = {**pipeline.components, "scheduler": diffusers.DDIMScheduler(**schedule)}
        other = type(pipeline)(**components, requires_safety_checker=False)
        other.save_pretrained(tmp_path / "zero")
        found = load(tmp_path / "zero")
        assert found.sampler == Ode(50, Trailing(), Euler())
        assert found.denoiser.parameterization == Velocity()
        noise = torch.randn(2, 4, 4, 4)
        z = theirs(pipeline, "DDIMScheduler", schedule, noise, 5)
        close(ours(found, Ode(5, Trailing(), Euler()), noise), z)
        other.scheduler = diffusers.DDIMScheduler(**{**schedule, "prediction_type": "epsilon"})
        other.save_pretrained(tmp_path / "epsilon")
        with pytest.raises(ValueError, match="epsilon says nothing of the data at t=999"):
            load(tmp_path / "epsilon")


class OneFunction(torch.nn.Module):
    """A network that predicts what it is asked to of one and the same clean sample."""

    inputs = ("text",)

    def __init__(self, process, kind):
        super().__init__()
        self.process, self.kind = process, kind
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, cond, s=None):
        x0 = torch.tanh(x.double() + t[:, None] / 1000 + cond["text"].mean((1, 2))[:, None])
        alpha, sigma = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None]
        noise = (x.double() - alpha * x0) / sigma
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "sample": x0}[
            self.kind
        ]


@pytest.mark.parametrize(
    ("scheduler", "zero"),
    [("PNDMScheduler", False), ("DDIMScheduler", False), ("DDIMScheduler", True)],
)
def test_one_function_is_one_teacher_whatever_it_predicts(scheduler, zero):
    """Of epsilon, v and sample: the same x0, the same noise, the same target of consistency and
    latent consistency distillation, on the schedule of Stable Diffusion 1.5 and 2.1.
    """
    answers = []
    for kind in ("epsilon", "v_prediction", "sample"):
        options = {"rescale_betas_zero_snr": True} if zero else {}
        config = getattr(diffusers, scheduler)(**SD, prediction_type=kind, **options).config
        process = table({"_class_name": scheduler, **config})
        if zero:
            process = replaced(process, t_max=990.0)  # of epsilon nothing is known at 999
        denoiser = Denoiser(OneFunction(process, kind), process, predicted(config))
        answers.append(targets(denoiser))
    first = answers[0]
    assert first["x0"].abs().max() > 0.5
    for other in answers[1:]:
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-9, msg=name)


@torch.no_grad()
def targets(teacher):
    """What is asked of a teacher; float64, for x_t is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    text = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)
    cond = Cond({"text": text}, {"text": torch.zeros(1, 3, 2, dtype=torch.float64)})
    t = torch.tensor([19.0, 259.0, 499.0, 979.0], dtype=torch.float64)
    s, process = (t - 20).clamp(min=0), teacher.process
    x0 = teacher(x, t, cond)
    noise = (x - process.alpha(t)[:, None] * x0) / process.sigma(t)[:, None]
    found = {"x0": x0, "noise": noise}
    guide = guided(teacher, torch.tensor([3.0, 5.0, 8.0, 15.0], dtype=torch.float64))
    x_s = Euler()(guide, process, x, t, s, cond)
    for name, boundary in (("lcm", LcmBoundary), ("cd", lambda of: of.boundary())):
        student = Denoiser(teacher.network, process, boundary(teacher.parameterization))
        found[f"{name} jump"], found[f"{name} goal"] = student(x, t, cond), student(x_s, s, cond)
    return found


class TestFewStepModels:
    @pytest.fixture(scope="class")
    def released(self, tmp_path_factory):
        """A latent consistency model as they are published, and its folder."""
        network = replaced(TINY_UNET, config={**TINY_UNET.config, "time_cond_proj_dim": 32})
        base = tiny_pipeline("LCMScheduler", SD, network)
        found = diffusers.LatentConsistencyModelPipeline(
            **base.components, requires_safety_checker=False
        )
        found.set_progress_bar_config(disable=True)
        path = tmp_path_factory.mktemp("pipelines") / "released"
        found.save_pretrained(path)
        return found, path

    def test_its_samples(self, released):
        """Theirs adds the whole noise of the next time, as to data: ours with jumps to the data."""
        pipeline, path = released
        model = load(path)
        assert model.sampler == Renoise(4, Strided(Trailing(), 50))
        assert model.denoiser.parameterization == LcmBoundary(Epsilon())
        assert model.guidance == Guidance("input", 3.0, 15.0, 8.5)
        z = pipeline(
            PROMPTS,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).images
        draws = torch.Generator().manual_seed(1)
        process = model.denoiser.process
        first, *others, end = (t.expand(2) for t in model.sampler.times(process, 4))
        assert [t[0].item() for t in others] == [759, 499, 259]
        cond = model.conditioner({"caption": PROMPTS})
        denoise = guided(model.denoiser, 8.5)
        with torch.no_grad():
            x = denoise(torch.randn(2, 4, 4, 4, generator=draws), first, cond)
            for t in others:
                noise = torch.randn(x.shape, generator=draws)
                x = denoise(renoised(process, x, noise, end, t), t, cond)
        close(x, z)

    def test_it_is_recognised(self, released):
        told = "its scheduler is LCMScheduler, its U-Net reads the guidance scale"
        assert load(released[1]).card["distilled"] == told

    @pytest.mark.parametrize("scheduler", ["LCMScheduler", "TCDScheduler"])
    def test_by_its_scheduler_alone(self, pipeline, tmp_path, scheduler):
        """A base with a few-step LoRA merged into it."""
        made = getattr(diffusers, scheduler)(**SD)
        components = {**pipeline.components, "scheduler": made}
        type(pipeline)(**components, requires_safety_checker=False).save_pretrained(tmp_path / "m")
        found = load(tmp_path / "m")
        assert found.card["distilled"] == f"its scheduler is {scheduler}"
        assert found.guidance == Guidance("doubled", 1.0, 2.0, 1.0)
        kinds = {"LCMScheduler": Renoise, "TCDScheduler": FlowMap}
        assert isinstance(found.sampler, kinds[scheduler])

    def test_by_its_sampler(self, model):
        """A student of ours, too."""
        assert not model.distilled
        student = dataclasses.replace(model, sampler=Renoise())
        assert student.distilled == "its sampler is renoise"

    def test_by_its_name(self, folder, tmp_path):
        (tmp_path / "sd-turbo").symlink_to(folder)
        assert load(tmp_path / "sd-turbo").card["distilled"] == "its name says turbo"


def test_predictions_are_read(pipeline):
    for kind, mine in (
        ("epsilon", Epsilon()),
        ("v_prediction", Velocity()),
        ("sample", SamplePrediction()),
    ):
        assert predicted({"prediction_type": kind}) == mine
    assert predicted({}) == Epsilon()
