"""Low-rank additions: which layers have them, what they compute, what is whose."""

import math
import sys

import pytest
import torch
from tests.low_rank import MODELS, asked, moved
from tests.tiny_diffusion import TINY_UNET
from torch import nn

from fewstep.choice import replaced
from fewstep.models.adapters import Adaptation, around, borrowed, merged, own_parameters, tensors_of
from fewstep.models.fingerprint import weights_hash
from fewstep.models.lora import Lora
from fewstep.models.space import Space, Vectors

pytest.importorskip("peft")

EVERY = pytest.mark.parametrize("name", MODELS)
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}


@pytest.fixture
def model(name):
    return MODELS[name]()


def student(model, options=None, inputs=()):
    return (options or Lora(rank=3)).clones(model.denoiser)("student", inputs=set(inputs)).eval()


def size_of(layer):
    """Parameters of an addition, for each of the rank: A of the layer's kernel, B of 1 × 1."""
    inputs = layer.weight[0].numel()
    return inputs + layer.weight.shape[0]


class TestLayers:
    def test_stable_diffusion_has_so_many(self):
        """For each of the rank, as in the published scripts."""
        with torch.device("meta"):
            spec = replaced(TINY_UNET, config=SD15)
            network = spec.build(Space((4, 64, 64), {"text": Vectors((77, 768))}))
        for word, each in (("attention", 199_296), ("all", 1_050_816)):
            layers = Lora(targets=(word,)).layers(network)
            assert sum(size_of(network.get_submodule(path)) for path in layers) == each

    @EVERY
    @pytest.mark.parametrize("rank", [1, 5])
    def test_as_many_parameters_as_the_closed_form_says(self, model, rank):
        network = model.denoiser.network
        options = Lora(rank=rank)
        wanted = sum(size_of(network.get_submodule(path)) for path in options.layers(network))
        made = student(model, options)
        assert sum(p.numel() for p in own_parameters(made).values()) == rank * wanted > 0

    @pytest.mark.parametrize("name", ["unet", "dit", "unet_2d_condition"])
    def test_attention_is_a_part_of_all(self, model):
        network = model.denoiser.network
        some, every = (Lora(targets=(word,)).layers(network) for word in ("attention", "all"))
        assert set(some) < set(every)
        kinds = {type(network.get_submodule(path)) for path in every}
        assert kinds == ({nn.Linear} if "blocks.0.mlp.0" in every else {nn.Linear, nn.Conv2d})

    @pytest.mark.parametrize("name", ["outside"])
    def test_of_a_network_from_outside_all_is_every_layer_that_can_be_merged(self, model):
        network = model.denoiser.network
        assert Lora().layers(network) == ["module.into", "module.down", "module.out.1"]
        assert Lora(targets=("out.1", "into")).layers(network) == ["module.into", "module.out.1"]

    @pytest.mark.parametrize("name", ["unet"])
    def test_ends_of_paths_are_whole_names(self, model):
        network = model.denoiser.network
        assert Lora(targets=("out.2",)).layers(network) == ["out.2"]
        with pytest.raises(ValueError, match=r"'ut\.2' ends the path of no layer of this unet"):
            Lora(targets=("ut.2",)).layers(network)

    @pytest.mark.parametrize(
        ("target", "says"),
        [("atention", "did you mean attention"), ("skip_connection.lora", "skip_connection")],
    )
    @pytest.mark.parametrize("name", ["unet"])
    def test_a_target_that_is_no_layer(self, model, target, says):
        with pytest.raises(ValueError, match=says):
            student(model, Lora(targets=("qkv", target)))

    def test_layers_that_cannot_be_merged_are_passed_over(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.wide = nn.Conv2d(1, 4, 3, padding=2, dilation=2)
                self.round = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
                self.look = nn.MultiheadAttention(4, 2, batch_first=True)
                self.last = nn.Conv2d(4, 1, 1)

            def forward(self, x, t):
                return self.last(self.round(self.wide(x)))

        from fewstep import from_network

        made = from_network(Odd(), process="rectified_flow", prediction="flow", shape=(1, 8, 8))
        assert Lora().layers(made.denoiser.network) == ["module.last"]


class TestOutput:
    @EVERY
    @pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
    def test_it_begins_as_the_base_to_the_bit(self, model, autocast):
        made = student(model)
        made.autocast = model.denoiser.autocast = autocast
        assert torch.equal(made(*asked(model)), model.denoiser(*asked(model)))

    @EVERY
    def test_it_begins_so_with_more_inputs(self, model):
        made = student(model, inputs=("guidance", "s"))
        assert set(made.inputs) == {*model.denoiser.inputs, "guidance", "s"}
        x, t, cond = asked(model)
        cond = cond.with_values(guidance=torch.full((4,), 3.0))
        torch.testing.assert_close(
            made(x, t, cond, t / 2), model.denoiser(x, t, cond), rtol=1e-5, atol=1e-6
        )

    @EVERY
    @pytest.mark.parametrize("alpha", [None, 1.5])
    def test_weights_are_those_of_the_base_and_alpha_over_rank_b_a(self, model, alpha):
        """Against a copy of the base whose weights are changed by hand."""
        made = moved(student(model, Lora(rank=3, alpha=alpha)))
        plain = model.denoiser.network.with_inputs(set())
        for path in Lora().layers(plain):
            own = made.network.get_submodule(f"inside.{path}")
            a, b = own.lora_A["default"].weight, own.lora_B["default"].weight
            change = torch.einsum("or,r...->o...", b.flatten(1), a)
            weight = plain.get_submodule(path).weight
            weight.data += change * (1.0 if alpha is None else alpha / 3)
        right = around(plain, model.denoiser).eval()(*asked(model))
        torch.testing.assert_close(made(*asked(model)), right, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(made(*asked(model)), model.denoiser(*asked(model)), rtol=1e-2)

    @EVERY
    def test_merged_it_computes_the_same_and_stands_alone(self, model):
        made = moved(student(model, inputs=("s",)))
        x, t, cond = asked(model)
        alone = merged(made)
        difference = (alone(x, t, cond, t / 2) - made(x, t, cond, t / 2)).abs().max()
        assert difference <= 1e-5 * max(1.0, float(x.abs().max()))
        base = {tensor.data_ptr() for tensor in tensors_of(model.denoiser.network).values()}
        assert not base & {tensor.data_ptr() for tensor in tensors_of(alone.network).values()}
        assert type(alone.network) is type(model.denoiser.network)
        plain = alone.network.spec.build(model.denoiser.network.space)
        plain.load_state_dict(alone.network.state_dict())
        assert torch.equal(around(plain, alone).eval()(x, t, cond, t / 2), alone(x, t, cond, t / 2))

    @EVERY
    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
    def test_of_a_base_in_16_bits_the_additions_are_in_32(self, model, kind):
        half = around(model.denoiser.network.to(kind), model.denoiser)
        half.autocast = kind
        made = moved(Lora(rank=2).clones(half)("student", inputs={"guidance"}).eval(), 0.01)
        assert {p.dtype for p in own_parameters(made).values()} == {torch.float32}
        assert {t.dtype for t in borrowed(made) if t.is_floating_point()} == {kind}
        alone = merged(made)
        floats = [t for t in tensors_of(alone.network).values() if t.is_floating_point()]
        assert {t.dtype for t in floats} == {torch.float32}
        x, t, cond = asked(model)
        torch.testing.assert_close(alone(x, t, cond), made(x, t, cond), rtol=0.1, atol=0.1)


class TestWhose:
    @EVERY
    def test_all_but_the_additions_is_the_bases(self, model):
        base = tensors_of(model.denoiser.network)
        made = student(model, inputs=("guidance",))
        network = made.network
        assert {id(t) for t in borrowed(made)} == {id(t) for t in base.values()}
        added = [key for key in network.own if "lora_" not in key]
        assert added
        assert not {key.removeprefix("inside.") for key in network.own} & set(base)

    @EVERY
    def test_nothing_of_pefts_models_is_left(self, model):
        made = student(model)
        assert "peft_config" not in vars(made.network.inside)
        names = {type(module).__module__ for module in made.modules()}
        assert {name for name in names if name.startswith("peft.")} == {"peft.tuners.lora.layer"}

    @EVERY
    def test_the_base_keeps_its_layers(self, model):
        kinds = [type(module) for module in model.denoiser.modules()]
        student(model)
        assert [type(module) for module in model.denoiser.modules()] == kinds

    @EVERY
    @pytest.mark.parametrize("inputs", [set(), {"s"}])
    def test_a_clone_of_a_clone_is_on_the_same_base(self, model, inputs):
        first = moved(student(model, inputs=("guidance",)))
        second = Lora().clones(model.denoiser)("again", of=first, inputs=inputs).eval()
        x, t, cond = asked(model)
        torch.testing.assert_close(second(x, t, cond), first(x, t, cond), rtol=1e-5, atol=1e-6)
        assert {id(t) for t in borrowed(second)} == {id(t) for t in borrowed(first)}
        mine, theirs = own_parameters(second), own_parameters(first)
        assert not {id(p) for p in mine.values()} & {id(p) for p in theirs.values()}
        assert set(theirs) <= set(mine)
        assert second.network.added == ("guidance", *inputs)
        assert (len(mine) > len(theirs)) is bool(inputs)

    @EVERY
    def test_a_discriminator_reads_what_it_reads_of_the_base(self, model):
        made = student(model)
        taps = made.network.taps
        assert list(taps.values()) == list(model.denoiser.network.taps.values())
        assert list(taps) == [f"inside.{key}" for key in model.denoiser.network.taps]
        found = made.features(*asked(model), list(taps))[1]
        right = model.denoiser.features(*asked(model), list(model.denoiser.network.taps))[1]
        for mine, its in zip(found.values(), right.values(), strict=True):
            assert torch.equal(mine, its)

    @pytest.mark.parametrize("name", ["unet"])
    def test_dropout_is_the_clones_alone(self, model):
        made = Lora().clones(model.denoiser)("student", dropout=0.5)
        assert {m.p for m in made.modules() if isinstance(m, nn.Dropout)} == {0.5}
        assert {m.p for m in model.denoiser.modules() if isinstance(m, nn.Dropout)} == {0.0}


class TestBeginning:
    def matrices(self, options, seed=0):
        made = options.clones(MODELS["unet"]().denoiser, seed)("student")
        found = [p.flatten() for key, p in own_parameters(made).items() if "lora_A" in key]
        return torch.cat(found).detach()

    def test_gaussian_has_a_deviation_of_one_over_the_rank(self):
        found = self.matrices(Lora(rank=8, init="gaussian"))
        assert found.std() == pytest.approx(1 / 8, rel=0.03)

    def test_kaiming_is_that_of_a_layer_of_the_same_inputs(self):
        """U(-1/sqrt(inputs), 1/sqrt(inputs))."""
        made = Lora(rank=8).clones(MODELS["unet"]().denoiser)("student")
        for key, p in own_parameters(made).items():
            if "lora_A" in key:
                bound = 1 / math.sqrt(p[0].numel())
                assert p.abs().max() <= bound
                assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)

    def test_it_is_the_seeds(self):
        options = Lora(rank=2)
        assert torch.equal(self.matrices(options), self.matrices(options))
        assert not torch.equal(self.matrices(options), self.matrices(options, seed=1))
        before = torch.get_rng_state()
        self.matrices(options)
        assert torch.equal(torch.get_rng_state(), before)


class TestAddition:
    def test_keys_are_pefts(self):
        model = MODELS["unet_2d_condition"]()
        made = moved(student(model, Lora(rank=3, targets=("attention",))))
        found = made.network.addition()
        paths = Lora(targets=("attention",)).layers(model.denoiser.network)
        parts = ("lora_A.weight", "lora_B.weight")
        assert list(found.tensors) == [f"{path}.{part}" for path in paths for part in parts]
        assert found.facts == {
            "rank": 3,
            "alpha": 3,
            "targets": ["attention"],
            "base": weights_hash(model.denoiser.network),
            "inputs": [],
            "whole": True,
        }

    def test_it_tells_of_what_was_trained_beside_it(self):
        made = student(MODELS["unet"](), Lora(alpha=1.5), inputs=("guidance",))
        facts = made.network.addition().facts
        assert (facts["whole"], facts["inputs"], facts["alpha"]) == (False, ["guidance"], 1.5)

    def test_the_base_is_known_by_its_weights(self):
        model = MODELS["unet"]()
        before = student(model).network.base
        assert moved(student(model)).network.base == before
        next(model.denoiser.parameters()).data += 1e-3
        assert student(model).network.base != before


class TestOptions:
    def test_it_is_an_adaptation_among_others(self):
        assert set(Adaptation.kinds()) == {"full_copy", "lora"}
        made = Adaptation.parse({"kind": "lora", "rank": 16, "targets": ["to_q"]})
        assert made == Lora(rank=16, targets=("to_q",))
        assert Adaptation.parse(made.dump()) == made

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"rank": 0}, "greater than or equal to 1"),
            ({"alpha": 0}, "greater than 0"),
            ({"alpha": math.inf}, "less than inf"),
            ({"targets": []}, "at least 1"),
            ({"init": "zero"}, "kaiming"),
            ({"rnk": 3}, "did you mean rank"),
        ],
    )
    def test_what_they_cannot_be(self, wrong, says):
        with pytest.raises(ValueError, match=says):
            Lora.parse(wrong)

    def test_without_peft_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"peft.*pip install 'fewstep\[text\]'"):
            student(MODELS["unet"]())
