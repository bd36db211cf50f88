"""From a pipeline's folder of diffusers to a student, by the command line alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.tiny_diffusion import PROMPTS, SD, tiny_pipeline

from fewstep.cli.main import main
from fewstep.data.stream import Stream
from fewstep.models.autoencoder_kl import AutoencoderKlModule
from fewstep.models.clip_text import ClipTextModule
from fewstep.models.folder import load
from fewstep.training.log import read_log

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RUN = """
data: {kind: folder, path: pictures}
teacher: sd
trainer:
  {steps: 1, batch: 4, device: cpu, health_every: 0,
  optimizer: {kind: adam_w, lr: 0.01}, schedule: {kind: constant, warmup: 0}}
method: %s
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder that holds `sd` and `pictures` with captions beside them."""
    path = tmp_path_factory.mktemp("home")
    tiny_pipeline().save_pretrained(path / "sd")
    (path / "pictures").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "pictures" / f"{i}.png")
        (path / "pictures" / f"{i}.txt").write_text(f"picture number {i}")
    return path


@pytest.fixture
def fewstep(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr("fewstep.report.run_report.curves", lambda *_, **__: "<svg></svg>")

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out = capsys.readouterr()
        return ended.value.code, out.out, out.err

    return call


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("diffusion", "{kind: diffusion, solver_steps: 2, times: trailing, solver: euler}"),
        (
            "consistency_distillation",
            "{kind: consistency_distillation, times: trailing, sample_times: trailing}",
        ),
        ("latent_consistency", "latent_consistency"),
        ("multi_boundary", "multi_boundary"),
        ("dmd2", "{kind: dmd2, steps: 2, sample_times: {kind: strided, last: t_data}}"),
        ("trajectory_consistency", "trajectory_consistency"),
        ("phased_consistency", "phased_consistency"),
        ("guided_distillation", "guided_distillation"),
    ],
)
def test_a_step_of_training(home, fewstep, method, options):
    """The student has the teacher's parts, another U-Net, makes pictures of prompts, and the same
    in diffusers.
    """
    (home / f"{method}.yaml").write_text(RUN % options)
    code, said, told = fewstep("train", f"{method}.yaml")
    assert code == 0, told
    assert "will not be exported" not in said + told
    folder = home / "runs" / method
    [line] = read_log(folder / "log.jsonl")
    assert all(value == value for value in line.values() if isinstance(value, float))
    student, teacher = load(folder), load(home / "sd")
    assert student.shape == (4, 4, 4)
    for name in ("codec", "conditioner"):
        mine, theirs = (getattr(model, name).state_dict() for model in (student, teacher))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    weights, before = (m.denoiser.network.state_dict() for m in (student, teacher))
    assert max((weights[key] - before[key]).abs().max() for key in before) > 1e-3
    out = home / f"{method}.npz"
    words = ("--prompt", PROMPTS[0], "--num", "2", "--out", str(out))
    code, _, told = fewstep("sample", f"runs/{method}", *words)
    assert code == 0, told
    assert out.is_file()
    code, made, told = fewstep("export", f"runs/{method}", "--to", "diffusers")
    assert code == 0, told
    assert float(made.split()[-1]) <= 1e-4


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("dmd2", "no scheduler knows a student whose jumps end at t_min"),
        ("consistency_distillation", "no scheduler knows a student whose jumps end at t_min"),
        ("continuous_consistency", "diffusers evaluates at whole indices"),
    ],
)
def test_a_student_that_diffusers_cannot_sample(home, fewstep, method, says):
    """Is told of before it is trained, and refused in the same words."""
    (home / "odd.yaml").write_text(RUN % method)
    code, said, told = fewstep("train", "odd.yaml", f"name=odd_{method}")
    assert code == 0, told
    assert f"warning: student will not be exported: {says}" in said + told
    code, _, told = fewstep("export", f"runs/odd_{method}", "--to", "diffusers")
    assert code == 2
    assert says in told


def test_a_lora_of_a_base_in_which_another_lora_is(home, fewstep):
    """Its card says so, and how both are loaded; and other steps, and what hubs would not take."""
    pairs = {"down": torch.ones(2, 8), "up": torch.full((8, 2), 0.1)}
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{key}.lora_{name}.weight": pairs[name] for name in pairs}, home / "own.safetensors"
    )
    (home / "both.yaml").write_text(RUN % "multi_boundary")
    words = ("adaptation=lora", "adaptation.rank=2", "teacher.lora=own.safetensors")
    code, _, told = fewstep("train", "both.yaml", *words, "teacher.lora_strengths=0.5")
    assert code == 0, told
    code, made, told = fewstep("export", "runs/both", "--to", "lora", "--steps", "2")
    assert code == 0, told
    assert "its base has own.safetensors at 0.5 in it: that is loaded, too" in made
    card = (home / "runs" / "both" / "lora" / "README.md").read_text()
    assert "| base | sd with own.safetensors at 0.5 |" in card
    assert "2 steps, sampler euler, scheduler sgm_uniform, beside own.safetensors at 0.5" in card
    assert 'base = "sd"  # what was distilled: its folder, or its name on the hub' in card
    assert "warning: it was not made for 2 steps: look at its images" in made.splitlines()
    assert "steps_offset" not in made + told
    assert "torchvision" not in made + told
    assert "base_model" not in card  # a folder here is none on a hub
    assert "num_inference_steps=2" in card
    for wrong, says in (
        (("--license", "My Own"), "'My Own'"),
        (("--base", ""), "--base is empty"),
        (("--base", "nonsense"), "neither a folder or file that is there, nor a name of the hub"),
        (("--steps", "51"), "51 segments are more"),
    ):
        code, _, told = fewstep("export", "runs/both", "--to", "lora", *wrong)
        assert code == 2
        assert says in told
    beside = ("--out", "elsewhere", "--base", "sd", "--steps", "2")
    assert fewstep("export", "runs/both", "--to", "lora", *beside)[0] == 0
    assert 'base = "../sd"\n' in (home / "elsewhere" / "README.md").read_text()
    words = (*words, "teacher.lora_strengths=1e9", "name=wrong")
    code, _, told = fewstep("train", "both.yaml", *words)
    assert code == 2
    assert "lora_strengths.0: Input should be less than or equal to 10" in told
    code, _, told = fewstep("train", "both.yaml", "teacher=own.safetensors", "name=wrong")
    assert code == 2
    assert "teacher=BASE teacher.lora=own.safetensors" in told


def test_plain_fine_tuning_of_a_few_step_model_is_refused(home, fewstep):
    """Whether it is the teacher or the start; and nothing is begun."""
    lcm = tiny_pipeline("LCMScheduler", SD)
    lcm.save_pretrained(home / "fast")
    (home / "plain.yaml").write_text(RUN % "diffusion")
    for word in ("teacher=fast", "start=fast"):
        code, _, told = fewstep("train", "plain.yaml", word)
        assert code == 2
        assert "few-step model already (its scheduler is LCMScheduler)" in told
        assert "carry the LoRA over" in told
    assert not (home / "runs" / "plain").exists()


def test_what_inspect_says(home, fewstep):
    code, told, _ = fewstep("inspect", "sd")
    assert code == 0
    assert "unet_2d_condition" in told
    assert "caption" in told
    assert "PNDMScheduler" in told
    assert "stable_diffusion" in told


def test_a_student_from_a_cache(home, fewstep, monkeypatch):
    """The same losses, and neither autoencoder nor text encoder is run in training."""
    flipped = (RUN % "latent_consistency").replace("path: pictures", "path: pictures, flip: true")
    slow = flipped.replace("steps: 1", "steps: 4").replace("lr: 0.01", "lr: 0.0001")
    (home / "plain.yaml").write_text(slow)
    told = fewstep("data", "cache", "pictures", "flip=true", "--model", "sd", "--out", "cache")
    assert told[0] == 0, told
    assert fewstep("train", "plain.yaml")[0] == 0
    calls = []
    monkeypatch.setattr(AutoencoderKlModule, "moments", lambda *_: calls.append("pictures"))
    encoded = ClipTextModule.encoded
    monkeypatch.setattr(
        ClipTextModule, "encoded", lambda *given: calls.append("text") or encoded(*given)
    )
    stream = Stream.__call__

    def counted(*given):
        before = len(calls)
        batch = stream(*given)
        assert len(calls) == before
        return batch

    monkeypatch.setattr(Stream, "__call__", counted)
    words = ("data=cached", "data.path=cache", "data.flip=true", "name=cached")
    assert fewstep("train", "plain.yaml", *words)[0] == 0
    assert "pictures" not in calls
    plain, cached = (read_log(home / "runs" / name / "log.jsonl") for name in ("plain", "cached"))
    assert len(plain) == 4
    for mine, theirs in zip(plain, cached, strict=True):
        assert abs(theirs["consistency"] - mine["consistency"]) < 1e-5
