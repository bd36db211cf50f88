"""The Diffusion Transformer: published sizes, adaLN-zero, patches, derivatives, and equality with
diffusers' DiT.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.choice import replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm
from fewstep.diffusion.process import VarianceExploding
from fewstep.models.adapters import FullCopy
from fewstep.models.dit import Dit, patchify, position_embedding, unpatchify
from fewstep.models.folder import load_folder
from fewstep.models.network import Network, sinusoid
from fewstep.models.source import Fresh
from fewstep.models.space import image_space, labelled

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:DeprecationWarning"
)  # of torch itself

SMALL = Dit(width=12, depth=2, heads=3, patch=2, mlp_ratio=2)
SPACE = labelled((3, 8, 8), 5)


def redrawn(network):
    """A fresh network outputs zeros; these weights use every layer."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return network


def built(spec=SMALL, space=SPACE):
    network = redrawn(spec.build(space))
    assert sum(p.numel() for p in network.parameters()) < 50_000
    return network.eval()


def inputs(n=3, shape=(3, 8, 8), classes=5, dtype=torch.float32):
    x, t = torch.randn(n, *shape, dtype=dtype), torch.linspace(0.01, 5, n, dtype=torch.float64)
    return x, t, Cond({"label": torch.arange(n) % classes} if classes else {})


# Size


@pytest.mark.parametrize(
    ("width", "depth", "heads", "patch", "millions"),
    [(384, 12, 6, 2, 33), (768, 12, 12, 4, 130), (1024, 24, 16, 2, 458), (1152, 28, 16, 2, 675)],
    ids=["S/2", "B/4", "L/2", "XL/2"],
)
def test_published_parameter_counts(width, depth, heads, patch, millions):
    """arXiv:2212.09748, table 4: latents of 4×32×32, 1000 classes and null, 8 channels out,
    positions counted.
    """
    time, label = 256 * width + width + width * width + width, 1001 * width
    patches = 4 * patch**2 * width + width
    block = (6 + 3 + 1 + 4 + 4) * width**2 + (6 + 3 + 1 + 4 + 1) * width
    last = 2 * width**2 + 2 * width
    positions, per_output = (32 // patch) ** 2 * width, patch**2 * (width + 1)
    ours = time + label + patches + depth * block + last + 4 * per_output
    published = ours + positions + 4 * per_output
    assert round(published / 1e6) == millions
    if millions == 675:
        assert published == 675_129_632
    with torch.device("meta"):
        network = Dit(width, depth, heads, patch).build(labelled((4, 32, 32), 1000, null=True))
    assert sum(p.numel() for p in network.parameters()) == ours


@pytest.mark.parametrize(("patch", "side", "fits"), [(2, 7, 1), (4, 6, 2), (8, 12, 4)])
def test_sides_that_do_not_divide_are_refused(patch, side, fits):
    spec = replaced(SMALL, patch=patch)
    with pytest.raises(
        ValueError, match=f"divide by {patch}, got shape \\(3, 8, {side}\\); patch={fits} fits"
    ):
        spec.build(labelled((3, 8, side)))
    replaced(spec, patch=fits).build(labelled((3, 8, side)))


@pytest.mark.parametrize("shape", [(3,), (8, 8), (1, 3, 8, 8)])
def test_other_shapes_than_images_are_refused(shape):
    with pytest.raises(ValueError, match="needs images"):
        SMALL.build(labelled(shape))


@pytest.mark.parametrize(
    ("width", "heads", "fits"), [(12, 5, 20), (10, 1, 12), (6, 3, 12), (16, 6, 24)]
)
def test_widths_that_do_not_divide_are_refused(width, heads, fits):
    spec = replaced(SMALL, width=width, heads=heads)
    with pytest.raises(ValueError, match=f"heads={heads} .* got width={width}; width={fits} fits"):
        spec.build(SPACE)
    replaced(spec, width=fits).build(SPACE)


def test_the_options_are_read_back():
    assert Network.parse(SMALL.dump()) == SMALL
    assert Network.kinds()["dit"] is Dit
    assert SMALL.build(SPACE).spec == SMALL


# Patches and positions


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 16), (2, 24, 8)])
def test_any_patch_serves_any_channels_and_sides(patch, shape):
    network = built(replaced(SMALL, patch=patch), labelled(shape))
    x, t, cond = inputs(shape=shape)
    y = network(x, t, cond)
    assert y.shape == x.shape
    assert y.std() > 0.1
    # Rows do not see each other.
    torch.testing.assert_close(
        network(x[1:2], t[1:2], cond.select(1, 2)), y[1:2], rtol=1e-4, atol=1e-5
    )
    tokens = patchify(x, patch)
    assert tokens.shape == (3, shape[1] * shape[2] // patch**2, shape[0] * patch**2)
    assert torch.equal(unpatchify(tokens, shape[1] // patch, shape[2] // patch, patch), x)


def test_a_token_is_a_square_of_the_image_and_tokens_go_row_by_row():
    x = torch.randn(2, 3, 4, 6)
    tokens = patchify(x, 2)
    for row in range(2):
        for column in range(3):
            square = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(tokens[:, 3 * row + column], square.flatten(1))


def test_a_position_is_the_sinusoid_of_its_row_and_column():
    positions = position_embedding(3, 5, 16)
    assert positions.shape == (15, 16)
    assert len(positions.unique(dim=0)) == 15
    row, column = (sinusoid(torch.tensor([value]), 8)[0] for value in (2.0, 3.0))
    assert torch.equal(positions[2 * 5 + 3], torch.cat([row, column]))


def test_only_the_positions_tell_tokens_apart():
    network, (x, t, cond) = built(), inputs()
    moved = x.roll((2, 4), (2, 3))
    assert not torch.allclose(
        network(moved, t, cond), network(x, t, cond).roll((2, 4), (2, 3)), atol=1e-2
    )
    network.positions.zero_()
    torch.testing.assert_close(
        network(moved, t, cond), network(x, t, cond).roll((2, 4), (2, 3)), rtol=1e-4, atol=1e-5
    )


# adaLN-zero


def test_a_fresh_network_answers_zero_and_its_blocks_are_the_identity():
    network = SMALL.build(SPACE)
    assert not network(*inputs()).any()
    tokens, embedding = torch.randn(3, 16, 12), torch.randn(3, 12)
    for block in network.blocks:
        assert torch.equal(block(tokens, embedding), tokens)


def test_every_zero_layer_gets_a_gradient_as_soon_as_the_ones_behind_it_are_not_zero():
    network, (x, t, cond) = SMALL.build(SPACE), inputs()
    torch.nn.init.normal_(network.out.weight)
    network(x, t, cond).square().mean().backward()
    for layer in (network.modulation[1], *(block.modulation[1] for block in network.blocks)):
        assert layer.weight.grad.abs().max() > 0


def test_derivatives_reach_every_parameter():
    network, (x, t, cond) = built(space=labelled((3, 8, 8), 3)), inputs(classes=3)
    network(x, t, cond).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize("kind", ["log_sigma", "identity", "thousand"])
def test_the_time_reaches_the_output(kind):
    network, (x, _, cond) = built(replaced(SMALL, time_input=kind)), inputs(1)
    low, high = (network(x, torch.tensor([t]), cond) for t in (0.3, 0.4))
    assert (low - high).abs().max() > 1e-3


@pytest.mark.parametrize("null", [False, True])
def test_every_label_has_a_row_of_its_own(null):
    space = labelled((3, 8, 8), 5, null)
    network, (x, t, _) = built(space=space), inputs(6)
    cond = Cond({"label": torch.tensor([0, 4, 2, 2, 1, 5 if null else 3])})
    assert network.label_emb.weight.shape == (5 + null, 12)
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


def test_dropout_acts_in_training_alone():
    network, (x, t, cond) = built(replaced(SMALL, dropout=0.5)), inputs()
    quiet = network(x, t, cond)
    assert torch.equal(network(x, t, cond), quiet)
    network.train()
    assert not torch.allclose(network(x, t, cond), quiet)
    clone = (
        FullCopy()
        .clones(Denoiser(network, VarianceExploding(), Edm()), dropout=0.0)("student")
        .network
    )
    assert torch.equal(clone.train()(x, t, cond), quiet)


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
    answer().square().mean().backward()
    for name in names:
        assert wider.extra_embed[name].linear.weight.grad.abs().max() > 0
        redrawn(wider.extra_embed[name])
    assert torch.allclose(answer(5.0, 0.5), answer(), atol=1e-5) == ("guidance" not in names)
    assert torch.allclose(answer(2.0, 0.1), answer(), atol=1e-5) == ("s" not in names)
    # Built from its options, it takes those weights; without a target time, t is one.
    other = wider.spec.build(wider.space).eval()
    other.load_state_dict(wider.state_dict())
    told = cond.with_values(guidance=torch.ones(3))
    assert torch.equal(other(x, t, told), wider(x, t, told, t))


@pytest.mark.parametrize("option", ["width", "depth", "heads", "patch", "mlp_ratio"])
@pytest.mark.parametrize("value", [0, 10**6, 10**20])
def test_sizes_that_no_machine_holds_are_refused_before_anything_is_built(option, value):
    with pytest.raises(ValueError, match="than or equal to"):
        Network.parse({"kind": "dit", option: value})


def test_unknown_inputs_are_refused():
    with pytest.raises(ValueError, match="a dit has no input colour, shape; known"):
        SMALL.build(SPACE).with_inputs({"colour", "s", "shape"})
    with pytest.raises(ValueError, match="a dit has no input colour; known"):
        replaced(SMALL, extra=("colour",)).build(SPACE)


# Arithmetic


def test_forward_mode_derivatives_are_the_numerical_ones():
    """Continuous-time methods need the derivative along (x, t, s), in one forward pass."""
    network = redrawn(built().with_inputs({"s"}).double())
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


def test_bfloat16_follows_float32():
    network, (x, t, cond) = built(), inputs(16)
    exact = network(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, t, cond)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


def test_a_layer_can_be_tapped_by_name():
    denoiser = Denoiser(built(), VarianceExploding(), Edm())
    x, t, cond = inputs()
    nothing, taps = denoiser.features(x, t, cond, ("blocks.1", "blocks.0"))
    assert nothing is None
    assert [taps[name].shape for name in ("blocks.0", "blocks.1")] == [(3, 16, 12)] * 2
    assert not torch.equal(taps["blocks.0"], taps["blocks.1"])


def test_a_saved_model_is_the_same_when_loaded(tmp_path):
    model = Fresh(network=SMALL).load(image_space((1, 8, 4), 10), seed=0)
    redrawn(model.denoiser.network)
    model.save(tmp_path / "model")
    again = load_folder(tmp_path / "model")
    mine, other = model.denoiser.network.state_dict(), again.denoiser.network.state_dict()
    assert "positions" not in mine
    assert list(mine) == list(other)
    assert all(torch.equal(mine[key], other[key]) for key in mine)
    assert torch.equal(again.generate(num=3, steps=2), model.generate(num=3, steps=2))


# diffusers


def renamed(network):
    """The weights under the names of diffusers' DiTTransformer2DModel, which embeds time and label
    in every block.
    """
    ours, width, patch = network.state_dict(), network.spec.width, network.spec.patch

    def layer(to, of):
        return {f"{to}.{part}": ours[f"{of}.{part}"] for part in ("weight", "bias")}

    theirs = layer("pos_embed.proj", "patch_embed") | layer("proj_out_1", "modulation.1")
    theirs["pos_embed.proj.weight"] = theirs["pos_embed.proj.weight"].view(width, -1, patch, patch)
    for i in range(network.spec.depth):
        to, of = f"transformer_blocks.{i}", f"blocks.{i}"
        theirs |= layer(f"{to}.norm1.linear", f"{of}.modulation.1")
        theirs |= layer(f"{to}.norm1.emb.timestep_embedder.linear_1", "time_embed.0")
        theirs |= layer(f"{to}.norm1.emb.timestep_embedder.linear_2", "time_embed.2")
        theirs[f"{to}.norm1.emb.class_embedder.embedding_table.weight"] = ours["label_emb.weight"]
        for part in ("weight", "bias"):
            for name, value in zip("qkv", ours[f"{of}.attention.qkv.{part}"].chunk(3)):
                theirs[f"{to}.attn1.to_{name}.{part}"] = value
        theirs |= layer(f"{to}.attn1.to_out.0", f"{of}.attention.proj")
        theirs |= layer(f"{to}.ff.net.0.proj", f"{of}.mlp.0") | layer(
            f"{to}.ff.net.2", f"{of}.mlp.2"
        )
    for part, value in layer("", "out").items():  # their channel comes last, ours first
        theirs[f"proj_out_2{part}"] = (
            value.unflatten(0, (-1, patch, patch)).movedim(0, 2).flatten(0, 2)
        )
    return theirs


def test_diffusers_computes_the_same():
    diffusers = pytest.importorskip("diffusers")
    spec = Dit(width=24, depth=2, heads=3, patch=2, time_input="identity")
    network = built(spec, labelled((3, 8, 8), 5, null=True))
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=3,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
        norm_num_groups=3,
    ).eval()
    theirs.load_state_dict(renamed(network), strict=True)
    for (
        block
    ) in theirs.transformer_blocks:  # the published network's spacing of frequencies, which is ours
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    # Their positions: column before row, sines before cosines.
    quarters = network.positions.chunk(4, dim=1)
    torch.testing.assert_close(
        theirs.pos_embed.pos_embed[0], torch.cat(quarters[::-1], dim=1), rtol=1e-5, atol=1e-6
    )
    theirs.pos_embed.pos_embed.copy_(network.positions)
    x, t, _ = inputs(6)
    labels = torch.arange(6)  # 5 is null
    with torch.no_grad():
        ours, other = network(x, t, Cond({"label": labels})), theirs(x, t.float(), labels).sample
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4 * ours.abs().max().item())
