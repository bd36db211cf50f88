"""Whatever model.json says: it is held against the weights before memory is taken, and what is
wrong with it is one line that names the file.
"""

import json
import shutil

import pytest
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from fewstep import load
from fewstep.models.classifier import find_classifier
from fewstep.models.named import shipped
from fewstep.models.size import at_most, check_memory, numbers_in, shapes_of
from fewstep.models.space import labelled
from fewstep.models.unet import UNet

HUGE = 10**12


@pytest.fixture
def changed(tmp_path):
    """A copy of a shipped model with another value at a dotted path of its model.json."""

    def call(path, value, name="digits_teacher"):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(shipped()[name], folder)
        plain = json.loads((folder / "model.json").read_text())
        *way, last = path.split(".")
        inner = plain
        for key in way:
            inner = inner[key]
        inner[last] = value
        (folder / "model.json").write_text(json.dumps(plain))
        return folder

    return call


@pytest.fixture
def frugal():
    """No module takes memory for more than the shipped models do."""

    def check(module, name, tensor):
        assert tensor is None or tensor.is_meta or tensor.numel() < 1_000_000, name

    hook = register_module_parameter_registration_hook(check)
    yield
    hook.remove()


NUMBERS = [
    ("network.channels", 8000),
    ("network.channels", HUGE),
    ("network.channels", 2**31),
    ("network.channels", 10**30),
    ("network.channels", 0),
    ("network.channels", "9" * 5000),
    ("network.blocks", 3_000_000),
    ("network.blocks", HUGE),
    ("network.multipliers", [1] * 100_000),
    ("network.multipliers", []),
    ("network.multipliers", [1, 1_000_000]),
    ("network.groups", HUGE),
    ("network.head_channels", HUGE),
    ("network.attention", [1, 2, 4]),
    ("network.extra", ["guidance", "s"]),
    ("network", {"kind": "dit", "width": 10**6, "depth": 10**6}),
    ("network", {"kind": "dit", "patch": 1, "mlp_ratio": 10**9}),
    ("conditioner.classes", HUGE),
    ("conditioner.classes", 11),
    ("conditioner.null", False),
    ("conditioner", {"kind": "unconditional"}),
    ("shape", [1, 2**30, 2**30]),
    ("shape", [10**9, 8, 8]),
    ("shape", [1, 8, 10**30]),
    ("shape", [1, 8, 8.0]),
    ("shape", [1, -8, 8]),
    ("shape", []),
    ("shape", "188"),
    ("shape", None),
    ("guidance.low", "a"),
    ("guidance.high", None),
    ("guidance.default", float("nan")),
    ("guidance.default", [1]),
    ("guidance.kind", "both"),
    ("guidance.more", 1),
    ("guidance", 3),
    ("process.kind", "nothing"),
    ("process", None),
    ("own", []),
    ("parameterization", "x" * 5000),
    ("sampler.steps", -1),
    ("sampler.steps", "many"),
    ("examples", {"label": []}),
    ("examples", [1]),
    ("card", None),
    ("card", []),
    ("weights", None),
    ("weights", {}),
    ("weights", {"model.safetensors": 3}),
    ("format", "1"),
    ("format", 10**30),
]


@pytest.mark.parametrize(("path", "value"), NUMBERS, ids=lambda value: str(value)[:30])
def test_what_is_wrong_names_the_file_before_memory_is_taken(changed, frugal, path, value):
    folder = changed(path, value)
    with pytest.raises(ValueError, match="model") as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_network_is_made_that_the_weights_do_not_have(changed, monkeypatch):
    """The second time it would be in memory."""
    made, build = [], UNet.build

    def noted(self, space):
        module = build(self, space)
        made.append(next(module.parameters()).device.type)
        return module

    monkeypatch.setattr(UNet, "build", noted)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit its model\.json: time_"):
        load(changed("network.channels", 2048))
    assert made == ["meta"]
    load("digits_teacher")
    assert made == ["meta", "meta", "cpu"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("classes", 10**9),
        ("classes", "10"),
        ("classes", 0),
        ("classifier.channels", 10**6),
        ("classifier.features", HUGE),
        ("shape", [10**6, 8, 8]),
        ("shape", [1, 10**9, 8]),
        ("card", 3),
        ("weights", []),
    ],
)
def test_classifiers(changed, frugal, path, value):
    folder = changed(path, value, "digits_classifier")
    with pytest.raises(ValueError, match="model") as raised:
        find_classifier(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("network.multipliers", [1] * 100_000, "multipliers: Tuple should have at most 16 items"),
        ("card", [1], r"card: expected values by name, got \[1\]"),
        ("examples", {"label": 3}, "examples: expected lists by name, got"),
        ("weights", {"other": "0"}, r"weights: expected the sha256 of model\.safetensors, got"),
    ],
    ids=["multipliers", "card", "examples", "weights"],
)
def test_what_is_wrong_names_the_field_and_what_is_expected(changed, path, value, told):
    with pytest.raises(ValueError, match=told):
        load(changed(path, value))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"network": ' * 200_000,
        b'{"format": 1, "network": ' + b"9" * 5000 + b"}",
        b'{"format": 1' + b"0" * 5000 + b', "network": {}}',
        b"\xff\xfe",
        b"",
        b"3",
        b'{"format": 1, "network": {"kind": "unet"}}',
    ],
    ids=lambda content: str(content[:30]),
)
def test_any_bytes(tmp_path, content):
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.json"):
        load(tmp_path)


def test_missing_weights_are_missed_before_a_network_is_made(changed, frugal):
    folder = changed("network.channels", 8192)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load(folder)


class TestSizes:
    SPEC = UNet(channels=8, multipliers=(1, 2), blocks=1, head_channels=4, groups=4)

    def test_they_are_those_of_the_module(self):
        for classes in (0, 10):
            space = labelled((1, 8, 8), classes, classes > 0)
            module = self.SPEC.build(space)
            shapes = {name: list(one.shape) for name, one in module.state_dict().items()}
            before = torch.get_rng_state()
            assert shapes_of(lambda space=space: self.SPEC.build(space)) == shapes
            assert torch.equal(torch.get_rng_state(), before)
            assert numbers_in(shapes) == sum(one.numel() for one in module.parameters())

    def test_they_are_bounded(self):
        space = labelled((1, 8, 8))
        many = UNet(channels=8, blocks=10**6, head_channels=4, groups=4)
        with pytest.raises(ValueError, match="more than 100 tensors"):
            shapes_of(lambda: many.build(space), most=100)
        with pytest.raises(ValueError, match="2 tensors, 400"), at_most(10, 500):
            torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(200)) for _ in range(10)])

    def test_the_bound_ends_with_its_block(self):
        with pytest.raises(ValueError, match="more than"), at_most(0):
            torch.nn.Linear(2, 2)
        torch.nn.Linear(2, 2)

    def test_memory(self):
        check_memory({"a": [1000, 1000]}, "this unet")
        with pytest.raises(ValueError, match=r"unet has 1,000,000,000,000 parameters, 3,725 GiB"):
            check_memory({"a": [10**6, 10**6]}, "this unet")
