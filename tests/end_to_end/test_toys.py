"""Text, latents and embeddings go from training to samples through a plug-in file (tests/toys.py),
without a line of the package that knows of them.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.cli.conftest import LOOP

from fewstep import plugins
from fewstep.cli.main import main
from fewstep.data.stream import Stream
from fewstep.diffusion.draws import Draws
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.measure import Measure
from fewstep.models.codec import Pixels
from fewstep.models.folder import load
from fewstep.models.request import Request
from fewstep.models.source import Fresh
from fewstep.training.lock import Lock
from fewstep.training.log import read_log

FILE = Path(__file__).parents[1] / "toys.py"
TOYS = plugins.load(FILE)
NAMED = plugins._loaded.pop("toys")  # other tests list what the package has
TEACHER = (
    "train",
    "digits_teacher",
    "data=captioned",
    "teacher.network=toy_text_net",
    "teacher.codec=toy_latents",
    "teacher.conditioner=toy_words",
    "trainer.sample_every=2",
    "trainer.optimizer.lr=0.02",
    "trainer.schedule.warmup=0",
    *LOOP,
)
STUDENT = ("train", "digits_cd", "data=captioned", "teacher=runs/teacher", *LOOP)


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    plugins._loaded["toys"] = NAMED
    yield
    plugins._loaded.pop("toys", None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher of captions in latent space, and its student."""
    folder = tmp_path_factory.mktemp("toys")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in ((*TEACHER, "name=teacher"), (*STUDENT, "name=student")):
            with pytest.raises(SystemExit) as ended:
                main([*words, "--plugin", str(FILE)])
            assert ended.value.code == 0
    return folder / "runs"


@pytest.fixture
def home(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    return runs


@pytest.fixture
def fewstep(home, capsys):
    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--plugin", str(FILE)])
        out = capsys.readouterr()
        return ended.value.code, out.out, out.err

    return call


def test_the_student_carries_its_words_its_codec_and_what_to_show(home):
    teacher, student = load("runs/teacher"), load("runs/student")
    captions = TOYS.Captioned().dataset().rows(torch.arange(64))["caption"]
    for model in (teacher, student):
        assert model.shape == (4, 4, 4)
        assert model.image_shape == (1, 8, 8)
        assert model.examples == {"caption": captions}
    for name in ("codec", "conditioner"):
        mine, theirs = (getattr(m, name).state_dict() for m in (student, teacher))
        assert mine
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert sorted(path.name for path in (home / "student" / "student").iterdir()) == [
        "codec.safetensors",
        "conditioner.safetensors",
        "model.json",
        "model.safetensors",
    ]


def test_the_codec_is_its_own_inverse_and_draws(home):
    codec = load("runs/teacher").codec
    images = torch.rand(5, 1, 8, 8)
    assert codec.decode(codec.encode(images)).sub(images).abs().max() < 1e-6
    drawn = codec.encode(images, Draws(0, range(5))) - codec.encode(images)
    assert 0.005 < drawn.std() < 0.02
    assert torch.equal(
        codec.encode(images, Draws(0, range(5)))[2:4],
        codec.encode(images[2:4], Draws(0, range(2, 4))),
    )


def test_what_a_codec_draws_comes_from_its_moments(home):
    images = torch.rand(5, 1, 8, 8)
    for codec in (load("runs/teacher").codec, Pixels().build()):
        for draws in (None, Draws(0, range(5))):
            again = None if draws is None else Draws(0, range(5))
            told = codec.latents(codec.moments(images), again)
            assert torch.equal(told, codec.encode(images, draws))


@dataclass(frozen=True)
class Heard(Measure):
    """Keeps the captions of the samples."""

    needs: ClassVar[tuple[str, ...]] = ("caption",)
    captions: ClassVar[list[str]] = []

    def __call__(self, samples, reference):
        self.captions[:] = samples.columns["caption"]
        return 0.0


def test_evaluations_ask_for_the_captions_of_the_reference_in_turn(home):
    data = TOYS.Captioned(limit=3, split="test").dataset()
    evaluation = Evaluation.against(data, None, [Heard()], num=7)
    evaluation.of_model("teacher", load("runs/teacher"), load("runs/teacher").sampler)
    captions = data.rows(torch.arange(3))["caption"]
    assert Heard.captions == [*captions, *captions, captions[0]]


class TestGenerating:
    def test_prompts_say_what_is_shown(self, home):
        model = load("runs/teacher")
        alone = model.generate(prompts="a three", num=4, seed=1)
        assert alone.shape == (4, 1, 8, 8)
        assert torch.equal(alone, model.generate(prompts=["a three"] * 4, seed=1))
        other = model.generate(prompts=["a three", "a four", "a three", "a four"], seed=1)
        assert torch.equal(other[[0, 2]], alone[[0, 2]])
        assert (other[[1, 3]] - alone[[1, 3]]).abs().max() > 1e-6

    def test_without_prompts_the_captions_of_the_data(self, home):
        model = load("runs/teacher")
        told = model.generate(prompts=model.examples["caption"][:3], seed=2)
        assert torch.equal(model.generate(num=3, seed=2), told)

    def test_a_negative_prompt_takes_the_place_of_no_prompt(self, home):
        model = load("runs/teacher")
        asked = {"prompts": "a three", "num": 2, "guidance": 3.0}
        plain = model.generate(**asked)
        assert torch.equal(plain, model.generate(**asked, negative=""))
        assert (plain - model.generate(**asked, negative="a four")).abs().max() > 1e-6
        with pytest.raises(ValueError, match="negative condition needs guidance"):
            model.generate(prompts="a three", negative="a four", guidance=1.0)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"labels": [3]}, "knows no labels"),
            ({"prompts": ["a cat"]}, "knows no word 'cat'"),
            ({"prompts": ["a one", "a two"], "num": 3}, "2 captions for 3 images"),
            ({"prompts": []}, "number of images must be at least 1, got 0"),
        ],
    )
    def test_mistakes(self, home, options, says):
        with pytest.raises(ValueError, match=says):
            load("runs/student").generate(**options)

    def test_a_stored_embedding_is_taken(self, home):
        model = load("runs/teacher")
        words = model.conditioner.embedded(["a three", "a four"])
        told = model.answer(Request({"embedding": words}, seed=1)).images()
        assert torch.equal(told, model.generate(prompts=["a three", "a four"], seed=1))

    def test_one_may_watch(self, home):
        answer = load("runs/student").answer(Request(num=5, steps=3, batch=2, seed=4))
        seen = list(answer.walk())
        assert [(s.rows.start, s.rows.stop, s.step, s.steps) for s in seen] == [
            (first, min(5, first + 2), step, 3) for first in (0, 2, 4) for step in (1, 2, 3)
        ]
        last = torch.cat([answer.decoded(s.x) for s in seen if s.step == 3])
        assert torch.equal(last, answer.images())


class TestCommandLine:
    def test_sample_inspect_and_go_on(self, fewstep, home):
        code, out, err = fewstep(
            "sample", "runs/student", "--prompt", "a three", "--num", "3", "--out", "x.npz"
        )
        assert (code, err) == (0, "")
        assert np.load("x.npz")["arr_0"].shape[0] == 3
        assert np.load("x.npz")["captions"].tolist() == ["a three"] * 3
        words = ("--prompt", "a three", "--prompt", "a five", "--out", "pictures")
        assert fewstep("sample", "runs/student", *words)[0] == 0
        code, out, _ = fewstep("data", "check", "pictures")
        assert code == 0
        assert "first captions: a three; a five" in out
        code, out, _ = fewstep("inspect", "runs/student")
        assert code == 0
        assert "1×8×8" in out
        assert (home / "teacher" / "samples" / "step-00000002-1.png").is_file()
        code, out, _ = fewstep("train", "runs/student/run.yaml")
        assert code == 0
        assert "finished" in out

    def test_evaluate_and_report(self, fewstep, home):
        """Captions are no labels: what needs these is left out, and said."""
        code, out, err = fewstep(
            "evaluate",
            "runs/student",
            "--reference",
            "captioned",
            "--num",
            "20",
            "--out",
            "result.json",
            "--report",
            "page.html",
        )
        assert (code, err) == (0, "")
        result = json.loads(Path("result.json").read_text())
        assert set(result["values"]) == {"frechet", "kernel_distance"}
        assert result["values"]["frechet"] > 0
        assert set(result["protocol"]["left_out"]) == {"confirmed", "diversity"}
        assert "the samples have no labels" in out
        assert "Fréchet" in Path("page.html").read_text(encoding="utf-8")

    def test_a_stopped_run_goes_on_bit_by_bit(self, fewstep, home):
        """Words, latents and their draws are the same after a resume."""
        assert fewstep(*STUDENT, "name=cut", "trainer.save_every=1")[0] == 0
        for path in sorted((home / "cut" / "checkpoints").glob("step-*"))[1:]:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        (home / "cut" / "status.json").unlink()
        assert fewstep("train", "runs/cut/run.yaml")[0] == 0
        straight, again = (read_log(home / name / "log.jsonl") for name in ("student", "cut"))
        assert straight == again
        mine, theirs = (load(f"runs/{name}").denoiser.state_dict() for name in ("student", "cut"))
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)

    def test_without_the_plug_in_it_is_named(self, home, capsys, monkeypatch):
        monkeypatch.setattr(plugins, "_loaded", {})
        with pytest.raises(SystemExit) as ended:
            main(["sample", "runs/student", "--out", "y.npz"])
        assert ended.value.code == 2
        assert "toys.py" in capsys.readouterr().err


class TestCache:
    CACHE = ("data", "cache", "captioned", "--model", "runs/teacher")

    @pytest.fixture(scope="class")
    def cache(self, runs):
        """A folder that the verb has written."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(runs.parent)
            with pytest.raises(SystemExit) as ended:
                main([*self.CACHE, "--out", "cache", "--plugin", str(FILE)])
        assert ended.value.code == 0
        return runs.parent / "cache"

    def test_a_student_from_the_cache_is_the_one_from_the_data(self, fewstep, home, cache):
        """The test set is held out as before, and the examples are the same captions."""
        words = ("data=cached", f"data.path={cache}", "name=again", "trainer.health_every=2")
        assert fewstep(*STUDENT, *words)[0] == 0
        again, student = load("runs/again"), load("runs/student")
        assert again.examples == student.examples
        for name, tensor in student.denoiser.state_dict().items():
            assert (again.denoiser.state_dict()[name] - tensor).abs().max() < 1e-5, name
        lines = zip(
            read_log(home / "again" / "log.jsonl"), read_log(home / "student" / "log.jsonl")
        )
        assert all(abs(a["consistency"] - b["consistency"]) < 1e-5 for a, b in lines)
        images = [model.generate(prompts="a three", num=2) for model in (again, student)]
        assert (images[0] - images[1]).abs().max() < 1e-4

    def test_what_is_there_is_kept(self, fewstep, cache):
        before = (cache / "shard-00000.safetensors").stat().st_mtime_ns
        code, out, err = fewstep(*self.CACHE, "--out", "cache")
        assert (code, err) == (0, "")
        assert "cache: 1,797 of 1,797 rows\n" in out
        assert (cache / "shard-00000.safetensors").stat().st_mtime_ns == before
        code, out, _ = fewstep("data", "check", "cache")
        assert code == 0
        assert "kind: cached\n" in out
        assert "rows: 1797 of moments (4×4×4), embedding (3×6), caption\n" in out
        assert "split test: 382\n" in out

    @pytest.mark.parametrize(
        ("words", "code", "says"),
        [
            (
                ("--dtype", "fp16", "--out", "cache"),
                3,
                "something else: dtype: fp32 -> fp16; choose",
            ),
            (("limit=9", "--out", "cache"), 3, "cache is a cache of something else: data: "),
            (("flip=true", "--out", "cache"), 3, "flip: False -> True"),
            (("--codec", "digits_teacher", "--out", "cache"), 3, "toy_latents -> pixels"),
            (("--dtype", "fp8", "--out", "x"), 2, "no dtype 'fp8'; valid: fp16, fp32"),
            (("--out", "runs"), 2, "runs holds other files"),
            (("--out", "runs/student/run.yaml"), 2, "run.yaml is no folder; choose another --out"),
            (("--model", "nowhere", "--out", "x"), 2, "nowhere"),
            (("holds=[image,label]", "--out", "x"), 2, "toy_words: it reads embedding or caption"),
        ],
    )
    def test_what_is_not_cached(self, fewstep, cache, words, code, says):
        ended, _, err = fewstep(*self.CACHE, *words)
        assert (ended, err.count("\n")) == (code, 1)
        assert says in err
        assert not (cache.parent / "x" / "index.json").exists()
        assert not (cache.parent / "runs" / ".lock").exists()  # nothing of others is touched

    def test_latents_are_no_reference(self, fewstep, cache):
        code, _, err = fewstep("evaluate", "runs/student", "--reference", "cache")
        assert code == 2
        assert "hold no images to compare with, only " in err
        assert "--reference PICTURES" in err

    def test_nobody_says_the_model(self, fewstep):
        code, _, err = fewstep("data", "cache", "captioned", "--out", "x")
        assert (code, err) == (
            2,
            "error: --model says whose codec and conditioner encode the data\n",
        )

    def test_captions_that_are_cut_are_told(self, fewstep, home):
        Path("long.txt").write_text("a three\na three a four a\n")
        code, out, _ = fewstep("data", "cache", "long.txt", "--model", "runs/teacher", "--out", "l")
        assert code == 0
        assert "1 of 2 captions are cut" in out

    def test_one_process_at_a_time(self, fewstep, home):
        lock = Lock(home.parent / "busy")
        lock.take()
        code, _, err = fewstep(*self.CACHE, "--out", "busy")
        lock.release()
        assert code == 3
        assert "busy is in use by process" in err

    def test_no_room_on_the_disk(self, fewstep, monkeypatch):
        full = shutil._ntuple_diskusage(10**9, 10**9, 10)
        monkeypatch.setattr("fewstep.cli.cache.shutil.disk_usage", lambda _: full)
        code, _, err = fewstep(*self.CACHE, "--out", "full")
        assert code == 2
        assert "no space left for the cache: 0.00 MB are free, the cache takes 0." in err

    def test_another_model_is_refused_by_a_run(self, fewstep, cache):
        words = ("data=cached", f"data.path={cache}", "trainer.seed=3", "name=other")
        code, _, err = fewstep(*TEACHER, *words)
        assert code == 2
        assert "the data were cached with another codec than the model's: weights: " in err
        parts = ("teacher.codec_from=runs/teacher", "teacher.conditioner_from=runs/teacher")
        alone = [word for word in (*TEACHER, *words) if "toy_latents" not in word]
        alone = [word for word in alone if "toy_words" not in word]
        assert fewstep(*alone, *parts)[0] == 0


@pytest.mark.parametrize("holds", [("latent", "embedding"), ("latent", "label"), ("image",)])
def test_rows_may_hold_latents_and_embeddings(holds):
    """What is stored is taken as it is; nothing is encoded again."""
    dataset = TOYS.Captioned(holds=holds, split="all").dataset()
    words = "embedding" in holds
    source = Fresh(
        network=TOYS.ToyTextNet() if words else TOYS.TINY,
        codec=TOYS.ToyLatents(),
        conditioner=TOYS.ToyWords() if words else None,
    )
    model = source.load(dataset.space, 0)
    assert model.shape == (4, 4, 4)
    stream = Stream(dataset, model.codec, model.conditioner, 0, 8)
    rows = range(2, 6)
    batch = stream(3, rows, Draws(0, rows))
    index = stream.ids(3, rows)
    if "latent" in holds:
        assert torch.equal(batch.data, dataset.rows(index)["latent"])
    else:
        assert batch.shape == (4, 4, 4)
    if words:
        assert torch.equal(batch.cond["text"], dataset.rows(index)["embedding"])
        assert batch.cond.null["text"].shape == (1, 3, 6)
    assert set(batch.cond.values) == ({"text"} if words else {"label"} & set(holds))


def test_rows_without_samples():
    """Prompts only: the model says the shape, and noise has it."""
    dataset = TOYS.Captioned(holds=("caption",), split="all").dataset()
    assert dataset.shape == ()
    model = Fresh(
        network=TOYS.ToyTextNet(), codec=TOYS.ToyLatents(), conditioner=TOYS.ToyWords()
    ).load(TOYS.Captioned(split="all").dataset().space, 0)
    assert model.unfit(dataset.space) is None
    stream = Stream(dataset, model.codec, model.conditioner, 0, 8, model.shape)
    batch = stream(0, range(8), Draws(0, range(8)))
    assert batch.x0 is None
    assert batch.noise().shape == (8, 4, 4, 4)
    with pytest.raises(ValueError, match="needs images or latents, the data has caption"):
        Fresh().load(dataset.space, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("data.holds=[caption]",), "needs images or latents, the data has caption"),
        (
            ("data.holds=[caption]", "method=dmd2"),
            "method.gan=0 method.gan_fake=0 trains",
        ),
        (
            ("data.holds=[caption]", "method=latent_consistency"),
            "method.simulated=1 trains without",
        ),
        (("data.holds=[image,label]",), r"reads embedding or caption, the data has image"),
        (("data=digits",), r"reads embedding or caption, the data has image"),
    ],
)
def test_data_that_does_not_fit_is_refused_at_the_door(fewstep, options, says):
    import re

    code, _, err = fewstep(*STUDENT, *options, "name=refused")
    assert code == 2
    assert re.search(says, err)
    assert err.count("\n") == 1


def test_a_student_trains_on_prompts_alone(fewstep, home):
    """The student answers noise, and the teacher steps from there."""
    options = ("data.holds=[caption]", "method=latent_consistency", "method.simulated=1")
    code, _, err = fewstep(*STUDENT, *options, "name=prompted", "trainer.steps=2")
    assert code == 0, err
    assert load("runs/prompted").generate(prompts="a three", steps=2).shape == (1, 1, 8, 8)
