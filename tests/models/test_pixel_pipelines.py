"""Pipelines of pixels from diffusers, loaded: each samples here what it samples there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.made import stirred

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import clipped
from fewstep.diffusion.parameterization import CmBoundary, Edm, Score
from fewstep.diffusion.process import VarianceExploding, VariancePreservingTable
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.diffusion.solvers import Euler, Heun
from fewstep.export.drawn import Drawn
from fewstep.models.codec import UnitPixels
from fewstep.models.folder import load, load_folder
from fewstep.models.library import library_class
from fewstep.models.request import Request

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
EXACT = {"clip_sample": False, "timestep_spacing": "trailing"}


def unet(**options):
    """A random one whose weights are everywhere."""
    torch.manual_seed(0)
    made = diffusers.UNet2DModel(**{**SMALL, **options})
    stirred(made, 1)
    return made.eval()


def saved(folder, pipeline, scheduler, **options):
    """A pipeline in a folder, by the names of its classes, or around these parts."""
    if isinstance(pipeline, str):
        pipeline = library_class(f"diffusers.{pipeline}")
    made = pipeline(unet(**options), scheduler)
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder)
    return made


@torch.no_grad()
def ours(model, steps, num=2, seed=1):
    """The model's images with the noise that a pipeline draws from that seed."""
    draws = Drawn(seed, num)
    noise = draws.normal(*model.shape)
    answer = model.answer(Request(model.asked_of(0, num), num=num, steps=steps))
    process, cond = model.denoiser.process, answer.cond(range(num))
    return model.codec.decode(answer.sampler(answer.denoise(), process, noise, cond, draws))


def theirs(pipeline, steps, num=2, seed=1, **call):
    generator = torch.Generator().manual_seed(seed)
    images = pipeline(
        num_inference_steps=steps, generator=generator, output_type="np", **call
    ).images
    assert len(images) == num
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def close(mine, other, tolerance=1e-5):
    assert mine.std() > 0.05  # not all alike
    assert (mine - other).abs().max() <= tolerance


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_of_every_prediction_and_table(tmp_path, prediction, betas):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=betas, prediction_type=prediction, beta_end=0.012, **EXACT
    )
    pipeline = saved(tmp_path / "m", "DDIMPipeline", scheduler)
    model = load(tmp_path / "m")
    assert model.sampler == Ode(50, model.sampler.times, Euler())
    assert model.clip is None
    close(ours(model, 10), theirs(pipeline, 10, batch_size=2), 1e-4)


def test_a_cosine_table_is_that_of_diffusers():
    betas = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    process = VariancePreservingTable(schedule="squaredcos_cap_v2")
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(process.alpha(t) ** 2, betas.double(), rtol=1e-3, atol=1e-7)
    # Its definition, where no beta is cut: the ratio of squared cosines.
    at = [((k / 1000 + 0.008) / 1.008 * torch.pi / 2) for k in (0, 500)]
    cosines = [torch.cos(torch.tensor(a, dtype=torch.float64)) ** 2 for a in at]
    assert process.alpha(t[499:500]).item() ** 2 == pytest.approx(float(cosines[1] / cosines[0]))


def test_x0_is_cut_where_the_scheduler_cuts_it(tmp_path):
    scheduler = diffusers.DDIMScheduler(clip_sample_range=0.7, timestep_spacing="trailing")
    pipeline = saved(tmp_path / "m", "DDIMPipeline", scheduler)
    model = load(tmp_path / "m")
    assert model.clip == 0.7
    there = theirs(pipeline, 5, batch_size=2, use_clipped_model_output=True)
    close(ours(model, 5), there)
    model.clip = None
    assert (ours(model, 5) - there).abs().max() > 0.01
    model.clip = 0.7
    model.save(tmp_path / "again")
    again = load_folder(tmp_path / "again")
    assert again.clip == 0.7
    assert torch.equal(again.generate(num=2, steps=3), model.generate(num=2, steps=3))
    described = json.loads((tmp_path / "again" / "model.json").read_text())
    for wrong in (-1.0, 0, "far", True):
        (tmp_path / "again" / "model.json").write_text(json.dumps({**described, "clip": wrong}))
        with pytest.raises(ValueError, match="clip: expected a positive number"):
            load_folder(tmp_path / "again")


def test_what_is_cut_lies_between():
    cut = clipped(lambda x, t, cond, s=None: 3 * x, 2.0)
    x = torch.tensor([-5.0, -0.5, 0.5, 5.0])
    assert cut(x, torch.zeros(4), Cond()).tolist() == [-2.0, -1.5, 1.5, 2.0]


@pytest.mark.parametrize("kind", ["DDPMPipeline", "PNDMPipeline"])
def test_other_schedulers_say_the_same_network(tmp_path, kind):
    """DDPM draws noise in each step; what it asks of the network is the same."""
    scheduler = getattr(diffusers, kind.replace("Pipeline", "Scheduler"))()
    pipeline = saved(tmp_path / "m", kind, scheduler)
    model = load(tmp_path / "m")
    x = torch.randn(2, 3, 8, 8)
    t = torch.tensor([10.0, 900.0])
    told = pipeline.unet(x, t).sample
    alpha = scheduler.alphas_cumprod[t.long()][:, None, None, None] ** 0.5
    x0 = (x - (1 - alpha**2) ** 0.5 * told) / alpha
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser(x, t, Cond()), x0, rtol=1e-3, atol=1e-3)
    assert model.generate(num=2, steps=4).std() > 0.01


def test_a_score_network_of_exploding_variance(tmp_path):
    """x0 is x + sigma² score, in [0, 1]; sampled by the flow of the published scheduler."""
    scheduler = diffusers.ScoreSdeVeScheduler()
    pipeline = saved(tmp_path / "m", "ScoreSdeVePipeline", scheduler, time_embedding_type="fourier")
    model = load(tmp_path / "m")
    denoiser = model.denoiser
    assert denoiser.process == VarianceExploding(0.01, 1348.0)
    assert denoiser.parameterization == Score()
    assert model.codec.spec == UnitPixels()
    x, sigma = 100 * torch.randn(2, 3, 8, 8), torch.tensor([0.5, 1348.0])
    with torch.no_grad():
        score = pipeline.unet(x, sigma).sample
        x0 = denoiser(x, sigma, Cond())
        velocity = denoiser.velocity(x, sigma, Cond())
    shape = (-1, 1, 1, 1)
    torch.testing.assert_close(x0, x + sigma.reshape(shape) ** 2 * score, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(velocity, -sigma.reshape(shape) * score, rtol=1e-3, atol=1e-4)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(model.codec.decode(model.codec.encode(images)), images)


def test_the_same_network_asked_for_images_from_minus_one(tmp_path):
    """KarrasVePipeline asks it at half of its noise, on images moved to [0, 1]."""
    scheduler = diffusers.KarrasVeScheduler(s_churn=0.0)
    pipeline = saved(tmp_path / "m", "KarrasVePipeline", scheduler, time_embedding_type="fourier")
    model = load(tmp_path / "m")
    assert model.denoiser.process == VarianceExploding(0.01, 50.0)
    x, sigma = 3 * torch.randn(2, 3, 8, 8), 4.0
    with torch.no_grad():
        told = sigma / 2 * pipeline.unet((x + 1) / 2, torch.tensor(sigma / 2)).sample
        x0 = model.denoiser((x + 1) / 2, torch.full((2,), sigma / 2), Cond())
    torch.testing.assert_close(2 * x0 - 1, x + sigma * told, rtol=1e-4, atol=1e-4)


def test_an_edm_network(tmp_path):
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.6, num_train_timesteps=10)
    pipeline = saved(tmp_path / "m", "DDPMPipeline", scheduler)
    model = load(tmp_path / "m")
    assert model.denoiser.parameterization == Edm(0.6)
    assert model.sampler.solver == Heun()
    scheduler.set_timesteps(6)
    x, sigmas = 80 * torch.randn(2, 3, 8, 8), scheduler.sigmas
    mine = theirs_ = x
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            asked = scheduler.scale_model_input(theirs_, t)
            theirs_ = scheduler.step(pipeline.unet(asked, t).sample, t, theirs_).prev_sample
            here, there = (s.double().expand(2) for s in sigmas[i : i + 2])
            x0 = model.denoiser(mine, here, Cond())
            mine = model.denoiser.process.step(mine, x0, here, there)
    torch.testing.assert_close(mine, theirs_, rtol=1e-3, atol=1e-4)


CM = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "num_class_embeds": 5,
}


@pytest.mark.parametrize("cut", [True, False])
def test_a_consistency_model(tmp_path, cut):
    scheduler = diffusers.CMStochasticIterativeScheduler(4001, clip_denoised=cut)
    pipeline = saved(tmp_path / "m", "ConsistencyModelPipeline", scheduler, **CM)
    model = load(tmp_path / "m")
    assert model.denoiser.parameterization == CmBoundary()
    assert model.classes == 5
    assert isinstance(model.sampler, Renoise)
    assert model.distilled == "its scheduler is CMStochasticIterativeScheduler"
    for steps in (1, 2):
        close(ours(model, steps), theirs(pipeline, steps, batch_size=2, class_labels=[0, 1]))
    with pytest.raises(ValueError, match="labels must lie in 0 … 4, got 5"):
        model.generate(labels=[5])


def transformer_pipeline():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    stirred(transformer, 1)
    scheduler = diffusers.DDIMScheduler(set_alpha_to_one=False, **EXACT)
    made = diffusers.DiTPipeline(transformer.eval(), vae.eval(), scheduler)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_transformer_of_latents(tmp_path, guidance):
    """Its learned variance is left out, and "any class" is the last of its labels."""
    pipeline = transformer_pipeline()
    pipeline.save_pretrained(tmp_path / "m")
    model = load(tmp_path / "m")
    assert model.shape == (4, 8, 8)
    assert model.image_shape == (3, 16, 16)
    assert model.guidance.kind == "doubled"
    assert model.classes == 1000
    answer = model.answer(Request({"label": [3, 7]}, guidance=guidance, steps=5))
    draws = Drawn(1, 2)
    noise = draws.normal(*model.shape)
    with torch.no_grad():
        x0 = answer.sampler(
            answer.denoise(), model.denoiser.process, noise, answer.cond(range(2)), draws
        )
        mine = model.codec.decode(x0)
    there = theirs(pipeline, 5, class_labels=[3, 7], guidance_scale=guidance)
    assert (mine - there).abs().max() < 1e-4


def test_a_transformer_whose_scheduler_cuts_and_whose_name_says_few_steps(tmp_path):
    pipeline = transformer_pipeline()
    pipeline.scheduler = diffusers.DDIMScheduler(clip_sample_range=0.5)
    pipeline.save_pretrained(tmp_path / "my-lcm")
    model = load(tmp_path / "my-lcm")
    assert model.clip == 0.5
    assert model.distilled == "its name says lcm"


def test_labels_of_a_transformer_are_not_dropped_in_training(tmp_path):
    transformer_pipeline().save_pretrained(tmp_path / "m")
    denoiser = load(tmp_path / "m").denoiser.train()
    x, t = torch.randn(64, 4, 8, 8), torch.full((64,), 500.0)
    cond = Cond({"label": torch.arange(64)})
    with torch.no_grad():
        first, second = denoiser(x, t, cond), denoiser(x, t, cond)
    assert torch.equal(first, second)


def test_a_folder_of_the_first_layout(tmp_path):
    """Weights and configurations beside the index, as the oldest models of hubs have them."""
    pipeline = saved(tmp_path / "m", "DDIMPipeline", diffusers.DDIMScheduler(**EXACT))
    for part in ("unet", "scheduler"):
        for file in (tmp_path / "m" / part).iterdir():
            shutil.move(file, tmp_path / "m")
        (tmp_path / "m" / part).rmdir()
    close(ours(load(tmp_path / "m"), 5), theirs(pipeline, 5, batch_size=2))


def wrong_class(folder):
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps({**index, "unet": ["mine", "MyUNet"]}))


def of(name, **options):
    """Changes a configuration of the folder."""

    def change(folder):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **options}))

    return change


def without_a_weight(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file(tensors, file, {"format": "pt"})


SCHEDULE, UNET = "scheduler/scheduler_config.json", "unet/config.json"
BROKEN = {
    "not a UNet2DModel of diffusers": wrong_class,
    "no table of noise levels is known as 'sigmoid'": of(SCHEDULE, beta_schedule="sigmoid"),
    "diffusers has no scheduler 'MineScheduler'": of(SCHEDULE, _class_name="MineScheduler"),
    "no network is known that predicts 'noise'": of(SCHEDULE, prediction_type="noise"),
    "no table of betas": of(SCHEDULE, trained_betas=[0.1, 0.2]),
    "it has no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
    "does not say of which size": of(UNET, sample_size=None),
    "its unet lacks the weights": without_a_weight,
    "expected shape": of(UNET, layers_per_block=2),
    r"lacks the weights class_embedding": of(UNET, class_embed_type="timestep"),
}


@pytest.mark.parametrize("reason", [*BROKEN])
def test_what_cannot_be_read_is_one_line(tmp_path, reason):
    saved(tmp_path / "m", "DDIMPipeline", diffusers.DDIMScheduler(**EXACT))
    BROKEN[reason](tmp_path / "m")
    with pytest.raises(ValueError, match=reason) as caught:
        load(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "m") in str(caught.value)


def test_a_learned_variance_of_pixels_is_left_out(tmp_path):
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**{**SMALL, "out_channels": 6})
    pipeline = diffusers.DDPMPipeline(network.eval(), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "m")
    model = load(tmp_path / "m")
    assert model.generate(num=2, steps=2).shape == (2, 3, 8, 8)
    x, t = torch.randn(2, 3, 8, 8), torch.full((2,), 500.0)
    with torch.no_grad():
        f = model.denoiser.network(x, t, Cond())
        torch.testing.assert_close(f, network(x, t).sample[:, :3])
