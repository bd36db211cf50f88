"""Networks from outside: called in their own way, extended, saved, refused at the door."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

import fewstep
from fewstep import plugins
from fewstep.cli.main import main
from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding
from fewstep.learning.method import Method
from fewstep.methods.diffusion import Diffusion
from fewstep.models.adapters import FullCopy
from fewstep.models.source import ModelSource
from fewstep.models.space import labelled
from fewstep.run import Run
from fewstep.training.config import TrainerConfig

DOC = Path(__file__).parents[2] / "docs" / "your_network.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
SHAPE = (1, 8, 8)
FLOW = {"process": "rectified_flow", "prediction": "flow", "shape": SHAPE}
LABELS = {"classes": 10, "null": True}
T = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
LABEL = torch.tensor([0, 4, 10])


class Known(nn.Module):
    """2 x + t + label."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, t, label):
        return self.scale * x + (t + label)[:, None, None, None]


class Small(nn.Module):
    def __init__(self, width=8, rows=11):
        super().__init__()
        self.into, self.out = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.label = nn.Embedding(rows, width)

    def forward(self, x, t, label):
        return self.out((self.into(x) + (self.label(label) + t[:, None])[:, :, None, None]).sin())


@dataclass(frozen=True)
class SmallNet(fewstep.OutsideNetwork):
    width: int = 8

    def module(self, space):
        return Small(self.width)


@dataclass(frozen=True)
class Bare(ModelSource):
    """A teacher that no file can describe."""

    def load(self, data, seed):
        return fewstep.from_network(Small(), **FLOW, **LABELS)


@pytest.fixture(autouse=True)
def _loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(
        plugins, "_loaded", plugins._loaded | {__name__.partition(".")[0]: "test_wrapped.py"}
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_network", None)  # the file of one test, not of others


def noise(rows=3):
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("time_input", ["identity", "thousand", "log_sigma"])
@pytest.mark.parametrize(
    ("prediction", "x0"),
    [
        ("flow", lambda x, f, t: x - t * f),
        ("sample", lambda x, f, t: f),
        (
            "velocity",
            lambda x, f, t: ((1 - t) * x - t * f * torch.hypot(1 - t, t)) / ((1 - t) ** 2 + t**2),
        ),
    ],
)
def test_the_denoiser_is_the_closed_form_of_the_prediction(prediction, x0, time_input):
    told = FLOW | {"prediction": prediction, "time_input": time_input}
    model = fewstep.from_network(Known(), **told, **LABELS)
    t, x = T[:, None, None, None], noise().double()
    unit = {"identity": t, "thousand": 1000 * t, "log_sigma": 250 * t.log()}[time_input]
    inp = 1 / torch.hypot(1 - t, t) if prediction == "velocity" else 1.0
    f = 2 * inp * x + unit + LABEL[:, None, None, None]
    found = model.denoiser(noise(), T, Cond({"label": LABEL}))
    torch.testing.assert_close(found.double(), x0(x, f, t), rtol=1e-5, atol=1e-4)


def test_epsilon_of_a_table():
    told = {"process": "variance_preserving_table", "prediction": "epsilon", "shape": SHAPE}
    model = fewstep.from_network(Known(), **told, **LABELS)
    t = torch.tensor([10.0, 500.0, 900.0], dtype=torch.float64)
    process = model.denoiser.process
    alpha, sigma = (v[:, None, None, None] for v in (process.alpha(t), process.sigma(t)))
    f = 2 * noise() + (t + LABEL)[:, None, None, None]
    found = model.denoiser(noise(), t, Cond({"label": LABEL}))
    torch.testing.assert_close(found.double(), (noise() - sigma * f) / alpha, rtol=1e-5, atol=1e-2)


class Keywords(Known):
    def forward(self, *, sample, timesteps, y=None):
        return super().forward(sample, timesteps, y)


class Swapped(Known):
    def forward(self, time, x, other=1, *, class_labels):
        return {"sample": super().forward(x, time, class_labels)}


class Unknown(Known):
    def forward(self, *words, **more):
        return (super().forward(words[0], more["when"], words[1]), "more")


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (Swapped(), None),
        (Keywords(), "sample=x, timesteps=t, y=label"),
        (Unknown(), "x, label, when=t"),
    ],
)
def test_call_forms(module, call):
    plain = fewstep.from_network(Known(), **FLOW, **LABELS)
    other = fewstep.from_network(module, **FLOW, **LABELS, call=call)
    cond = Cond({"label": LABEL})
    assert torch.equal(other.denoiser(noise(), T, cond), plain.denoiser(noise(), T, cond))


def test_a_unet_of_diffusers():
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=11,
    ).eval()
    model = fewstep.from_network(net, **FLOW, **LABELS, time_input="thousand")
    raw = model.denoiser.network(noise(), T.float(), Cond({"label": LABEL}))
    assert torch.equal(raw, net(noise(), 1000 * T.float(), class_labels=LABEL).sample)
    ((tap, channels),) = model.denoiser.network.taps.items()
    _, taps = model.denoiser.features(noise(), T, Cond({"label": LABEL}), [tap])
    assert taps[tap].shape[:2] == (3, channels)


@pytest.mark.parametrize("names", [{"s"}, {"guidance"}, {"s", "guidance"}])
def test_added_inputs_change_nothing_until_they_are_trained(names):
    model = fewstep.from_network(SmallNet(), **FLOW, **LABELS)
    wider = FullCopy().clones(model.denoiser)("student", inputs=names)
    assert set(wider.inputs) == {"label", *names}
    cond = Cond({"label": LABEL, "guidance": torch.tensor([1.0, 2.0, 3.0])})
    before = model.denoiser(noise(), T, cond).detach()
    assert torch.equal(wider(noise(), T, cond, T / 2), before)
    optimizer = torch.optim.Adam(wider.network.added.parameters(), lr=1e-2)
    errors = []
    for _ in range(60):
        goal = (
            before
            + sum({"s": T, "guidance": cond["guidance"]}[name] for name in names)[
                :, None, None, None
            ]
        )
        error = (wider(noise(), T, cond, T) - goal).pow(2).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.2 * errors[0]
    assert torch.equal(model.denoiser(noise(), T, cond), before)


def test_a_clone_has_weights_of_its_own():
    model = fewstep.from_network(SmallNet(), **FLOW, **LABELS)
    clone = FullCopy().clones(model.denoiser)("student")
    mine = {p.data_ptr() for p in model.denoiser.parameters()}
    assert not mine & {p.data_ptr() for p in clone.parameters()}


def test_saved_and_loaded_it_makes_the_same_images(tmp_path):
    weights = Small(16).state_dict()
    model = fewstep.from_network(SmallNet(width=16), **FLOW, **LABELS, weights=weights)
    model.denoiser = FullCopy().clones(model.denoiser)("student", inputs={"s"})
    model.save(tmp_path / "model")
    again = fewstep.load(tmp_path / "model")
    assert again.denoiser.network.spec == SmallNet(width=16, extra=("s",))
    images = model.generate(labels=[3, 4], steps=2)
    assert torch.equal(again.generate(labels=[3, 4], steps=2), images)
    assert torch.equal(again.denoiser.network.module.label.weight, weights["label.weight"])


def test_null_is_what_guidance_leads_away_from():
    model = fewstep.from_network(Known(), **FLOW, **LABELS)
    assert model.guidance.kind == "doubled"
    assert model.conditioner({"label": [3]}).null["label"].tolist() == [10]
    assert fewstep.from_network(Known(), **FLOW, classes=10).guidance.kind == "none"


class Wide(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 2, 1)

    def forward(self, x, t):
        return super().forward(x)


class Endless(Known):
    def forward(self, x, t):
        return self.scale * x / (1 - t)[:, None, None, None]


class Needy(Known):
    def forward(self, x, t, mood):
        return x


@pytest.mark.parametrize(
    ("network", "changed", "says"),
    [
        (Small(rows=10), LABELS, "Small fails on samples .*, label 10: index out of range"),
        (Small(), {"classes": 20}, "label 19"),
        (Wide(), {}, r"gives the shape \(2, 8, 8\) for samples of shape \(1, 8, 8\)"),
        (Endless(), {}, "not finite at t_max=1"),
        (Wide(), {"classes": 10}, "takes no label"),
        (Needy(), {}, "needs mood"),
        (Wide(), {"call": "x, tt"}, "no 'tt'"),
        (Wide(), {"process": "rectified_flo"}, "did you mean rectified_flow"),
        (Wide(), {"prediction": "velocty"}, "did you mean velocity"),
        (Small(), {"prediction": "epsilon", **LABELS}, "no data is left"),
        (Small(), {"time_input": "seconds", **LABELS}, "time_input: "),
        (Small(), {"shape": (0, 8, 8)}, "whole numbers from 1"),
        (SmallNet(), {**LABELS, "weights": Small(4).state_dict()}, "size mismatch"),
    ],
)
def test_mistakes_are_found_at_the_door(network, changed, says):
    with pytest.raises(ValueError, match=says) as raised:
        fewstep.from_network(network, **(FLOW | changed))
    assert "\n" not in str(raised.value)


def test_a_bare_module_is_refused_before_the_training(tmp_path):
    model = fewstep.from_network(Small(), **FLOW, **LABELS)
    assert model.generate(labels=[1], steps=2).shape == (1, *SHAPE)
    for save in (
        lambda: model.save(tmp_path / "model"),
        lambda: fewstep.distil(Run(Digits(limit=32), Diffusion(), Bare()), tmp_path / "run"),
    ):
        with pytest.raises(ValueError, match=r"subclass of fewstep\.OutsideNetwork"):
            save()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["shortcut", "latent_consistency", "dmd2", "mean_flow"])
def test_methods_know_nothing_of_it(name):
    model = fewstep.from_network(SmallNet(), **FLOW, **LABELS)
    trainer = TrainerConfig(steps=2, batch=8, device="cpu", health_every=0)
    method = Method.parse(
        {"kind": name} | ({"gan": 0.1, "gan_fake": 0.1} if name == "dmd2" else {})
    )
    ready = Run(Digits(limit=32), method, trainer=trainer).prepared(model=model)
    before = [p.clone() for p in ready.nets.student.parameters()]
    ready.trainer.fit()
    after = ready.nets.student.parameters()
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, ready.nets.student.parameters()))


def test_processes_as_objects_and_a_build_of_its_own():
    model = fewstep.from_network(
        Small(), process=VarianceExploding(), prediction="edm", shape=SHAPE, **LABELS
    )
    assert model.denoiser.process == VarianceExploding()
    assert model.denoiser.under(RectifiedFlow().within(VarianceExploding()))
    with pytest.raises(ValueError, match="label 19: index out"):
        SmallNet().build(labelled(SHAPE, 20, null=True))


def test_the_document_and_the_command_line(tmp_path, capsys, monkeypatch):
    """Both code blocks, and the verbs with `--plugin`."""
    name = "my_network"
    (tmp_path / f"{name}.py").write_text(BLOCKS[0])
    assert len(BLOCKS[0].splitlines()) <= 30
    more = "steps=2, batch=8, device='cpu', health_every=0"
    exec(compile(BLOCKS[1].replace("steps=2000", more), "doc", "exec"), {})
    plugin, tiny = ("--plugin", f"{name}.py"), ("trainer.steps=2", "trainer.batch=8")
    words = ("digits_teacher", "teacher=my_net", "teacher.network.width=8", "data.limit=64")
    quiet = ("trainer.health_every=0", "trainer.device=cpu", "name=cli")
    for verb in (
        ("train", *words, *tiny, *quiet),
        ("sample", "runs/cli", "--out", "x.npz", "--num", "2"),
        ("inspect", "runs/cli"),
        ("train", "runs/cli/run.yaml"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*verb, *plugin])
        assert ended.value.code == 0, capsys.readouterr().err
    assert "my_net, " in capsys.readouterr().out
    assert fewstep.load("runs/cli").denoiser.network.spec.width == 8
