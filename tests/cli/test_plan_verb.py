"""`fewstep plan`: before there are data or teachers, for every recipe."""

import pytest
from PIL import Image
from tests.cli.conftest import LOOP, NETWORK
from tests.tiny_diffusion import SD15, tiny_pipeline

from fewstep.cli.configure import configured
from fewstep.cli.plan import outside
from fewstep.models import sd15
from fewstep.models.autoencoder_kl import AutoencoderKlModule
from fewstep.models.clip_text import ClipTextModule
from fewstep.models.named import shipped
from fewstep.models.source import Saved
from fewstep.models.space import Classes
from fewstep.recipes import listed
from fewstep.training import plan

SMALL = (*NETWORK, "trainer.batch=4", "trainer.device=cpu")


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """With Stable Diffusion 1.5 in miniature: the whole of it takes minutes."""
    monkeypatch.setattr(plan, "BUDGET", 0.0)
    for name, config in SD15.items():
        monkeypatch.setattr(sd15, name, config)


@pytest.mark.parametrize("recipe", listed())
def test_every_recipe_has_a_plan_without_data_or_teacher(fewstep, recipe, tmp_path):
    """In an empty folder, on images of 8×8 in the recipe's colours, or on what a shipped teacher
    makes.
    """
    run, _ = configured(recipe, [])
    channels = outside(run, None, None).shape[0]
    ships = isinstance(run.teacher, Saved) and run.teacher.path in shipped()
    shape = () if ships else ("--shape", f"{channels},8,8")
    ended = fewstep("plan", recipe, *shape, "trainer.batch=2", "trainer.device=cpu")
    assert ended.code == 0
    assert ended.err == ""
    for word in ("student", "activations", "peak", "s a step", "checkpoints of"):
        assert word in ended.out
    assert list(tmp_path.iterdir()) == []


def test_numbers_follow_the_options(fewstep):
    def peak(*words):
        lines = fewstep("plan", "digits_teacher", *SMALL, *words).out.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith("peak")))

    plain = peak("trainer.health_every=0")
    assert peak("trainer.health_every=0", "trainer.batch=64") > 4 * plain
    assert peak("trainer.health_every=0", "--shape", "1,16,16") > 2 * plain
    assert peak() > plain  # health looks at 256 images at once


def test_what_is_left_of_the_first_weights(fewstep):
    options = ("trainer.steps=300", "trainer.ema=[0.999,0.5]", "trainer.schedule.warmup=400")
    plain = fewstep("plan", "digits_teacher", *SMALL, *options, "trainer.ema_warmup=false").out
    assert "averages: 0.999 with 74.1%, 0.5 with 0.0% first weights at the end" in plain
    assert "warning: 74% of the average 0.999 will be weights from before the run" in plain
    assert "warning: the learning rate ends at 75% of itself" in plain
    warmed = fewstep("plan", "digits_teacher", *SMALL, *options[:2]).out
    assert "averages: 0.999 with 0.0%, 0.5 with 0.0% first weights at the end" in warmed
    assert "warning" not in warmed


def test_checkpoints_that_stay_are_counted(fewstep):
    plain = fewstep("plan", "digits_teacher", *SMALL, "trainer.keep=1").out
    assert "disk: 3 checkpoints of" in plain
    kept = ("trainer.steps=300", "trainer.keep_every=100", "trainer.keep_best=health.distance")
    assert "disk: 7 checkpoints of" in fewstep("plan", "digits_teacher", *SMALL, *kept).out


def test_a_finished_run_is_the_teacher(fewstep, runs):
    """Of 8 channels, where the recipe of that name does not exist."""
    ended = fewstep("plan", "digits_cd", "teacher=runs/tiny", *LOOP)
    assert ended.code == 0
    assert (
        float(
            next(line.split()[-1] for line in ended.out.splitlines() if line.startswith("teacher"))
        )
        < 0.5
    )


def test_an_unfinished_run_is_the_teacher_that_it_will_be(fewstep, unfinished):
    ended = fewstep("plan", "digits_cd", "teacher=runs/half", *LOOP)
    assert ended.code == 0
    assert (
        float(
            next(line.split()[-1] for line in ended.out.splitlines() if line.startswith("teacher"))
        )
        < 0.5
    )


def test_a_run_file_can_be_planned(fewstep, runs):
    assert fewstep("plan", runs / "tiny" / "run.yaml").code == 0


def test_known_shapes_are_right(fewstep):
    from fewstep.data.digits import Digits

    dataset = Digits().dataset()
    known = Digits().foreseen()
    assert (dataset.shape, dataset.classes) == (known.shape, known.classes)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("digits_tacher",), ["digits_tacher", "did you mean digits_teacher"]),
        (("digits_teacher", "trainer.batch=0"), ["trainer.batch", "greater than or equal to 1"]),
        (("digits_teacher", "--shape", "8,8"), ["--shape", "3,32,32"]),
        (("digits_teacher", "--shape", "1,0,8"), ["--shape", "3,32,32"]),
        (("digits_teacher", "--shape", "1,²,8"), ["--shape", "3,32,32"]),
        (("digits_teacher", "--shape", f"1,8,{'9' * 5000}"), ["--shape", "999"]),
        (("digits_teacher", "--shape", "1,1000000,1000000"), ["--shape", "64,000,000 numbers"]),
        (("digits_teacher", "--shape", "1,7,8"), ["sides divide by 2", "7"]),
        (("digits_teacher", "--processes", "0"), ["--processes", "1"]),
        (("digits_teacher", "data=folder", "data.path=x"), ["folder", "--shape"]),
        (("digits_cd", "teacher=runs/nothing"), ["runs/nothing", "shipped models"]),
        (("digits_cd", "--shape", "3,8,8"), ["digits_teacher", "(1, 8, 8)", "(3, 8, 8)"]),
        (("digits_cd", "--classes", "5"), ["10 classes", "5"]),
        (("digits_teacher", "trainer.device=tpu"), ["tpu"]),
        (("digits_cd", "trainer.optimizers.teacher=sgd"), ["student", "teacher"]),
        (
            ("digits_teacher", "trainer.sharding=full", "trainer.compile=true"),
            "compile does not go with sharding",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_end_with_one_line(refused, words, says):
    refused(2, "plan", *words, says=says)


@pytest.mark.filterwarnings("default")
def test_what_a_method_doubts_is_said(fewstep):
    words = ("digits_cd", "method=moment_matching", "trainer.batch=4", "trainer.device=cpu")
    ended = fewstep("plan", *words)
    assert "warning: moment matching: in groups of samples=4 rows with 10 labels" in ended.err
    assert fewstep("plan", *words, "trainer.batch=16", "method.samples=16").err == ""


def test_what_is_trained_on_captions(done):
    """The data are not there; what stands for them has captions."""
    out = done(
        *("plan", "shapes_clip", "data=folder", "data.path=x", "--shape", "3,8,8"),
        *(
            "teacher.text.config={hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
            "num_attention_heads: 2, projection_dim: 16}",
        ),
        *("teacher.pictures={channels: 4, features: 16}", "method.rows=4", "trainer.batch=8"),
        *("trainer.health_every=0", "trainer.device=cpu"),
    )
    assert "batch: 8 rows" in out


def test_what_stable_diffusion_needs_is_told_by_role(done, monkeypatch):
    """Without weights, and without a look for them: the additions beside one base, and what makes
    latents and embeddings.
    """
    monkeypatch.setattr("fewstep.models.named.downloaded", None)
    monkeypatch.setattr("fewstep.cli.plan.LARGE", 10_000)
    rows = ("trainer.batch=3", "trainer.micro_batch=1")
    out = done("plan", "sd15_lcm_lora", "--shape", "3,8,8", *rows, "trainer.device=cpu")
    assert out.startswith("trying steps of a network of 0 M parameters: minutes, on a CPU\n")
    sizes = {}
    for line in out.splitlines():
        role, always, size = line.partition(" always ")
        if always:
            sizes[role.strip()] = float(size)
    own = ["student", "student: averages", "student: optimizer"]  # which is its own target
    assert list(sizes) == ["shared base", *own, "encoders", "as loaded"]
    assert sizes["student: optimizer"] == pytest.approx(2 * sizes["student"], abs=0.1)
    assert sizes["as loaded"] == pytest.approx(2 * sizes["shared base"], abs=0.2)  # fp32, 16 bits
    assert "batch: 3 rows, in 3 passes of 1" in out


def test_the_pictures_of_a_recipe_are_known():
    run, _ = configured("sd15_cd", [])
    space = outside(run, None, None)
    assert (space.shape, space.classes) == ((3, 512, 512), 0)


def test_a_cache_is_planned_without_its_encoders(fewstep, tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path / "sd")
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"number {i}")
    made = fewstep("data", "cache", "pictures", "size=8", "--model", "sd", "--out", "cache")
    assert made.code == 0, made.err

    def none(*_):
        raise AssertionError("an encoder runs")

    monkeypatch.setattr(AutoencoderKlModule, "encode", none)
    monkeypatch.setattr(ClipTextModule, "forward", none)
    words = ("teacher=sd", "trainer.batch=2", "trainer.micro_batch=0", "trainer.device=cpu")
    ended = fewstep("plan", "sd15_lcm_lora", *words, "data=cached", "data.path=cache")
    assert ended.code == 0, ended.err
    assert "batch: 2 rows, in 1 pass of 2" in ended.out
    run, _ = configured("sd15_lcm_lora", ["data=cached", "data.path=cache"])
    known, labelled = outside(run, None, None), outside(run, None, 3)
    assert labelled.columns == {**known.columns, "label": Classes(3)}
    assert labelled.shape == known.shape == (4, 4, 4)


def test_prompts_alone_are_planned(fewstep, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    data = ("data=prompts", "data.path=prompts.txt", "method.gan=0", "method.gan_fake=0")
    ended = fewstep("plan", "sd15_dmd2_lora", *data, "trainer.batch=1", "trainer.device=cpu")
    assert ended.code == 0, ended.err
    assert "parameters of student" in ended.out
