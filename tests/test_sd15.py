"""Stable Diffusion 1.5: its sizes, and where its recipes' students are evaluated."""

import pytest

from fewstep import recipes
from fewstep.export.schedules import schedule_of
from fewstep.learning.method import Clock
from fewstep.models import sd15
from fewstep.models.lora import Lora
from fewstep.models.size import without_memory
from fewstep.models.space import Space, Vectors
from fewstep.recipes.sd15 import sd15_lcm_lora
from tests.tiny_diffusion import DATA, SD15

pytest.importorskip("diffusers")
pytest.importorskip("peft")
RECIPES = [name for name in recipes.listed() if name.startswith("sd15_")]
QUARTERS = [999, 749, 499, 249]
SCHEDULES = {
    "sd15_ct": ("LCMScheduler", QUARTERS),
    "sd15_cd": ("LCMScheduler", QUARTERS),
    "sd15_guided_lora": ("DPMSolverMultistepScheduler", QUARTERS),
    "sd15_lcm_lora": ("LCMScheduler", [999, 759, 499, 259]),
    "sd15_mbcd_lora": ("DDIMScheduler", QUARTERS),
    "sd15_dmd2_lora": ("LCMScheduler", QUARTERS),
}


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_its_parts_have_the_published_sizes():
    source = sd15.fresh()
    with without_memory():
        codec, text = source.codec.build(), source.conditioner.build()
        network = source.network.build(Space((4, 64, 64), {"text": Vectors((77, 768))}))
    assert (size(network), size(codec), size(text)) == (859_520_964, 83_653_863, 123_060_480)
    assert source.codec.shape((3, 512, 512)) == (4, 64, 64)
    assert codec.scale == 0.18215
    layers = [network.get_submodule(name) for name in sd15_lcm_lora().adaptation.layers(network)]
    added = sum(layer.weight[0].numel() + len(layer.weight) for layer in layers)
    assert 64 * added == 67_252_224  # as in released LCM-LoRAs


def test_every_recipe_has_its_schedule():
    assert set(RECIPES) == set(SCHEDULES)


@pytest.mark.parametrize("name", RECIPES)
def test_four_steps_are_evaluated_where_diffusers_does(name, monkeypatch):
    """By a bare call of the pipeline: nothing but the number of steps is told."""
    for part, config in SD15.items():
        monkeypatch.setattr(sd15, part, config)
    run, model = recipes.recipe(name), sd15.fresh().load(DATA, 0)
    assert run.teacher.path == sd15.NAME
    assert isinstance(run.adaptation, Lora)
    method = run.method.towards(model)
    nets = method.build_nets(model, run.adaptation.clones(model.denoiser))
    model.denoiser = nets.student
    model.sampler = method.sampler(Clock(0, 1, 4)).with_steps(4)
    schedule = schedule_of(model.denoiser, model.sampler)
    assert (schedule.name, schedule.times) == SCHEDULES[name]
    assert schedule.call == {"num_inference_steps": 4}
