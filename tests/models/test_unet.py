"""The U-Net: published sizes, derivatives, added inputs, labels, and equality with diffusers'
UNet2DModel.
"""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.choice import replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.models.network import Network, noise_features, sinusoid
from fewstep.models.space import labelled
from fewstep.models.unet import UNet
from fewstep.models.unet_names import unet_config, unet_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:DeprecationWarning"
)  # of torch itself

SMALL = UNet(channels=4, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=2, groups=2)


def redrawn(network):
    """A fresh network outputs zeros; these weights use every layer."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + (parameter.ndim == 1))
    return network


SPACE = labelled((3, 8, 8), 5)


def built(spec=SMALL, space=SPACE):
    network = redrawn(spec.build(space))
    assert sum(p.numel() for p in network.parameters()) < 50_000
    return network.eval()


def inputs(n=3, shape=(3, 8, 8), classes=5, dtype=torch.float32):
    x, t = torch.randn(n, *shape, dtype=dtype), torch.linspace(0.01, 5, n, dtype=torch.float64)
    return x, t, Cond({"label": torch.arange(n) % classes} if classes else {})


# Size and layout


@pytest.mark.parametrize(
    ("spec", "space", "count"),
    [
        (UNet(), labelled((3, 32, 32), 10), 42_737_411),
        (
            UNet(channels=192, multipliers=(1, 2, 3, 4), attention=(2, 4, 8), head_channels=64),
            labelled((3, 64, 64), 1000),
            295_899_267,
        ),
    ],
    ids=["cifar10", "imagenet64"],
)
def test_published_parameter_counts(spec, space, count):
    with torch.device("meta"):
        network = spec.build(space)
    assert sum(p.numel() for p in network.parameters()) == count


def test_the_layout_of_the_published_cifar10_network():
    with torch.device("meta"):
        network = UNet().build(labelled((3, 32, 32), 10))
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["input_blocks.0.0.weight"] == (128, 3, 3, 3)
    assert shapes["input_blocks.5.0.in_layers.2.weight"] == (256, 128, 3, 3)
    assert shapes["input_blocks.5.1.qkv.weight"] == (768, 256, 1, 1)
    assert shapes["middle_block.1.proj_out.weight"] == (128, 128, 1, 1)
    assert shapes["output_blocks.11.2.in_layers.2.weight"] == (
        256,
        256,
        3,
        3,
    )  # behind the attention: up
    assert shapes["output_blocks.15.0.skip_connection.weight"] == (128, 256, 1, 1)
    assert shapes["label_emb.weight"] == (10, 512)
    attends = sorted({name.rsplit(".", 2)[0] for name in shapes if name.endswith("qkv.weight")})
    expected = ["input_blocks.5.1", "input_blocks.6.1", "input_blocks.7.1", "middle_block.1"]
    expected += [
        "output_blocks.8.1",
        "output_blocks.9.1",
        "output_blocks.10.1",
        "output_blocks.11.1",
    ]
    assert attends == sorted(expected)
    assert len(network.input_blocks) == len(network.output_blocks) == 16


def test_a_fresh_network_answers_zero():
    network = SMALL.build(labelled((3, 8, 8), 5))
    assert not network(*inputs()).any()


@pytest.mark.parametrize(("side", "multipliers"), [(6, (1, 2, 2)), (9, (1, 2)), (20, (1, 1, 1, 1))])
def test_sides_that_do_not_divide_are_refused(side, multipliers):
    spec = replaced(SMALL, multipliers=multipliers)
    with pytest.raises(
        ValueError,
        match=f"divide by {2 ** (len(multipliers) - 1)}, got shape \\(3, {side}, {side}\\)",
    ):
        spec.build(labelled((3, side, side)))


@pytest.mark.parametrize("shape", [(3,), (8, 8), (1, 3, 8, 8)])
def test_other_shapes_than_images_are_refused(shape):
    with pytest.raises(ValueError, match="needs images"):
        SMALL.build(labelled(shape))


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"groups": 3}, "4 channels .* groups=3"),
        ({"head_channels": 8}, "4 channels .* head_channels=8"),
        ({"attention": (2, 4)}, "attention=4: the 2 levels .* have the factors 1, 2"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options, numbers):
    with pytest.raises(ValueError, match=numbers):
        replaced(SMALL, **options).build(labelled((3, 8, 8)))


def test_the_options_are_read_back():
    assert Network.parse(SMALL.dump()) == SMALL
    assert SMALL.build(labelled((3, 8, 8))).spec == SMALL


# Inputs


def test_the_sinusoid_is_cosines_and_then_sines():
    # Frequencies 10000^(-k/half): the order and the spacing of openai's networks and of diffusers'
    # defaults.
    half = 128
    values = sinusoid(torch.tensor([0.0, 2.5], dtype=torch.float64), 2 * half)
    assert values.shape == (2, 2 * half)
    assert values[0].tolist() == [1.0] * half + [0.0] * half
    for k in (0, 1, 64, 127):
        angle = 2.5 * 10000 ** (-k / half)
        assert values[1, k].item() == pytest.approx(math.cos(angle), abs=1e-12)
        assert values[1, half + k].item() == pytest.approx(math.sin(angle), abs=1e-12)


def test_noise_features():
    t = torch.tensor([0.002, 1.0, 80.0, 0.0], dtype=torch.float64)
    log = noise_features(t, "log_sigma")
    expected = [250 * math.log(0.002), 0.0, 250 * math.log(80), 250 * math.log(1e-20)]
    assert log.tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(noise_features(t, "identity"), t)
    assert torch.equal(noise_features(t, "thousand"), 1000 * t)


@pytest.mark.parametrize("kind", ["log_sigma", "identity", "thousand"])
def test_the_time_reaches_the_output(kind):
    spec = replaced(SMALL, time_input=kind)
    network, (x, _, cond) = built(spec), inputs(1)
    low, high = (network(x, torch.tensor([t]), cond) for t in (0.3, 0.4))
    assert (low - high).abs().max() > 1e-3


@pytest.mark.parametrize("null", [False, True])
def test_every_label_has_a_row_of_its_own(null):
    network, (x, t, cond) = built(space=labelled((3, 8, 8), 5, null)), inputs(6)
    labels = torch.tensor([0, 4, 2, 2, 1, 5 if null else 3])
    cond = Cond({"label": labels})
    assert network.label_emb.weight.shape == (5 + null, 16)
    assert network.inputs == ("label",)
    before = network(x, t, cond)
    with torch.no_grad():
        network.label_emb.weight[2] += 1.0
        if null:
            network.label_emb.weight[5] += 1.0
    changed = (network(x, t, cond) - before).abs().flatten(1).amax(1) > 1e-4
    assert changed.tolist() == [False, False, True, True, False, null]


def test_without_classes_no_label_is_read():
    network, (x, t, cond) = built(space=labelled((3, 8, 8))), inputs(classes=0)
    assert network.inputs == ()
    assert not hasattr(network, "label_emb")
    assert network(x, t, cond).shape == x.shape


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 4), (2, 16, 8)])
def test_samples_may_have_any_channels_and_sides(shape):
    network = built(space=labelled(shape))
    x, t, cond = inputs(shape=shape)
    y = network(x, t, cond)
    assert y.shape == x.shape
    # Rows do not see each other.
    torch.testing.assert_close(
        network(x[1:2], t[1:2], cond.select(1, 2)), y[1:2], rtol=1e-4, atol=1e-5
    )


def test_dropout_acts_in_training_alone():
    spec = replaced(SMALL, dropout=0.5)
    network, (x, t, cond) = built(spec), inputs()
    quiet = network(x, t, cond)
    assert torch.equal(network(x, t, cond), quiet)
    network.train()
    assert not torch.allclose(network(x, t, cond), quiet)


# More inputs


@pytest.mark.parametrize("names", [{"guidance"}, {"s"}, {"guidance", "s"}])
def test_an_extended_network_is_the_same_until_trained_and_then_reacts(names):
    network, (x, t, cond) = built(), inputs()
    plain = network(x, t, cond)
    wider = network.with_inputs(names)
    assert set(wider.inputs) == {"label"} | names
    assert network.inputs == ("label",)

    def answer(guidance=2.0, share=0.5):
        return wider(x, t, cond.with_values(guidance=torch.full((3,), guidance)), share * t)

    assert torch.equal(answer(), plain)
    assert torch.equal(answer(5.0, 0.1), plain)
    # The gradient reaches the new embedding, though it is zero, and one step of it makes the answer
    # depend on it.
    answer().square().mean().backward()
    for name in names:
        linear = wider.extra_embed[name].linear
        assert not linear.weight.any()
        assert linear.weight.grad.abs().max() > 0
        with torch.no_grad():
            linear.weight -= linear.weight.grad / linear.weight.grad.norm()
    assert not torch.allclose(answer(), plain, atol=1e-4)
    assert torch.allclose(answer(5.0, 0.5), answer(), atol=1e-5) == ("guidance" not in names)
    assert torch.allclose(answer(2.0, 0.1), answer(), atol=1e-5) == ("s" not in names)
    assert torch.equal(network(x, t, cond), plain)  # a copy was extended


def test_a_network_that_reads_the_target_time_takes_t_where_there_is_none():
    wider, (x, t, cond) = built().with_inputs({"s"}), inputs()
    redrawn(wider.extra_embed["s"])
    assert torch.equal(wider(x, t, cond), wider(x, t, cond, t))
    assert not torch.allclose(wider(x, t, cond), wider(x, t, cond, t / 2), atol=1e-4)


def test_an_input_that_is_there_already_is_kept_with_its_weights():
    wider, (x, t, cond) = built().with_inputs({"guidance"}), inputs()
    redrawn(wider.extra_embed["guidance"])
    again = wider.with_inputs({"guidance", "s"})
    assert again.inputs == ("label", "guidance", "s")
    told = cond.with_values(guidance=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(again(x, t, told, t), wider(x, t, told))
    # Built from its options, it takes those weights.
    other = again.spec.build(again.space)
    other.load_state_dict(again.state_dict())
    assert torch.equal(other.eval()(x, t, told, t), again(x, t, told, t))


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("multipliers", [], "at least 1 item"),
        ("multipliers", [1, 10**20], "less than or equal to 512"),
        ("channels", 10**20, "less than or equal to 16384"),
        ("blocks", 10**12, "less than or equal to 512"),
        ("channels", 0, "greater than or equal to 1"),
    ],
)
def test_sizes_that_no_machine_holds_are_refused_before_anything_is_built(option, value, told):
    with pytest.raises(ValueError, match=told):
        Network.parse({"kind": "unet", option: value})


def test_a_network_without_levels_is_refused():
    with pytest.raises(ValueError, match="multipliers is empty"):
        UNet(multipliers=()).build(SPACE)


def test_unknown_inputs_are_refused():
    with pytest.raises(ValueError, match="no input colour, shape; known"):
        SMALL.build(labelled((3, 8, 8))).with_inputs({"colour", "s", "shape"})


# Derivatives


def test_forward_mode_derivatives_are_the_numerical_ones():
    """Continuous-time methods need the derivative along (x, t, s), in one forward pass."""
    network = built().with_inputs({"s"}).double()
    redrawn(network.extra_embed["s"])
    x, t, cond = inputs(2, dtype=torch.float64)
    t = torch.tensor([0.3, 2.0], dtype=torch.float64)
    s = t / 2
    direction = (
        torch.randn_like(x),
        torch.tensor([0.7, -0.4], dtype=torch.float64) * t,
        torch.randn_like(s) * s,
    )

    def f(x, t, s):
        return network(x, t, cond, s)

    # 250 ln t turns fast: a small step, and the error of central differences falls with its square.
    def numerical(h):
        forward, backward = (
            f(*(p + sign * h * d for p, d in zip((x, t, s), direction))) for sign in (1, -1)
        )
        return (forward - backward) / (2 * h)

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        value, tangent = torch.func.jvp(f, (x, t, s), direction)
        torch.testing.assert_close(value, f(x, t, s), rtol=1e-12, atol=1e-12)
        richardson = (4 * numerical(2e-6) - numerical(4e-6)) / 3
    assert tangent.abs().max() > 1
    torch.testing.assert_close(
        tangent, richardson, rtol=1e-6, atol=1e-6 * tangent.abs().max().item()
    )


def test_derivatives_reach_every_parameter():
    network, (x, t, cond) = built(space=labelled((3, 8, 8), 3)), inputs(classes=3)
    network(x, t, cond).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


# diffusers

# The spec's changes and the number of classes.
LAYOUTS = {
    "no_attention_level": ({"attention": ()}, 4),
    "attention_on_top": ({"attention": (1,), "head_channels": 4}, 0),
    "attention_below": ({"multipliers": (1, 3), "blocks": 2}, 4),
    "attention_everywhere": ({"multipliers": (1, 2, 3), "attention": (1, 2, 4)}, 3),
    "attention_in_the_middle_level": (
        {"multipliers": (1, 2, 1), "head_channels": 4, "groups": 4},
        0,
    ),
    "one_level": ({"multipliers": (1,), "blocks": 2, "attention": (1,), "groups": 4}, 2),
    "one_level_without_attention": ({"multipliers": (1,), "attention": (), "groups": 1}, 0),
}
CASES = [
    (layout, null) for layout, (_, classes) in LAYOUTS.items() for null in {False, bool(classes)}
]


@pytest.mark.parametrize(("layout", "null"), sorted(CASES))
def test_diffusers_computes_the_same(layout, null):
    diffusers = pytest.importorskip("diffusers")
    (changes, classes), shape = LAYOUTS[layout], (2, 8, 8)
    network = built(replaced(SMALL, **changes), labelled(shape, classes, null))
    theirs = diffusers.UNet2DModel(**unet_config(network))
    theirs.load_state_dict(unet_weights(network), strict=True)
    x, _, cond = inputs(4, shape, classes)
    # Theirs computes sinusoids in float32, which costs digits where 250 ln t is large: near 1
    # nothing is lost.
    t = torch.exp(torch.tensor([-3.0, -0.5, 0.0, 2.0], dtype=torch.float64) / 250)
    with torch.no_grad():
        ours = network(x, t, cond)
        other = theirs.eval()(x, 250 * torch.log(t), cond.values.get("label")).sample
    assert ours.std() > 0.1  # the weights do something
    assert (ours - other).abs().max() < 1e-5 * max(1.0, ours.abs().max().item())
