"""Generating: image i depends on (seed, i) alone; what a model cannot serve is refused."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from tests.models.made import DOUBLED, made

from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.samplers import FlowMap, Ode, Renoise
from fewstep.diffusion.solvers import Dpmpp2m, Euler
from fewstep.diffusion.times import Explicit, Karras
from fewstep.errors import NotFiniteError
from fewstep.models.folder import load
from fewstep.models.request import Request


@pytest.fixture
def model():
    return made()


class TestGenerate:
    def test_what_comes_out(self, model):
        images = model.generate(num=5)
        assert images.shape == (5, 1, 8, 8)
        assert images.dtype == torch.float32
        assert images.device.type == "cpu"
        assert not images.requires_grad
        assert 0 <= images.min() <= images.max() <= 1
        assert model.generate().shape[0] == 16

    @pytest.mark.parametrize(
        "sampler", [Ode(3), Ode(3, solver=Dpmpp2m()), Ode(3, churn=3.0), Renoise(3), FlowMap(2)]
    )
    def test_the_batch_does_not_matter(self, model, sampler):
        """Image i depends on (seed, i) alone, up to the rounding of the arithmetic."""
        whole = model.generate(num=70, sampler=sampler, seed=5, batch=64)
        for batch, num in ((7, 70), (1, 10)):
            part, expected = (
                model.generate(num=num, sampler=sampler, seed=5, batch=batch),
                whole[:num],
            )
            assert (part - expected).abs().max() <= 1e-5
            steps = ((part * 255).round() - (expected * 255).round()).abs()
            assert steps.max() <= 1
            assert (steps > 0).double().mean() <= 1e-3

    @pytest.mark.parametrize("sampler", [Ode(3), Renoise(2)])
    @pytest.mark.parametrize("few", [1, 5, 17])
    def test_fewer_images_are_the_first_of_more(self, model, sampler, few):
        more = model.generate(num=33, sampler=sampler, seed=2)
        assert torch.allclose(
            model.generate(num=few, sampler=sampler, seed=2), more[:few], atol=1e-5
        )

    def test_images_differ_by_place_and_seed(self, model):
        images = model.generate([3] * 12, seed=1)
        assert torch.pdist(images.flatten(1)).min() > 0.1
        assert (model.generate([3] * 12, seed=2) - images).abs().amax((1, 2, 3)).min() > 0.01
        assert torch.equal(model.generate([3] * 12, seed=1), images)

    def test_global_random_state_has_no_part(self, model):
        torch.manual_seed(1)
        first = model.generate(num=4, sampler=Renoise(2))
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert torch.equal(model.generate(num=4, sampler=Renoise(2)), first)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_model_in_training_generates_without_dropout(self, model):
        model.denoiser.train()
        assert torch.equal(model.generate(num=4), model.generate(num=4))

    def test_labels_are_respected(self, model):
        """Row i of a mixed call is row i of a call with its label everywhere, and labels change the
        image.
        """
        labels = [7, 0, 7, 3, 9]
        mixed = model.generate(labels, seed=4)
        assert torch.allclose(model.generate(labels, seed=4, batch=2), mixed, atol=1e-5)
        for label in set(labels):
            alone = model.generate(torch.tensor([label] * 5), seed=4)
            for i, mine in enumerate(labels):
                gap = (mixed[i] - alone[i]).abs().max()
                assert gap <= 1e-5 if mine == label else gap > 1e-3

    def test_no_labels_means_balanced_classes(self, model):
        assert torch.allclose(
            model.generate(num=13), model.generate([i % 10 for i in range(13)]), atol=1e-5
        )
        assert model.asked_of(0, 47)["label"].bincount().tolist() == [5] * 7 + [4] * 3

    def test_a_model_without_classes(self):
        model = made(classes=0)
        assert model.asked_of(0, 3) == {}
        assert model.generate(num=3).shape == (3, 1, 8, 8)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"steps": -3}, "steps must be at least 1, got -3"),
            ({"num": 0}, "at least 1, got 0"),
            ({"labels": []}, "at least 1, got 0"),
            ({"labels": [3, 4], "num": 3}, "2 labels for 3 images"),
            ({"labels": [3, 10]}, "0 … 9, got 3 … 10"),
            ({"labels": [-1, 4]}, "0 … 9, got -1 … 4"),
            ({"guidance": float("nan")}, "guidance"),
            ({"guidance": float("inf")}, "guidance"),
            ({"sampler": Ode(2, Explicit(((90.0,),)))}, "between 0.002 and 80"),
            ({"batch": -4}, "batch"),
            ({"steps": 2.5}, "steps: expected a whole number, got 2.5"),
            ({"seed": "a"}, "seed: expected a whole number, got 'a'"),
            ({"labels": [1.5]}, "labels are whole numbers, got 1.5"),
            ({"labels": np.array([1.5])}, "labels are whole numbers, got "),
            ({"labels": [torch.tensor(1.5)]}, "labels are whole numbers, got 1.5"),
            ({"labels": torch.tensor([1.0])}, "labels are whole numbers, got a tensor of torch.f"),
        ],
    )
    def test_mistakes(self, model, options, message):
        with pytest.raises(ValueError, match=message):
            model.generate(**options)

    def test_one_label_and_numbers_of_numpy(self, model):
        same = model.generate(labels=[3], seed=2, steps=2)
        for label in (3, np.array([3]), torch.tensor([3])):
            images = model.generate(labels=label, seed=np.int64(2), steps=np.int32(2))
            assert torch.equal(images, same)

    def test_what_it_is_in_one_line(self, model):
        told = repr(model)
        assert re.match(r"DiffusionModel\(unet of [\d,]+ parameters, images 1×8×8, ", told)
        assert told.endswith(", 10 classes, sampled by ode of 3 steps)")
        assert "classes" not in repr(made(classes=0))

    def test_labels_for_a_model_without_classes(self):
        with pytest.raises(ValueError, match="label"):
            made(classes=0).generate(labels=[1, 2])

    def test_mistakes_are_found_before_the_first_image(self, model):
        calls = []
        model.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(ValueError, match="0 … 9"):
            model.generate([0] * 300 + [10], batch=100)
        assert not calls


class TestGuidance:
    def test_models_that_cannot_be_guided(self, model):
        model.guidance = Guidance()
        assert torch.equal(model.generate(num=3, guidance=1.0), model.generate(num=3))
        with pytest.raises(ValueError, match="no unconditional side: guidance 3 cannot be applied"):
            model.generate(num=3, guidance=3.0)
        model.guidance = Guidance("fixed", 4.0, 4.0, 4.0)
        assert torch.equal(model.generate(num=3, guidance=4.0), model.generate(num=3))
        with pytest.raises(
            ValueError, match="distilled at guidance 4: guidance 3 cannot be applied"
        ):
            model.generate(num=3, guidance=3.0)

    def test_doubled(self, model):
        plain = model.generate(num=6)
        assert torch.equal(model.generate(num=6, guidance=1.0), plain)
        assert (model.generate(num=6, guidance=4.0) - plain).abs().max() > 1e-3
        model.guidance = Guidance("doubled", 1.0, 8.0, 4.0)
        assert torch.equal(model.generate(num=6), model.generate(num=6, guidance=4.0))
        assert torch.equal(model.generate(num=6, guidance=1.0), plain)

    def test_guidance_zero_forgets_the_label(self, model):
        """g = 0 is the unconditional model: x0 = x0_null."""
        with pytest.warns(UserWarning, match=r"guidance 0 is outside 1 to 8"):
            a, b = (model.generate([label] * 4, guidance=0.0) for label in (2, 8))
        assert torch.allclose(a, b, atol=1e-5)

    def test_an_image_without_a_label_can_be_asked_for(self, model):
        """It is that of guidance 0; in a list beside labels, and one for all."""
        with pytest.warns(UserWarning, match="guidance 0"):
            plain = model.generate([2] * 4, guidance=0.0)
        assert torch.allclose(model.generate([None], num=4), plain, atol=1e-5)
        mixed = model.generate([3, None, 5, None])
        assert torch.allclose(mixed[1::2], plain[1::2], atol=1e-5)
        assert torch.allclose(mixed[::2], model.generate([3, 3, 5, 5])[::2], atol=1e-5)
        with pytest.raises(ValueError, match="no image without a label"):
            made(null=False).generate([None], num=2)
        model.guidance = Guidance("fixed", 3.0, 3.0, 3.0)
        with pytest.warns(UserWarning, match="images without a condition"):
            model.generate([None], num=2)

    def test_guidance_that_fades(self, model):
        """The whole scale at times up to `full`, none from `none` on: here at 80 alone, or not."""
        plain, whole = model.generate(num=4), model.generate(num=4, guidance=4.0)
        for fading, expected in (((80.0, 80.0), whole), ((0.0, 0.001), plain)):
            found = model.generate(num=4, guidance=4.0, fading=fading)
            assert torch.allclose(found, expected, atol=1e-5)
        between = model.generate(num=4, guidance=4.0, fading=(1.0, 10.0))
        assert (between - plain).abs().max() > 1e-4
        assert (between - whole).abs().max() > 1e-4
        answer = model.answer(Request(num=4, guidance=4.0, fading=(1.0, 10.0)))
        assert answer.evaluations == 2 * model.evaluations(model.sampler, 1.0)

    def test_guidance_that_fades_is_saved_with_the_model(self, model, tmp_path):
        """And holds where nobody says another."""
        steady = model.generate(num=4, guidance=4.0)
        faded = model.generate(num=4, guidance=4.0, fading=(1.0, 10.0))
        model.guidance = Guidance("doubled", 1.0, 8.0, 4.0, (1.0, 10.0))
        model.save(tmp_path / "faded")
        again = load(tmp_path / "faded")
        assert again.guidance == model.guidance
        for one in (model, again):
            assert torch.equal(one.generate(num=4), faded)
            assert torch.equal(one.generate(num=4, fading=(80.0, 80.0)), steady)
        file = tmp_path / "faded" / "model.json"
        plain = json.loads(file.read_text())
        for wrong, says in (([1, 2, 3], "too many"), ([1, "a"], r"guidance\.fading\.none")):
            plain["guidance"]["fading"] = wrong
            file.write_text(json.dumps(plain))
            with pytest.raises(ValueError, match=says):
                load(tmp_path / "faded")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"fading": (2.0, 1.0), "guidance": 3.0}, "up to a noisier one, got 2, 1"),
            ({"fading": (1.0, float("inf")), "guidance": 3.0}, "noisier"),
            ({"fading": (1.0, 2.0)}, "fading needs guidance"),
        ],
    )
    def test_guidance_that_cannot_fade(self, model, options, message):
        with pytest.raises(ValueError, match=message):
            model.generate(num=2, **options)

    @pytest.mark.parametrize(
        ("guidance", "warned"), [(None, 0), (1.0, 0), (8.0, 0), (8.5, 1), (-1.0, 1)]
    )
    def test_guidance_outside_its_range_is_said(self, model, guidance, warned):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model.generate(num=2, guidance=guidance)
        assert len(seen) == warned

    @pytest.mark.parametrize("guidance", [None, 1.0, 3.0])
    @pytest.mark.parametrize(
        "sampler",
        [Ode(3), Ode(4, solver=Euler()), Ode(3, Karras(end="t_min")), Renoise(3), FlowMap(2)],
    )
    def test_evaluations_are_what_the_network_sees(self, model, sampler, guidance):
        rows = []
        model.denoiser.network.register_forward_pre_hook(
            lambda module, inputs: rows.append(len(inputs[0]))
        )
        model.generate(num=4, sampler=sampler, guidance=guidance)
        assert sum(rows) == 4 * model.evaluations(sampler, guidance)

    def test_a_student_without_a_null_class_has_no_guidance(self):
        model = made(null=False)
        student = model.with_student(model.denoiser, Ode(), DOUBLED, {}, {})
        assert student.guidance == Guidance()
        assert made().with_student(made().denoiser, Ode(), DOUBLED, {}, {}).guidance == DOUBLED


class TestTo:
    def test_bfloat16_is_close_and_reversible(self, model):
        full = model.generate(num=32, sampler=Renoise(1))
        half = model.to(dtype=torch.bfloat16).generate(num=32, sampler=Renoise(1))
        assert half.dtype == torch.float32
        assert not torch.equal(half, full)  # it is really used
        assert (half - full).abs().mean() < 2e-3
        assert (half - full).abs().max() < 0.03
        assert torch.equal(model.to(dtype=torch.float32).generate(num=32, sampler=Renoise(1)), full)
        assert all(p.dtype == torch.float32 for p in model.denoiser.parameters())

    def test_it_gives_the_model_itself(self, model):
        assert model.to("cpu") is model
        assert model.device.type == "cpu"


def overflowing(model, factor=1e38):
    """Its weights are finite, its samples are not."""
    with torch.no_grad():
        model.denoiser.network.out[-1].weight *= factor
    return model


class TestNumbersThatAreNotFinite:
    @pytest.mark.parametrize("sampler", [Ode(3), Ode(2, solver=Dpmpp2m()), Renoise(2)])
    def test_no_image_is_made_of_them(self, model, sampler):
        """Pixels clamps infinity to an ordinary white: what is sampled is looked at."""
        with pytest.raises(NotFiniteError, match=r"5 of the first 5 images .* another sampler"):
            overflowing(model).generate(num=5, sampler=sampler)

    def test_the_first_batch_with_some_ends_it(self, model):
        with pytest.raises(NotFiniteError, match="4 of the first 4 images"):
            overflowing(model).generate(num=12, batch=4)

    def test_a_type_that_is_too_small_is_named(self, model):
        with torch.no_grad():
            model.denoiser.network.input_blocks[0][0].weight *= 1e7
        model.to("cpu", torch.float16)
        with pytest.raises(NotFiniteError, match="float16 ends at 65,504: --dtype bf16 or fp32"):
            model.generate(num=3)
        assert model.to("cpu", torch.float32).generate(num=3).isfinite().all()

    def test_a_codec_that_makes_them(self, model, monkeypatch):
        monkeypatch.setattr(model.codec, "decode", lambda x: x / 0)
        with pytest.raises(NotFiniteError, match="3 of the first 3 images"):
            model.generate(num=3)

    def test_a_damaged_weight_is_named(self, model):
        with torch.no_grad():
            model.denoiser.network.out[-1].bias[0] = torch.nan
        with pytest.raises(NotFiniteError, match=r"its network\.out\..*bias is not finite either"):
            model.generate(num=3)
