"""`DiffusionModel`: what is saved is what is loaded, and damage is refused."""

import json
import os
import stat

import pytest
import torch
from tests.models.made import TINY, made, stirred

from fewstep import load
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import CmBoundary, Edm
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.diffusion.times import Explicit
from fewstep.errors import NotFiniteError
from fewstep.models import folder as folder_module
from fewstep.models.codec import Pixels
from fewstep.models.conditioner import Labels, Unconditional
from fewstep.models.folder import FORMAT, load_folder
from fewstep.models.named import shipped
from fewstep.models.source import Fresh
from fewstep.models.space import image_space

JSON, WEIGHTS = "model.json", "model.safetensors"


@pytest.fixture
def model():
    return made()


@pytest.fixture
def folder(model, tmp_path):
    other = Fresh(network=TINY).load(image_space((1, 8, 8), 10), seed=0).denoiser.network
    model.variants = {"0.9": stirred(other, 2)}
    model.save(tmp_path / "model")
    return tmp_path / "model"


def described(folder):
    return json.loads((folder / JSON).read_text())


def describe(folder, **changed):
    """Changes model.json; a value of `...` takes the key away."""
    plain = {k: v for k, v in (described(folder) | changed).items() if v is not ...}
    (folder / JSON).write_text(json.dumps(plain))


def nothing_left_over(parent):
    return [p.name for p in parent.iterdir() if p.name.startswith(".")] == []


class TestSaving:
    def test_bit_by_bit(self, model, folder):
        again = load_folder(folder)
        mine, other = model.denoiser.network.state_dict(), again.denoiser.network.state_dict()
        assert list(mine) == list(other)
        assert all(torch.equal(mine[key], other[key]) for key in mine)
        for field in ("codec", "conditioner"):
            assert getattr(again, field).spec == getattr(model, field).spec, field
        for field in ("shape", "sampler", "guidance", "card"):
            assert getattr(again, field) == getattr(model, field), field
        assert again.denoiser.process == model.denoiser.process
        assert again.denoiser.parameterization == model.denoiser.parameterization
        assert torch.equal(again.generate(num=6, seed=3), model.generate(num=6, seed=3))

    def test_everything_that_a_student_may_carry(self, tmp_path):
        """Another process than the network's own, explicit times, a fixed guidance, no labels."""
        model = made(classes=0)
        model.denoiser = model.denoiser.under(VarianceExploding(0.01, 20.0))
        model.denoiser.parameterization = CmBoundary(0.6)
        model.sampler = Renoise(3, Explicit(((5.0, 0.8),), end="t_min"))
        model.guidance = Guidance("fixed", 3.0, 3.0, 3.0)
        model.save(tmp_path / "model")
        again = load_folder(tmp_path / "model")
        assert again.denoiser.process == VarianceExploding(0.01, 20.0)
        assert again.denoiser.own == VarianceExploding()
        assert again.conditioner.spec == Unconditional()
        assert again.sampler == model.sampler
        assert again.guidance == model.guidance
        assert torch.equal(again.generate(num=3), model.generate(num=3))

    def test_saving_what_was_loaded_gives_the_same_bytes(self, folder, tmp_path):
        """No date, no path: equal models are equal files."""
        again = load_folder(folder)
        again.variants = {"0.9": load_folder(folder, "0.9").denoiser.network.state_dict()}
        again.save(tmp_path / "again")
        for file in sorted(folder.iterdir()):
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name

    def test_the_description(self, folder):
        plain = described(folder)
        assert plain["format"] == FORMAT == 1
        assert plain["network"]["kind"] == "unet"
        assert plain["process"] == plain["own"] == VarianceExploding().dump()
        assert plain["parameterization"] == Edm().dump()
        assert plain["sampler"] == Ode(3).dump()
        assert plain["guidance"] == {"kind": "doubled", "low": 1.0, "high": 8.0, "default": 1.0}
        assert plain["codec"] == Pixels().dump()
        assert plain["conditioner"] == Labels(10).dump()
        assert plain["shape"] == [1, 8, 8]
        assert plain["card"] == {"ema": 0.99, "data": {"fingerprint": "x"}}
        assert sorted(plain["weights"]) == ["model-0.9.safetensors", WEIGHTS]
        assert all(len(digest) == 64 for digest in plain["weights"].values())

    def test_the_description_is_json_for_every_reader(self, folder):
        """Python's own reader takes Infinity and NaN, which the standard does not know: no other
        reader would.
        """

        def refuse(word):
            raise AssertionError(f"{word} is no JSON")

        json.loads((folder / JSON).read_text(), parse_constant=refuse)

    def test_files_can_be_read_by_others(self, model, tmp_path):
        before = os.umask(0o022)
        try:
            model.save(tmp_path / "mine")
        finally:
            os.umask(before)
        for file in (tmp_path / "mine").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o644, file.name

    def test_it_replaces_what_was_there(self, model, folder):
        (folder / "stale.txt").write_text("old")
        with torch.no_grad():
            next(model.denoiser.parameters()).add_(1)
        model.save(folder)
        assert not (folder / "stale.txt").exists()
        assert torch.equal(
            next(load_folder(folder).denoiser.parameters()), next(model.denoiser.parameters())
        )
        assert nothing_left_over(folder.parent)

    @pytest.mark.parametrize("step", ["save_tensors", "write_json", "load_folder"])
    def test_a_failure_leaves_nothing_half_written(self, model, tmp_path, monkeypatch, step):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(folder_module, step, full)
        with pytest.raises(OSError, match="No space left"):
            model.save(tmp_path / "new")
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_keeps_the_old_model(self, model, folder, monkeypatch):
        before = {file.name: file.read_bytes() for file in folder.iterdir()}

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(folder_module, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            model.save(folder)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        assert nothing_left_over(folder.parent)

    def test_a_model_with_infinite_or_missing_numbers_is_not_saved(self, model, tmp_path):
        """Weights with NaN are no model: an error in words, not a failed assertion."""
        with torch.no_grad():
            next(model.denoiser.parameters()).view(-1)[0] = float("nan")
        with pytest.raises((ValueError, RuntimeError), match=r"finite|NaN"):
            model.save(tmp_path / "bad")
        assert not (tmp_path / "bad").exists()

    @pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
    def test_nor_is_one_whose_average_or_codec_is_such(self, model, tmp_path, spoilt):
        state = model.denoiser.network.state_dict()
        name, first = next(iter(state.items()))
        model.variants = {"0.9": state | {name: first * spoilt}}
        with pytest.raises(NotFiniteError, match=f"{name} holds numbers that are not finite"):
            model.save(tmp_path / "bad")
        model.variants = {}
        model.codec.register_buffer("mean", torch.tensor([float("nan")]))
        with pytest.raises(NotFiniteError, match="mean holds numbers"):
            model.save(tmp_path / "bad")
        assert not (tmp_path / "bad").exists()


class TestDamage:
    @pytest.mark.parametrize("place", [0, 9, 200, -1])
    def test_a_flipped_bit_is_found(self, folder, place):
        """In the length of the header, in the header, in the numbers."""
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[place] ^= 2
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(ValueError, match=WEIGHTS):
            load_folder(folder)

    @pytest.mark.parametrize("keep", [0, 5, 100, -1])
    def test_truncated_weights_are_found(self, folder, keep):
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[:keep])
        with pytest.raises(ValueError, match=WEIGHTS):
            load_folder(folder)

    def test_damage_of_a_variant_is_found_where_it_is_used(self, folder):
        file = folder / "model-0.9.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        load_folder(folder)
        with pytest.raises(ValueError, match=r"model-0\.9\.safetensors is damaged"):
            load_folder(folder, "0.9")

    def test_missing_weights(self, folder):
        (folder / WEIGHTS).unlink()
        with pytest.raises(FileNotFoundError, match=WEIGHTS):
            load_folder(folder)

    def test_weights_of_another_network(self, folder):
        network = described(folder)["network"]
        describe(folder, network=network | {"channels": 16})
        with pytest.raises(ValueError, match=rf"{WEIGHTS} does not fit"):
            load_folder(folder)

    def test_a_newer_format(self, folder):
        describe(folder, format=FORMAT + 1)
        with pytest.raises(ValueError, match=f"format {FORMAT + 1}, newer"):
            load_folder(folder)

    KEYS = (
        "network",
        "process",
        "own",
        "parameterization",
        "sampler",
        "guidance",
        "codec",
        "conditioner",
        "shape",
    )

    @pytest.mark.parametrize("key", [*KEYS, "weights", "card"])
    def test_a_missing_part_of_the_description(self, folder, key):
        describe(folder, **{key: ...})
        with pytest.raises(ValueError, match=JSON):
            load_folder(folder)

    @pytest.mark.parametrize("key", [*KEYS, "weights", "format"])
    def test_a_senseless_part_of_the_description(self, folder, key):
        for value in (None, 3.5, "nonsense", {"kind": "nonsense"}):
            describe(folder, **{key: value})
            with pytest.raises(ValueError, match=r".+"):
                load_folder(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}', "\x00"])
    def test_a_damaged_description(self, folder, text):
        (folder / JSON).write_text(text)
        with pytest.raises(ValueError, match=JSON):
            load_folder(folder)

    def test_a_description_that_is_no_text(self, folder):
        (folder / JSON).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match=rf"{JSON} is damaged"):
            load_folder(folder)


class TestFinding:
    def test_a_model_and_a_run(self, folder, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        (run / "run.yaml").write_text("method: diffusion\n")
        with pytest.raises(FileNotFoundError, match="has no checkpoint yet: train it further"):
            load(run)
        folder.rename(run / "student")
        assert load(run).card["ema"] == 0.99
        assert load(str(run / "student")).card["ema"] == 0.99

    def test_foreign_things(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no model folder: it has no model\.json"):
            load(tmp_path)
        file = tmp_path / "model.pt"
        file.write_bytes(b"x")
        with pytest.raises(ValueError, match="a model is a folder"):
            load(file)
        with pytest.raises(
            FileNotFoundError, match=f"'nobody'; shipped models: {', '.join(shipped())}"
        ):
            load("nobody")

    def test_a_classifier_is_no_diffusion_model(self):
        with pytest.raises(ValueError, match=r"digits_classifier.*diffusion model"):
            load("digits_classifier")

    def test_variants(self, folder):
        first, other = load(folder), load(folder, "0.9")
        keys = first.denoiser.network.state_dict()
        assert any(
            not torch.equal(keys[k], v) for k, v in other.denoiser.network.state_dict().items()
        )
        assert (first.generate(num=4) - other.generate(num=4)).abs().max() > 0.01
        with pytest.raises(ValueError, match=r"no weights '0\.5'; it has: 0\.9"):
            load(folder, "0.5")
        with pytest.raises(ValueError, match="no weights"):
            load(folder, "/../model")
