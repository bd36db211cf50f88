"""LoRA files of others: what diffusers makes of them, ours makes, too."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.made import made
from tests.tiny_diffusion import DATA, PROMPTS, tiny_pipeline

from fewstep.models.folder import load
from fewstep.models.lora_files import merge
from fewstep.models.source import ModelSource, Saved

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Already found a"
)

CROSS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
UNET = (f"{CROSS}.to_q", f"{CROSS}.to_out.0", "mid_block.resnets.0.conv1", "conv_in")
UNET += ("down_blocks.0.attentions.0.proj_in", "up_blocks.1.resnets.0.time_emb_proj")
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
RANK, ALPHA = 3, 6.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / "sd"
    tiny_pipeline().save_pretrained(path)
    return path


def factors(layer, seed):
    """Random down and up of a layer, so large that images change."""
    generator = torch.Generator().manual_seed(seed)
    out, into, *kernel = layer.weight.shape
    down = torch.randn(RANK, into, *kernel, generator=generator) / 3
    up = torch.randn(out, RANK, *(1 for _ in kernel), generator=generator) / 3
    return down, up


def random_lora(pipeline, seed=0, text=True):
    """(part, path, down, up) of some layers of each kind."""
    found = []
    for name in UNET:
        found.append(("unet", name, *factors(pipeline.unet.get_submodule(name), seed)))
    for name in TEXT if text else ():
        layer = pipeline.text_encoder.get_submodule(name)
        found.append(("te", name, *factors(layer, seed)))
    return found


def kohya(path, lora, alpha=ALPHA):
    tensors = {}
    for part, name, down, up in lora:
        name = name.replace(".", "_")
        key = f"lora_unet_{name}" if part == "unet" else f"lora_te_text_model_{name}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return str(path)


def diffusers_own(path, lora, names=("lora_A", "lora_B"), metadata=None):
    tensors = {}
    for part, name, down, up in lora:
        key = f"unet.{name}" if part == "unet" else f"text_encoder.text_model.{name}"
        tensors[f"{key}.{names[0]}.weight"], tensors[f"{key}.{names[1]}.weight"] = down, up
    told = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file(tensors, path, told)
    return str(path)


def latents(pipeline, noise):
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    return pipeline(PROMPTS, latents=noise, **options).images


def same_as(folder, model, load_into):
    """Whether the model is the stock pipeline with these files, by latents of that pipeline around
    its modules; and that both differ from the base.
    """
    noise = torch.randn(2, 4, 4, 4)
    stock = tiny_pipeline()
    base = latents(stock, noise)
    load_into(stock)
    wanted = latents(stock, noise)
    assert (wanted - base).abs().max() > 0.05
    ours = tiny_pipeline()
    ours.unet.load_state_dict(model.denoiser.network.module.state_dict())
    ours.text_encoder.load_state_dict(model.conditioner.module.state_dict())
    torch.testing.assert_close(latents(ours, noise), wanted, rtol=1e-4, atol=1e-4)


class TestTheyAreMergedAsDiffusersLoadsThem:
    def test_kohyas(self, folder, tmp_path):
        """Attention, convolutions of 3×3 and 1×1, linear layers; alpha counts. Of the text encoder
        this diffusers loads nothing by kohya's names: below it is compared by its own.
        """
        file = kohya(tmp_path / "style.safetensors", random_lora(tiny_pipeline(), text=False))
        model = Saved(str(folder), lora=(file,)).load(DATA, 0)
        same_as(folder, model, lambda stock: stock.load_lora_weights(file))
        assert model.card["lora"] == "style.safetensors at 1"

    def test_diffusers_own_with_the_options_of_peft(self, folder, tmp_path):
        lora = random_lora(tiny_pipeline())
        told = {
            f"{part}.{key}": value
            for part in ("unet", "text_encoder")
            for key, value in (("r", RANK), ("lora_alpha", 6), ("target_modules", ["to_q"]))
        }
        told["unet.alpha_pattern"] = {"conv_in": 1.5}
        file = diffusers_own(tmp_path / "a.safetensors", lora, metadata=told)
        model = Saved(str(folder), lora=(file,)).load(DATA, 0)
        by_kohya = load(folder)
        halved = [one if one[1] != "conv_in" else (*one[:3], one[3] / 4) for one in lora]
        merge(by_kohya, [kohya(tmp_path / "k.safetensors", halved)], [1.0])
        for part in ("denoiser", "conditioner"):
            before, after = (getattr(m, part).state_dict() for m in (by_kohya, model))
            for key, tensor in before.items():
                torch.testing.assert_close(after[key], tensor)
        for name in TEXT:
            mine, base = (m.conditioner.module.get_submodule(name) for m in (model, load(folder)))
            assert (mine.weight - base.weight).abs().max() > 0.1

    def test_without_an_alpha_it_is_the_rank(self, folder, tmp_path):
        lora = random_lora(tiny_pipeline())
        file = diffusers_own(tmp_path / "a.safetensors", lora)
        model = Saved(str(folder), lora=(file,)).load(DATA, 0)
        same_as(folder, model, lambda stock: stock.load_lora_weights(file))

    @pytest.mark.parametrize(
        "names", [("lora.down", "lora.up"), ("lora_A.default", "lora_B.default")]
    )
    def test_other_spellings(self, folder, tmp_path, names):
        lora = random_lora(tiny_pipeline(), text=False)
        one, other = load(folder), load(folder)
        merge(one, [diffusers_own(tmp_path / "a.safetensors", lora)], [1.0])
        merge(other, [diffusers_own(tmp_path / "b.safetensors", lora, names)], [1.0])
        for key, tensor in one.denoiser.state_dict().items():
            assert torch.equal(other.denoiser.state_dict()[key], tensor)

    def test_older_attention_processors(self, folder, tmp_path):
        lora = [one for one in random_lora(tiny_pipeline(), text=False) if "attn2" in one[1]]
        tensors = {}
        for _, name, down, up in lora:
            key = f"unet.{name.removesuffix('.0')}".replace(".to_", ".processor.to_")
            tensors[f"{key}_lora.down.weight"], tensors[f"{key}_lora.up.weight"] = down, up
        save_file(tensors, tmp_path / "old.safetensors")
        one, other = load(folder), load(folder)
        merge(one, [str(tmp_path / "old.safetensors")], [1.0])
        merge(other, [diffusers_own(tmp_path / "new.safetensors", lora)], [1.0])
        for key, tensor in one.denoiser.state_dict().items():
            assert torch.equal(other.denoiser.state_dict()[key], tensor)

    @torch.no_grad()
    def test_an_adapter_of_peft(self, folder, tmp_path):
        """Its alpha stands in a file beside it."""
        import peft

        config = peft.LoraConfig(
            r=4, lora_alpha=12, target_modules=["to_q", "conv1"], init_lora_weights=False
        )
        stock = tiny_pipeline()
        adapted = peft.get_peft_model(stock.unet, config)
        adapted.save_pretrained(tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        model = Saved(str(folder), lora=(str(file),)).load(DATA, 0)
        x, t, text = torch.randn(1, 4, 4, 4), torch.tensor([500.0]), torch.randn(1, 77, 16)
        f = adapted(x, t, text).sample
        torch.testing.assert_close(model.denoiser.network.module(x, t, text).sample, f)

    def test_several_with_strengths(self, folder, tmp_path):
        files = []
        for seed in (1, 2):
            lora = random_lora(tiny_pipeline(), seed, text=False)
            files.append(kohya(tmp_path / f"{seed}.safetensors", lora))
        model = Saved(str(folder), lora=tuple(files), lora_strengths=(0.5, -1.25)).load(DATA, 0)

        def both(stock):
            for name, file in zip("ab", files, strict=True):
                stock.load_lora_weights(file, adapter_name=name)
            stock.set_adapters(["a", "b"], [0.5, -1.25])

        same_as(folder, model, both)
        assert model.card["lora"] == "1.safetensors at 0.5, 2.safetensors at -1.25"


class TestWhatIsNoneOfThem:
    def refused(self, folder, tmp_path, tensors, says):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=says) as caught:
            merge(load(folder), [str(tmp_path / "x.safetensors")], [1.0])
        assert "\n" not in str(caught.value)

    def test_of_another_base(self, folder, tmp_path):
        key = "lora_unet_down_blocks_3_resnets_0_conv1"
        pair = {f"{key}.lora_down.weight": torch.zeros(2, 4), f"{key}.lora_up.weight": torch.eye(2)}
        self.refused(folder, tmp_path, pair, "another base: this one has no unet down_blocks_3")
        key = "unet.conv_in"
        pair = {f"{key}.lora_A.weight": torch.zeros(2, 9), f"{key}.lora_B.weight": torch.eye(2)}
        self.refused(folder, tmp_path, pair, r"conv_in is \(8, 4, 3, 3\) here")

    def test_of_another_kind(self, folder, tmp_path):
        tensors = {"lora_unet_conv_in.hada_w1_a": torch.zeros(1)}
        self.refused(folder, tmp_path, tensors, "no LoRA that is known: it has lora_unet_conv_in")

    def test_half_of_one(self, folder, tmp_path):
        tensors = {"unet.conv_in.lora_A.weight": torch.zeros(1, 4, 3, 3)}
        self.refused(folder, tmp_path, tensors, "is not whole: of unet conv_in it has down")

    def test_numbers_that_are_none(self, folder, tmp_path):
        pair = {"lora_A": torch.full((1, 4, 3, 3), torch.nan), "lora_B": torch.ones(8, 1, 1, 1)}
        tensors = {f"unet.conv_in.{name}.weight": one for name, one in pair.items()}
        self.refused(folder, tmp_path, tensors, "unet conv_in has numbers that are not finite")

    def test_no_file(self, folder, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file"):
            merge(load(folder), [str(tmp_path / "gone.safetensors")], [1.0])

    def test_for_another_kind_of_model(self, tmp_path):
        with pytest.raises(ValueError, match="Stable Diffusion alone"):
            merge(made(), ["a"], [1.0])

    def test_a_few_step_lora_is_recognised(self, folder, tmp_path):
        file = kohya(tmp_path / "lcm-lora.safetensors", random_lora(tiny_pipeline()))
        model = Saved(str(folder), lora=(file,)).load(DATA, 0)
        assert model.distilled == "its LoRA's name says lcm"

    def test_a_few_step_lora_of_ours_says_so_itself(self, folder, tmp_path):
        lora = diffusers_own(tmp_path / "a.safetensors", random_lora(tiny_pipeline()))
        save_file(load_file(lora), tmp_path / "b.safetensors", {"fewstep.steps": "4"})
        model = load(folder)
        merge(model, [str(tmp_path / "b.safetensors")], [1.0])
        assert model.distilled == "its LoRA says 4 steps"


def test_how_it_is_said():
    parse = ModelSource.parse
    assert parse({"path": "sd", "lora": "a.safetensors"}).lora == ("a.safetensors",)
    several = parse({"path": "sd", "lora": ["a", "b"], "lora_strengths": [1, 0.5]})
    assert several == Saved("sd", lora=("a", "b"), lora_strengths=(1.0, 0.5))
    assert parse(several.dump()) == several
    with pytest.raises(ValueError, match="one for each file of lora, got 1 for 2 files"):
        parse({"path": "sd", "lora": ["a", "b"], "lora_strengths": 0.5})
    with pytest.raises(ValueError, match="of which there are none"):
        Saved("sd", lora_strengths=(1.0,)).load(DATA, 0)
