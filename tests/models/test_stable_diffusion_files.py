"""What lies where a pipeline is expected: whole, in one file, or not whole."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.first_layout import first_layout
from tests.tiny_diffusion import PROMPTS, tiny_pipeline

from fewstep.files import save_tensors
from fewstep.models.families import recognised
from fewstep.models.folder import load

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / "sd"
    tiny_pipeline().save_pretrained(path)
    return path


class TestWhatIsNotWhole:
    @pytest.mark.parametrize(
        ("gone", "says"),
        [
            ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
            ("vae/config.json", "config.json"),
            ("text_encoder/model.safetensors", "model.safetensors"),
            ("scheduler/scheduler_config.json", "scheduler"),
            ("tokenizer", "it has no tokenizer"),
            ("vae", "it has no vae"),
            ("scheduler", "it has no scheduler"),
        ],
    )
    def test_one_line_says_what_is_missing(self, folder, tmp_path, gone, says):
        shutil.copytree(folder, tmp_path / "part")
        path = tmp_path / "part" / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ValueError, match=says) as caught:
            load(tmp_path / "part")
        told = str(caught.value)
        assert told.startswith(f"{tmp_path / 'part'} cannot be read: ")
        assert "\n" not in told

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
    def test_weights_that_are_missing_or_too_many(self, folder, tmp_path, part):
        """Nothing is made new in their place, or passed over."""
        shutil.copytree(folder, tmp_path / "part")
        [file] = (tmp_path / "part" / part).glob("*.safetensors")
        plain = load_file(file)
        first, second, *_ = sorted(plain)
        one = {key: weight for key, weight in plain.items() if key != first}
        two = {key: weight for key, weight in one.items() if key != second}
        for weights, says in (
            (one, f"its {part} lacks the weights {first}"),
            (two, f"its {part} lacks the weights {first} and 1 more"),
            ({**plain, "odd.weight": plain[first].clone()}, "has no place for the weights odd"),
        ):
            save_file(weights, file, {"format": "pt"})
            with pytest.raises(ValueError, match=says):
                load(tmp_path / "part")
        save_file(plain, file, {"format": "pt"})
        assert load(tmp_path / "part").shape == (4, 4, 4)

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
    def test_a_file_that_is_cut_is_named(self, folder, tmp_path, part):
        shutil.copytree(folder, tmp_path / "part")
        [file] = (tmp_path / "part" / part).glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-100])
        says = f"cannot be read: .*{part}/{file.name} is not a whole safetensors file"
        with pytest.raises(ValueError, match=says):
            load(tmp_path / "part")

    def test_a_pickle_is_not_opened(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "old")
        unet = tmp_path / "old" / "unet"
        torch.save({}, unet / "diffusion_pytorch_model.bin")
        (unet / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(ValueError, match="safetensors"):
            load(tmp_path / "old")

    def test_weights_of_half_the_digits_alone(self, folder, tmp_path):
        """As published beside the others, or in their place; they come in float32."""
        pipeline = tiny_pipeline().to(torch.float16)
        pipeline.save_pretrained(tmp_path / "half", variant="fp16")
        whole, half = load(folder), load(tmp_path / "half")
        for name in ("denoiser", "codec", "conditioner"):
            ours, theirs = (getattr(model, name).state_dict() for model in (half, whole))
            for key, tensor in ours.items():
                assert tensor.dtype == theirs[key].dtype
                assert torch.equal(tensor, theirs[key].to(torch.float16).to(tensor.dtype))

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="it is Linux that tells")
    def test_weights_are_mapped_into_memory(self, folder):
        model = load(folder)
        mapped = Path("/proc/self/maps").read_text()
        for part in ("unet", "vae"):
            assert str(folder / part / "diffusion_pytorch_model.safetensors") in mapped
        assert model.shape == (4, 4, 4)

    def test_other_pipelines_are_named(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "xl")
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = "StableDiffusionXLPipeline"
        (tmp_path / "xl" / "model_index.json").write_text(json.dumps(index))
        assert not recognised(tmp_path / "xl")
        with pytest.raises(FileNotFoundError, match=r"diffusers \(StableDiffusionXLPipeline\)"):
            load(tmp_path / "xl")

    def test_there_are_no_averages(self, folder):
        with pytest.raises(ValueError, match=r"has no weights '0.999'"):
            load(folder, "0.999")

    def test_a_network_that_reads_more(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "fill")
        path = tmp_path / "fill" / "unet" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "encoder_hid_dim_type": "text_proj"}))
        with pytest.raises(ValueError, match="cannot be read"):
            load(tmp_path / "fill")


class TestOneFile:
    @pytest.fixture(scope="class")
    def beside(self, folder, tmp_path_factory):
        """A file, and beside it a folder without weights, that tells the tokens."""
        home = tmp_path_factory.mktemp("single")
        weights = ("*.safetensors", "*.bin")
        shutil.copytree(folder, home / "model", ignore=shutil.ignore_patterns(*weights))
        return home

    @pytest.mark.parametrize("second", [False, True], ids=["1.x", "2.x"])
    def test_it_is_the_same_model_as_its_folder(self, folder, beside, second):
        file = beside / "model.safetensors"
        file.unlink(missing_ok=True)
        save_tensors(file, first_layout(tiny_pipeline(), second))
        assert recognised(file)
        one, other = load(file), load(folder)
        assert one.denoiser.process == other.denoiser.process
        assert one.sampler == other.sampler
        for name in ("denoiser", "codec", "conditioner"):
            mine, theirs = (getattr(model, name).state_dict() for model in (one, other))
            assert mine.keys() == theirs.keys()
            for key, tensor in theirs.items():
                assert torch.equal(mine[key], tensor), key
        images = one.generate(prompts=PROMPTS, steps=2)
        assert torch.equal(images, other.generate(prompts=PROMPTS, steps=2))

    @pytest.mark.parametrize("second", [False, True], ids=["1.x", "2.x"])
    @pytest.mark.parametrize(
        ("says", "key"),
        [
            ("weights of its unet or vae", "model.diffusion_model.time_embed.0.weight"),
            ("weights of its unet or vae", "first_stage_model.encoder.conv_out.bias"),
            ("its text_encoder lacks the weights final_layer_norm", "final"),
        ],
    )
    def test_weights_that_are_missing(self, beside, second, says, key):
        weights = first_layout(tiny_pipeline(), second)
        if key == "final":
            key = next(name for name in weights if "final" in name)
        del weights[key]
        file = beside / "model.safetensors"
        file.unlink(missing_ok=True)
        save_tensors(file, weights)
        with pytest.raises(ValueError, match=says):
            load(file)

    def test_without_a_folder_beside_it(self, tmp_path):
        save_tensors(tmp_path / "alone.safetensors", first_layout(tiny_pipeline()))
        with pytest.raises(ValueError, match="does not say its tokens: lay a pipeline's folder"):
            load(tmp_path / "alone.safetensors")

    def test_other_weights_are_not_taken_for_it(self, tmp_path):
        file = tmp_path / "lora.safetensors"
        save_tensors(file, {"lora_unet_conv_in.alpha": torch.ones(1)})
        assert not recognised(file)
        with pytest.raises(ValueError, match=r"is a LoRA, .* teacher=BASE teacher\.lora="):
            load(file)
