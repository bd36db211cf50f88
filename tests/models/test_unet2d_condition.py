"""diffusers' conditional U-Net in our call: the same numbers, and inputs that begin at nothing."""

import copy

import pytest
import torch
from tests.tiny_diffusion import TINY_UNET

from fewstep.choice import replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Epsilon
from fewstep.diffusion.process import VariancePreservingTable
from fewstep.learning.tangent import Difference, Forward, Point
from fewstep.models.network import Network
from fewstep.models.size import shapes_of
from fewstep.models.space import Space, Vectors, labelled
from fewstep.models.unet2d_condition import UNet2dCondition, guidance_features

pytest.importorskip("diffusers")

CONFIG = TINY_UNET.config
SPACE = Space((4, 8, 8), {"text": Vectors((5, 6))})
T = torch.tensor([0.0, 0.5, 999.0], dtype=torch.float64)


def built(extra=(), **config):
    return UNet2dCondition(config=CONFIG | config, extra=extra).build(SPACE)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return built()


@pytest.fixture
def asked():
    """x and the condition."""
    return torch.randn(3, 4, 8, 8), Cond({"text": torch.randn(3, 5, 6)})


def stirred(module):
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return module


class TestItIsTheirs:
    def test_the_output_to_the_bit(self, network, asked):
        x, cond = asked
        theirs = network.module(x, T, cond["text"]).sample
        assert torch.equal(network(x, T, cond), theirs)

    def test_each_row_for_itself(self, network, asked):
        x, cond = asked
        whole = network(x, T, cond)
        for i in range(3):
            alone = network(x[i : i + 1], T[i : i + 1], cond.select(i, i + 1))
            torch.testing.assert_close(alone[0], whole[i])

    def test_a_learned_variance_is_left_out(self, asked):
        x, cond = asked
        wide = built(out_channels=8)
        theirs = wide.module(x, T, cond["text"]).sample
        assert theirs.shape[1] == 8
        assert torch.equal(wide(x, T, cond), theirs[:, :4])

    def test_names_of_weights_are_theirs(self, network):
        assert {f"module.{name}" for name in network.module.state_dict()} == set(
            network.state_dict()
        )

    def test_weights_of_half_the_digits_take_samples_of_all(self, network, asked):
        x, cond = asked
        half = copy.deepcopy(network).to(torch.bfloat16)
        f = half(x, T, cond)
        assert f.dtype is torch.bfloat16
        torch.testing.assert_close(f.float(), network(x, T, cond), atol=0.05, rtol=0.05)

    def test_what_a_discriminator_reads(self, network, asked):
        x, cond = asked
        for module in (network, built(mid_block_type=None)):
            [(name, channels)] = module.taps.items()
            seen = []
            part = module.get_submodule(name)
            handle = part.register_forward_hook(lambda *a, seen=seen: seen.append(a[2]))
            module(x, T, cond)
            handle.remove()
            assert seen[0].shape == (3, channels, 4, 4)

    def test_recomputing_gives_the_same_gradients_beside_frozen_parts(self, network, asked):
        x, cond = asked
        found = []
        for on in (False, True):
            module = copy.deepcopy(network).requires_grad_(False)
            module.checkpointing = on
            assert module.checkpointing is on
            trained = module.module.up_blocks.requires_grad_(True)
            module(x, T, cond).square().mean().backward()
            found.append([p.grad for p in trained.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert all(grad.abs().max() > 0 for grad in found[0])


class TestMoreInputs:
    @pytest.mark.parametrize("name", ["guidance", "s"])
    def test_nothing_changes_until_they_are_trained(self, network, asked, name):
        x, cond = asked
        told = cond.with_values(guidance=torch.tensor([1.0, 3.0, 7.5]))
        s = T / 2
        wider = network.with_inputs({name})
        assert wider.inputs == ("text", name)
        assert network.inputs == ("text",)
        assert torch.equal(wider(x, T, told, s), network(x, T, cond))
        stirred(wider)
        one, other = wider(x, T, told, s), wider(x, T, cond, s * 0)
        assert (one - other).abs().amax((1, 2, 3))[1:].min() > 1e-4

    def test_what_is_not_said_is_none(self, network, asked):
        x, cond = asked
        wider = stirred(network.with_inputs({"guidance", "s"}))
        none = cond.with_values(guidance=torch.ones(3))
        assert torch.equal(wider(x, T, cond), wider(x, T, none, T))

    def test_the_guidance_goes_in_as_released_models_have_it(self, network, asked):
        from diffusers import LatentConsistencyModelPipeline

        x, cond = asked
        wider = stirred(network.with_inputs({"guidance"}))
        g = torch.tensor([1.0, 4.0, 8.5], dtype=torch.float64)
        features = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        condition = features(None, (g - 1).float(), embedding_dim=256)
        assert torch.equal(guidance_features(g, 256), condition)
        theirs = wider.module(x, T, cond["text"], timestep_cond=condition).sample
        assert torch.equal(wider(x, T, cond.with_values(guidance=g)), theirs)

    def test_a_student_is_a_unet_of_diffusers(self, network, asked, tmp_path):
        from diffusers import UNet2DConditionModel

        x, cond = asked
        wider = stirred(network.with_inputs({"guidance", "s"}))
        wider.module.save_pretrained(tmp_path)
        theirs = UNet2DConditionModel.from_pretrained(tmp_path)
        w = guidance_features(torch.tensor([1.0, 4.0, 8.0]), 256)
        told = cond.with_values(guidance=torch.tensor([1.0, 4.0, 8.0]))
        f = theirs(x, T, cond["text"], class_labels=T / 2, timestep_cond=w).sample
        assert torch.equal(wider(x, T, told, T / 2), f)
        again = UNet2DConditionModel.from_config(dict(wider.module.config))
        assert again.state_dict().keys() == theirs.state_dict().keys()

    def test_a_file_says_them(self, network):
        wider = stirred(network.with_inputs({"guidance", "s"}))
        again = Network.parse(wider.spec.dump()).build(SPACE)
        again.load_state_dict(wider.state_dict())
        assert again.inputs == ("text", "guidance", "s")
        assert again.spec == wider.spec
        assert shapes_of(lambda: wider.spec.build(SPACE)) == {
            name: list(tensor.shape) for name, tensor in wider.state_dict().items()
        }

    def test_one_that_reads_the_guidance_keeps_its_weights(self, asked):
        x, cond = asked
        trained = stirred(built(time_cond_proj_dim=12))
        assert trained.inputs == ("text", "guidance")
        told = cond.with_values(guidance=torch.full((3,), 5.0))
        assert torch.equal(trained.with_inputs({"guidance"})(x, T, told), trained(x, T, told))

    def test_others_are_refused(self, network):
        with pytest.raises(ValueError, match="no input label"):
            network.with_inputs({"label"})


@pytest.mark.parametrize(
    ("config", "space", "says"),
    [
        ({"layers_per_blok": 1}, SPACE, "'layers_per_blok'; did you mean layers_per_block"),
        ({"in_channels": 9}, SPACE, "of 9, a sample has 4"),
        ({"out_channels": 3}, SPACE, "makes 3 channels"),
        ({"cross_attention_dim": 768}, SPACE, "width 768, the encoder's is 6"),
        ({"addition_embed_type": "text_time"}, SPACE, "more than a text: addition_embed_type"),
        ({"class_embed_type": "projection"}, SPACE, "reads classes"),
        ({"norm_num_groups": 3}, SPACE, "diffusers.UNet2DConditionModel: num_channels"),
        ({"up_block_types": ["UpBlock2D"]}, SPACE, "same number"),
        ({}, labelled((4, 8, 8), 10), r"not label \(10 classes\)"),
        ({}, Space((16,), SPACE.columns), r"needs images, got the shape \(16,\)"),
    ],
)
def test_what_cannot_be_is_one_line(config, space, says):
    spec = replaced(UNet2dCondition(), config=CONFIG | config)
    with pytest.raises(ValueError, match=says) as caught:
        spec.build(space)
    assert "\n" not in str(caught.value)


def test_its_forward_derivative_is_the_limit_of_differences(asked):
    """With cross-attention before a residual block, whose tangents lie otherwise than its
    numbers.
    """
    torch.manual_seed(0)
    x, cond = asked
    blocks = {
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    }
    network = stirred(built(**blocks)).double().eval()
    denoiser = Denoiser(network, VariancePreservingTable(), Epsilon())
    at = Point(x, torch.tensor([100.0, 400.0, 900.0]))
    rate = Point(torch.randn(x.shape), torch.tensor([20.0, -50.0, 30.0]))
    value, exact = Forward()(denoiser, at, rate, cond)
    other, close = Difference(step=1e-5)(denoiser, at, rate, cond)
    torch.testing.assert_close(value, other)
    torch.testing.assert_close(close, exact, rtol=1e-2, atol=1e-3 * exact.abs().max().item())
    assert not any(part._forward_pre_hooks for part in network.modules())
