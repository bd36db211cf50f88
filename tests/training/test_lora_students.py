"""What a run leaves of a student with low-rank additions: the merged network, and the additions
alone, from which the same network can be made on the base.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.low_rank import MODELS

from fewstep.data.digits import Digits
from fewstep.files import sha256
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.models.fingerprint import weights_hash
from fewstep.models.folder import load, load_folder
from fewstep.models.lora import Lora, load_addition
from fewstep.models.source import Saved
from fewstep.run import Run, distil
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import Sgd

pytest.importorskip("peft")

OPTIONS = Lora(rank=2, alpha=3.0)


def run_of(home, method, **changes):
    MODELS["unet"]().save(home / "teacher")
    chosen = {
        "steps": 3,
        "batch": 8,
        "optimizer": Sgd(lr=0.5),
        "ema": (0.5, 0.0),
        "ema_warmup": False,
        "health_every": 2,
        "sample_every": 3,
        "sample_steps": (1,),
        "device": "cpu",
        **changes,
    }
    teacher = Saved(str(home / "teacher"))
    return Run(
        Digits(limit=64), method, teacher, adaptation=OPTIONS, trainer=TrainerConfig(**chosen)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher, and the folder of a student of it."""
    home = tmp_path_factory.mktemp("students")
    run = run_of(home, ConsistencyDistillation(bins=4))
    distil(run, home / "run", say=lambda line: None)
    return home


def applied(base, tensors, scale):
    """The weights of a base with additions, by plain arithmetic."""
    found = {key: value.clone() for key, value in base.items()}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            b = tensors[key.replace("lora_A", "lora_B")]
            weight = key.replace(".lora_A.weight", ".weight")
            found[weight] += scale * torch.einsum("or,r...->o...", b.flatten(1), a)
    return found


@pytest.mark.parametrize(("ema", "file"), [(None, ""), ("0.5", ""), ("0", "-0")])
def test_the_additions_on_the_base_are_the_merged_network(made, ema, file):
    """For each average that was kept; alpha/rank times, as the header says."""
    student = made / "run" / "student"
    base = load_file(made / "teacher" / "model.safetensors")
    tensors, facts = load_addition(student, ema)
    assert tensors.keys() == load_file(student / f"lora{file}.safetensors").keys()
    assert any(value.any() for key, value in tensors.items() if "lora_B" in key)
    right = load_file(student / f"model{file}.safetensors")
    found = applied(base, tensors, facts["alpha"] / facts["rank"])
    assert found.keys() == right.keys()
    for key, value in right.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)
    assert any(not torch.equal(right[key], base[key]) for key in base)


def test_the_header_tells_of_them(made):
    teacher = load(made / "teacher").denoiser.network
    with safe_open(made / "run" / "student" / "lora.safetensors", "pt") as file:
        assert set(file.metadata()) == {"fewstep"}
        facts = json.loads(file.metadata()["fewstep"])
    assert facts == {
        "rank": 2,
        "alpha": 3.0,
        "targets": ["all"],
        "base": weights_hash(teacher),
        "inputs": [],
        "whole": True,
    }


def test_the_folder_loads_without_the_base(made):
    student = made / "run" / "student"
    model = load(made / "run")
    (made / "teacher").rename(made / "gone")
    again = load(made / "run")
    (made / "gone").rename(made / "teacher")
    assert torch.equal(again.generate(num=2, steps=1), model.generate(num=2, steps=1))
    keys = load(made / "teacher").denoiser.network.state_dict().keys()
    assert again.denoiser.network.state_dict().keys() == keys
    described = json.loads((student / "model.json").read_text())
    files = {"model", "model-0", "lora", "lora-0"}
    assert set(described["weights"]) == {f"{name}.safetensors" for name in files}
    for name, digest in described["weights"].items():
        assert sha256(student / name) == digest
    assert described["card"]["adaptation"] == OPTIONS.dump()


def test_damage_is_seen(made, tmp_path):
    student = made / "run" / "student"
    for path in student.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "lora.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"lora\.safetensors is damaged"):
        load_addition(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lora\.safetensors"):
        load_addition(tmp_path)
    with pytest.raises(ValueError, match=r"no weights '0\.7'; it has: 0"):
        load_addition(tmp_path, "0.7")


def test_a_model_of_whole_weights_has_no_additions(made):
    with pytest.raises(FileNotFoundError, match=r"teacher has no lora\.safetensors"):
        load_addition(made / "teacher")
    assert load_folder(made / "teacher").additions == {}


def test_inputs_that_were_added_are_in_the_merged_network_alone(tmp_path):
    """Trained in full, so that the additions are not the whole of the student, and say so."""
    run = run_of(tmp_path, LatentConsistency(), ema=(0.5,), health_every=0)
    made = distil(run, tmp_path / "run", say=lambda line: None).student
    tensors, facts = load_addition(tmp_path / "run" / "student")
    assert (facts["whole"], facts["inputs"]) == (False, ["guidance"])
    assert not [key for key in tensors if "extra_embed" in key]
    right = load_file(tmp_path / "run" / "student" / "model.safetensors")
    added = [key for key in right if "extra_embed" in key]
    assert added
    assert any(right[key].any() for key in added)
    again = load(tmp_path / "run")
    pictures = [one.generate(num=2, steps=1, guidance=3.0) for one in (made, again)]
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[0], again.generate(num=2, steps=1, guidance=1.5))


@pytest.mark.parametrize("precision", ["bf16", "fp16_teacher"])
def test_of_a_base_in_16_bits_the_merged_network_is_in_32(tmp_path, precision):
    method = ConsistencyDistillation(bins=4)
    run = run_of(tmp_path, method, precision=precision, ema=(0.5,))
    distil(run, tmp_path / "run", say=lambda line: None)
    student = tmp_path / "run" / "student"
    for name in ("model.safetensors", "lora.safetensors"):
        assert {t.dtype for t in load_file(student / name).values()} == {torch.float32}
    facts = load_addition(student).facts
    assert facts["base"] == weights_hash(load(tmp_path / "teacher").denoiser.network)


def test_equal_runs_leave_equal_files(made, tmp_path):
    run = run_of(tmp_path, ConsistencyDistillation(bins=4))
    distil(run, tmp_path / "run", say=lambda line: None)
    for name in ("lora.safetensors", "lora-0.safetensors", "model.safetensors"):
        paths = [Path(home) / "run" / "student" / name for home in (made, tmp_path)]
        assert sha256(paths[0]) == sha256(paths[1])
