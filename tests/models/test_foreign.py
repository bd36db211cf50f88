"""Checkpoints of others, where a model is expected: named, with a way to use them, never run."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from fewstep import load
from fewstep.files import save_tensors
from fewstep.models.classifier import find_classifier
from fewstep.models.foreign import foreign
from fewstep.models.named import shipped

WEIGHTS = {"conv_in.weight": torch.zeros(4, 1, 3, 3)}


class Attack:
    """A pickle that leaves a file behind where it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("attacked",)


def of_torch(path):
    torch.save({"state_dict": WEIGHTS, "attack": Attack()}, path)


def of_old_torch(path):
    torch.save({"state_dict": WEIGHTS}, path, _use_new_zipfile_serialization=False)


def of_edm(path):
    path.write_bytes(pickle.dumps({"ema": Attack()}))


def of_safetensors(path):
    save_tensors(path, WEIGHTS)


def of_gguf(path):
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))


def of_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "x")


def of_nothing(path):
    path.write_bytes(b"")


def diffusers(path, weights="diffusion_pytorch_model.safetensors"):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    of_safetensors(path / weights)


def pipeline(path):
    diffusers(path / "unet")
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))


def damaged_pipeline(path):
    path.mkdir()
    (path / "model_index.json").write_text("[" * 100_000)


def folder_of_ckpt(path):
    path.mkdir()
    of_torch(path / "v1-5-pruned.ckpt")


def checkpoint(path):
    path.mkdir()
    (path / "manifest.json").write_text("{}")
    of_safetensors(path / "nets.safetensors")


def file_of_a_model(path):
    path.parent.mkdir()
    (path.parent / "model.json").write_text("{}")
    of_safetensors(path)


WRAP = "fewstep.from_network"
CASES = [
    ("mine.pt", of_torch, ["a checkpoint of PyTorch", "can run code", WRAP]),
    ("mine.ckpt", of_torch, ["a checkpoint of PyTorch", WRAP]),
    ("mine", of_torch, ["a checkpoint of PyTorch", WRAP]),
    ("mine.pth", of_old_torch, ["a pickle", "PyTorch", WRAP]),
    ("edm-cifar10.pkl", of_edm, ["a pickle", "EDM", "can run code", WRAP]),
    ("mine.safetensors", of_safetensors, ["a safetensors file", WRAP]),
    ("mine.gguf", of_gguf, ["a GGUF file", WRAP]),
    ("empty.pt", of_nothing, ["by its name (.pt) a checkpoint", WRAP]),
    ("model.onnx", of_nothing, ["by its name (.onnx) a file of weights", WRAP]),
    ("mine.zip", of_zip, ["mine.zip is a file"]),
    ("mine.txt", of_nothing, ["mine.txt is a file"]),
    ("sd", pipeline, ["a pipeline of diffusers (StableDiffusionXLPipeline)", WRAP]),
    ("odd", damaged_pipeline, ["a pipeline of diffusers:", WRAP]),
    ("unet", diffusers, ["a model of diffusers (UNet2DConditionModel)", WRAP]),
    ("weights", folder_of_ckpt, ["v1-5-pruned.ckpt", "a checkpoint of PyTorch", WRAP]),
    ("step-00000005", checkpoint, ["a checkpoint of a run"]),
    ("student/model.safetensors", file_of_a_model, ["give its folder, student"]),
    ("nothing", Path.mkdir, ["nothing is no model folder"]),
]


@pytest.mark.parametrize(("name", "write", "says"), CASES, ids=[name for name, _, _ in CASES])
def test_it_is_named_with_a_way_to_use_it(tmp_path, monkeypatch, name, write, says):
    monkeypatch.chdir(tmp_path)
    write(Path(name))
    for read in (load, find_classifier):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            read(name)
        message = str(error.value)
        if read is find_classifier and not foreign(Path(name)):
            says = [f"{name} holds no classifier"]
        assert [text for text in [name, "model.json", *says] if text not in message] == []
        assert len(message) < 400
    assert not Path("attacked").exists()


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        load(tmp_path / "pipe")


def test_what_holds_no_weights_is_not_foreign(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert foreign(tmp_path) == ""
    models = [path for name, path in shipped().items() if not name.endswith("_classifier")]
    assert models
    assert all(map(load, models))
