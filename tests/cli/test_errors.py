"""Every mistake ends with its exit code and one line that names what is wrong and what would be
right.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.conftest import LOOP, NETWORK, STUDENT, TEACHER
from tests.data.idx_files import idx_bytes, write_idx, write_pair
from tests.data.picture_files import cifar_bytes, encoded, made, write_parquet, write_pictures

from fewstep.cli.main import main
from fewstep.models.unet import UNetModule

SAMPLE = ("sample", "runs/cd", "--out", "x.png")
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def asleep(monkeypatch):
    """No network may be evaluated: what is wrong with a command is found before its work, not
    behind it.
    """

    def forward(*_, **__):
        raise AssertionError("work was done before the mistake was found")

    monkeypatch.setattr(UNetModule, "forward", forward)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*SAMPLE, "--stepz", "4"), ["--stepz", "--steps"]),
        (("trian", "digits_cd"), ["trian", "train"]),
        (("data", "chek", "digits"), ["chek", "check"]),
        (("sample", "runs/cd"), "--out"),
        (("sample",), "Missing"),
        (("inspect",), "Missing"),
        ((*SAMPLE, "more"), "more"),
        ((*SAMPLE, "--steps", "0"), ["--steps", "1"]),
        ((*SAMPLE, "--steps", "two"), "--steps"),
        ((*SAMPLE, "--steps"), "--steps"),
        ((*SAMPLE, "--num", "0"), ["--num", "1"]),
        ((*SAMPLE, "--batch", "0"), ["--batch", "1"]),
        (("evaluate", "runs/cd", "--num", "1"), ["--num", "2"]),
        (("--nosuch", "demo"), "--nosuch"),
        (("train",), "Missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage(refused, words, says):
    refused(2, *words, says=says)


@pytest.mark.parametrize("words", [(), ("data",)])
def test_no_verb_gives_the_help(fewstep, words):
    ended = fewstep(*words)
    assert ended.code in (0, 2)
    assert "Usage" in ended.out + ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trainer.steps=abc", ["trainer.steps", "integer", "'abc'"]),
        ("trainer.steps=0", ["trainer.steps", "greater than or equal to 1"]),
        ("trainer.stepz=5", ["trainer.stepz", "did you mean steps"]),
        ("method=consistancy_training", ["method", "did you mean consistency_training"]),
        ("method.densty=log_normal", ["method.densty", "did you mean density"]),
        ("method.density=log_nrmal", ["method.density", "did you mean log_normal"]),
        ("method.density.std=-1", ["method.density.std", "greater than 0"]),
        ("method.solver_steps=0", ["method.solver_steps", "greater than or equal to 1"]),
        ("data=digitz", ["data", "did you mean digits"]),
        ("data.path=mnist", ["data.path", "digits has no option"]),
        ("data.split=Train", ["data.split", "'train'"]),
        ("data.fraction=0", ["no images left", "fraction=0"]),
        ("trainer.optimizer=lion", ["trainer.optimizer", "adam_w"]),
        ("trainer.optimizer.lr=0", ["trainer.optimizer.lr", "greater than 0"]),
        ("trainer.optimizer.lr=.inf", "trainer.optimizer.lr"),
        ("trainer.optimizers={studnt: adam_w}", ["studnt", "student"]),
        ("trainer.precision=fp64", ["trainer.precision", "'bf16'"]),
        ("trainer.ema=[]", ["trainer", "ema needs at least one decay"]),
        ("trainer.ema=[1.0]", ["trainer.ema.0", "less than 1"]),
        ("trainer.device=quark", ["device", "quark"]),
        ("trainer.seed=99999999999999999999", "trainer.seed"),
        ("trainer.seed.x=4", "trainer.seed"),
        ("teacher.network.groups=3", ["8 channels", "groups=3"]),
        ("teacher.network.multipliers=[1,1,1,1,1]", ["divide by 16", "(1, 8, 8)"]),
        ("teacher.network.extra=[foo]", ["foo", "guidance"]),
        ("teacher.process.t_min=100", ["t_min", "t_max"]),
        ("dropout=2", ["dropout", "less than or equal to 1"]),
        ("trainr.steps=5", ["trainr", "did you mean trainer"]),
        ("trainer", ["option=value", "'trainer'"]),
        ("=4", "option"),
        ("name=../x", ["name=", "plain folder name"]),
        ("name=..", ["name=", "plain folder name"]),
        ("name=.", ["name=", "plain folder name"]),
        ("name=/tmp/x", ["name=", "plain folder name"]),
        ("name=", ["name=", "plain folder name"]),
        ("trainer.ema=[0.9", "trainer.ema=[0.9"),
        ("trainer.ema=*x", "trainer.ema=*x"),
    ],
)
def test_configuration(refused, asleep, tmp_path, word, says):
    refused(2, *TEACHER, "name=new", word, says=says)
    assert [path.name for path in tmp_path.iterdir() if path.name != "runs"] == []


def test_several_wrong_values_give_a_line_each(fewstep):
    ended = fewstep(
        *TEACHER, "name=new", "trainer.steps=abc", "trainer.batch=0", "method.densty=3", "dropout=2"
    )
    lines = ended.err.splitlines()
    assert ended.code == 2
    assert len(lines) == 4
    for line, path in zip(
        sorted(lines), ("dropout", "method.densty", "trainer.batch", "trainer.steps"), strict=True
    ):
        assert line.startswith(f"error: {path}: ")
        assert "got" in line
    assert not Path("runs/new").exists()


def test_an_unknown_recipe(refused):
    refused(2, "train", "digits_teachr", says=["digits_teachr", "did you mean digits_teacher"])
    refused(2, "train", "qqq", says=["qqq", "fewstep inspect recipes"])
    refused(2, "train", "nothing.yaml", says="no run file nothing.yaml")
    refused(2, "demo", "trainer.stepz=4", says=["trainer.stepz", "did you mean steps"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"- 1\n", "no run file"),
        (b"", "no run file"),
        (b"a: &x 3\nb: *x\n", "aliases are not allowed"),
        (b"a: [\n", "not valid YAML"),
        (b"method: diffusion\nmethod: diffusion\n", ["duplicate", "method"]),
        (b"method: !!python/object/apply:os.system ['touch pwned']\n", "not valid YAML"),
        (b"\xff\xfe\x00x", "mine.yaml"),
        (b"[" * 1000, "mine.yaml"),
        (b"a: " + b"x" * 2_000_000, "too long"),
        (b"method: diffusion\n", "data"),
        (b"data: digits\nmethod: diffusion\nteacher: {kind: saved}\n", "teacher.path"),
    ],
    ids=[
        "list",
        "empty",
        "alias",
        "open",
        "duplicate",
        "tag",
        "binary",
        "deep",
        "long",
        "no data",
        "no path",
    ],
)
def test_run_files(refused, text, says):
    Path("mine.yaml").write_bytes(text)
    line = refused(2, "train", "mine.yaml", says=says)
    assert "suppress" not in line  # ruamel's advice to its own users is wrong for ours
    assert not Path("pwned").exists()


def mnist(*words):
    return ("train", "mnist_teacher", *NETWORK, *LOOP, "name=new", *words)


class TestData:
    def test_missing(self, refused):
        refused(2, *mnist(), says="data.path=")
        refused(2, *mnist("data.path=nowhere"), says=["nowhere", "expected a folder or a file"])
        refused(2, "data", "check", "nowhere", says=["nowhere", "digits"])
        refused(2, "evaluate", "runs/cd", "--reference", "nowhere", says=["nowhere", "digits"])

    def test_an_empty_folder(self, refused):
        Path("data").mkdir()
        refused(2, *mnist("data.path=data"), says=["no IDX images in data", "nothing"])

    def test_a_file_that_is_no_data(self, refused):
        Path("notes.txt").write_text("x")
        refused(2, "data", "check", "notes.txt", says="notes.txt")

    def test_truncated(self, refused, tmp_path):
        images, _ = write_pair(tmp_path / "data", 30)
        (tmp_path / "data" / IMAGES).write_bytes(idx_bytes(images)[:-100])
        refused(2, *mnist("data.path=data"), says=[IMAGES, "1920", "1820"])
        refused(2, "data", "check", "data", says=IMAGES)

    def test_a_forged_header_is_no_lack_of_memory(self, refused, tmp_path):
        images, _ = write_pair(tmp_path / "data", 30)
        content = bytearray(idx_bytes(images))
        content[4] = 0x80
        (tmp_path / "data" / IMAGES).write_bytes(content)
        refused(2, "data", "check", "data", says=IMAGES)

    def test_labels_out_of_range(self, refused, tmp_path):
        write_pair(tmp_path / "data", 30)
        write_idx(tmp_path / "data" / LABELS, np.where(np.arange(30) == 7, 12, 3))
        refused(
            2, *mnist("data.path=data"), says=[LABELS, "0 … 9", "12 of image 7", "data.classes"]
        )

    def test_counts_that_differ(self, refused, tmp_path):
        write_pair(tmp_path / "data", 30)
        write_idx(tmp_path / "data" / LABELS, np.zeros(7))
        refused(2, *mnist("data.path=data"), says=[LABELS, "7 labels", "30 images"])

    def test_options_of_data_check(self, refused):
        refused(2, "data", "check", "digits", "limt=3", says=["limt", "did you mean limit"])
        refused(2, "data", "check", "digits", "limit=abc", says=["limit", "'abc'"])
        refused(2, "data", "check", "digits", "limit", says="limit")

    def test_what_cannot_begin_leaves_no_run(self, refused, runs):
        """An empty folder of that name would be taken for a run by the next command."""
        write_pair(Path("data"), 30, size=12)
        refused(2, *mnist("data.path=nowhere"))
        refused(2, *mnist("data.path=data", "teacher.network.multipliers=[1,1,1,1]"))
        refused(2, *STUDENT, "name=new", "teacher=nobody")
        assert sorted(path.name for path in runs.iterdir()) == ["cd", "tiny"]


class TestTeachers:
    def test_another_shape(self, refused, runs):
        write_pair(Path("data"), 30, size=28)
        refused(
            2,
            *("train", "mnist_cd", "data.path=data", "teacher=runs/tiny", *LOOP, "name=new"),
            says=["runs/tiny", "(1, 8, 8)", "(1, 28, 28)"],
        )

    def test_other_classes(self, refused, runs):
        write_pair(Path("data"), 30, size=8)
        words = (
            "train",
            "mnist_cd",
            "data.path=data",
            "data.classes=26",
            "teacher=runs/tiny",
            *LOOP,
            "name=new",
        )
        refused(2, *words, says=["runs/tiny", "10 classes", "26"])

    def test_missing_and_foreign(self, refused, unfinished):
        refused(2, *STUDENT, "name=new", "teacher=runs/nobody", says=["runs/nobody", "shipped"])
        refused(
            2,
            *STUDENT,
            "name=new",
            "teacher=runs/half",
            says=["runs/half", "no finished model yet"],
        )
        refused(2, *STUDENT, "name=new", "teacher=digits_classifier", says="digits_classifier")
        refused(2, *STUDENT, "name=new", "start=nobody", says="nobody")

    def test_an_average_that_it_does_not_have(self, refused, runs):
        refused(2, *STUDENT, "name=new", "teacher.ema=0.3", says=["0.3", "0.9995"])

    def test_a_model_that_the_method_cannot_train(self, refused, runs):
        """A classifier's method on a diffusion model, and the other way round."""
        refused(
            2,
            "train",
            "digits_classifier",
            *LOOP,
            "teacher=runs/tiny",
            "name=new",
            says="runs/tiny",
        )
        refused(2, *TEACHER, "teacher=fresh_classifier", "name=new", says="classifier")


class TestRuns:
    def test_every_checkpoint_truncated(self, refused, unfinished):
        for file in unfinished.rglob("nets.safetensors"):
            file.write_bytes(file.read_bytes()[:100])
        for _ in range(2):  # also when all of them were set aside before
            refused(3, *TEACHER, "name=half", says=["no checkpoint", "--restart"])

    def test_another_configuration(self, refused, runs):
        line = refused(
            3,
            *(
                *TEACHER,
                "name=tiny",
                "trainer.seed=5",
                "method.label_dropout=0.3",
                "trainer.optimizer.lr=0.01",
            ),
            says=[
                "method.label_dropout: 0.1 -> 0.3",
                "trainer.seed: 0 -> 5",
                "trainer.optimizer.lr: 0.02 -> 0.01",
            ],
        )
        assert "runs/tiny" in line
        assert "--restart" in line
        assert "name=" in line
        assert line.count("->") == 3

    def test_other_data_in_an_unfinished_run(self, refused, unfinished):
        refused(3, *TEACHER, "name=half", "data.limit=63", says="data.limit: 64 -> 63")

    def test_another_method(self, refused, runs):
        refused(
            3,
            *STUDENT,
            "name=cd",
            "method=consistency_training",
            says=["method.kind", "consistency_training"],
        )

    def test_a_newer_checkpoint(self, refused, unfinished):
        from fewstep.training.checkpoint import _own_hash

        for file in unfinished.rglob("manifest.json"):
            manifest = json.loads(file.read_text())
            del manifest["sha256"]
            manifest["format"] = 2
            file.write_text(json.dumps(manifest | {"sha256": _own_hash(manifest)}))
        refused(3, *TEACHER, "name=half", says="format 2")

    def test_a_run_in_use(self, refused, unfinished):
        from fewstep.training.checkpoint import Lock

        lock = Lock(unfinished)
        refused(3, *TEACHER, "name=half", says=["in use", "process"])
        lock.release()

    @pytest.mark.parametrize("text", [b"- 1\n", b"a: [", b"\xff\xfe", b""])
    def test_a_damaged_run_file_in_the_folder(self, fewstep, unfinished, text):
        (unfinished / "run.yaml").write_bytes(text)
        ended = fewstep(*TEACHER, "name=half")
        assert ended.code in (2, 3)
        assert len(ended.err.splitlines()) == 1
        assert "run.yaml" in ended.err or "another configuration" in ended.err

    @pytest.mark.parametrize("text", ["{", "{}"])
    def test_a_damaged_status(self, fewstep, unfinished, text):
        """The status is for people and can be made again: it may stop nothing, or be named."""
        (unfinished / "status.json").write_text(text)
        ended = fewstep(*TEACHER, "name=half")
        assert ended.code == 0 or "status.json" in ended.err

    def test_runs_is_a_file(self, refused):
        Path("runs").write_text("x")
        line = refused(2, *TEACHER, "name=new", says="runs")
        assert "File exists" not in line

    def test_divergence(self, refused):
        words = (
            *TEACHER,
            "name=new",
            "trainer.optimizer.lr=1e30",
            "trainer.max_skips=0",
            "trainer.log_every=1",
        )
        refused(4, *words, says=["non-finite", "learning rate", "diverged.json"])
        assert json.loads(Path("runs/new/status.json").read_text())["state"] == "diverged"
        assert not Path("runs/new/student").exists()


class TestModels:
    def test_foreign_things(self, refused):
        Path("model.pt").write_bytes(b"x")
        Path("folder").mkdir()
        refused(2, "sample", "model.pt", "--out", "x.png", says=["model.pt", "model.json"])
        refused(2, "sample", "folder", "--out", "x.png", says=["folder", "model.json"])
        refused(2, "sample", "nobody", "--out", "x.png", says=["nobody", "digits_classifier"])
        refused(2, "inspect", "methodz", says="methodz")
        refused(2, "inspect", "model.pt", says="model.pt")

    def test_an_unfinished_run(self, refused, unfinished):
        for words in (
            ("sample", "runs/half", "--out", "x.png"),
            ("evaluate", "runs/half"),
            ("inspect", "runs/half"),
        ):
            refused(2, *words, says=["runs/half", "no finished model yet"])

    def test_damage(self, refused, runs):
        file = runs / "cd" / "student" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        refused(2, *SAMPLE, says="runs/cd/student/model.safetensors is damaged")
        file.write_bytes(content[:-50])
        refused(2, *SAMPLE, says="runs/cd/student/model.safetensors")
        (file.parent / "model.json").write_text('{"network": {"kind": "unet"}, "format": 1}')
        refused(2, *SAMPLE, says="model.json")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--labels", "3,12"), ["0 … 9", "12"]),
        (("--labels", "3,x"), ["--labels", "'3,x'", "whole numbers"]),
        (("--labels", ""), "--labels"),
        (("--times", "10,1"), ["times", "80", "10"]),
        (("--times", "nan"), ["times", "80"]),
        (("--times", "80,1,2"), "decrease"),
        (("--times", "80,0.0001"), ["0.002", "80"]),
        (("--times", "80,x"), ["--times", "numbers"]),
        (("--times", "80,0.8", "--steps", "3"), ["times", "steps"]),
        (("--sampler", "hoin"), ["hoin", "heun"]),
        (("--dtype", "fp23"), ["fp23", "fp32"]),
        (("--device", "quark"), ["quark"]),
        (("--guidance", "3"), ["guidance", "no unconditional side"]),
        (("--guidance", "nan"), "guidance"),
        (("--ema", "0.5"), ["0.5", "only its own"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_of_sample(refused, runs, asleep, words, says):
    refused(2, *SAMPLE, *words, says=says)
    assert not Path("x.png").exists()


def test_guidance_that_is_no_number(refused, runs, asleep):
    refused(2, "sample", "runs/tiny", "--out", "x.png", "--guidance", "nan", says="guidance")


class TestOutputs:
    @pytest.mark.parametrize("out", ["file/x.png", "file/x.npz", "file/x", "file/a/b/x.png"])
    def test_below_a_file(self, refused, runs, asleep, out):
        Path("file").write_text("mine")
        line = refused(2, "sample", "runs/cd", "--out", out, says="file")
        assert "File exists" not in line  # true, and no help
        assert Path("file").read_text() == "mine"

    @pytest.mark.parametrize("out", ["x.jpg", "mine", "full", "folder.png", "folder.npz"])
    def test_places_that_are_taken_or_unknown(self, refused, runs, asleep, out):
        Path("mine").write_text("mine")
        Path("full").mkdir()
        Path("full/mine").write_text("mine")
        Path("folder.png").mkdir()
        Path("folder.npz").mkdir()
        line = refused(2, "sample", "runs/cd", "--out", out, says=out)
        assert ".tmp-" not in line
        assert Path("mine").read_text() == Path("full/mine").read_text() == "mine"

    def test_a_full_disk(self, refused, runs, tmp_path, monkeypatch):
        def full(path):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fewstep.files.sync", full)
        for out in ("x.png", "x.npz", "x"):
            refused(2, "sample", "runs/cd", "--out", out, says="No space left")
            assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    def test_an_export_takes_no_folder_of_somebody_else(self, refused, runs):
        """An export replaces what is in its folder, so it must be sure that it was an export."""
        Path("thesis").mkdir()
        Path("thesis/chapter.tex").write_text("mine")
        refused(2, "export", "runs/cd", "--to", "diffusers", "--out", "thesis", says="thesis")
        assert Path("thesis/chapter.tex").read_text() == "mine"
        Path("file").write_text("mine")
        refused(2, "export", "runs/cd", "--to", "diffusers", "--out", "file", says="file")
        assert Path("file").read_text() == "mine"

    def test_an_unknown_export(self, refused, runs):
        refused(2, "export", "runs/cd", "--to", "onxx", says=["onxx", "diffusers"])


def save_npz(name="x.npz", **arrays):
    generator = np.random.default_rng(0)
    first = {
        "arr_0": generator.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8),
        "arr_1": np.arange(20) % 10,
    }
    np.savez(name, **{key: value for key, value in (first | arrays).items() if value is not None})
    return first["arr_0"]


class TestEvaluate:
    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({"arr_1": np.arange(7)}, ["7 labels", "20 images"]),
            ({"arr_1": np.arange(20) % 10 + 5}, ["out of range", "0 … 9"]),
            ({"arr_1": np.arange(20)[:, None] % 10}, "arr_1"),
            ({"arr_1": np.array(["a"] * 20)}, "arr_1"),
            ({"arr_0": None}, "arr_0"),
            ({"arr_0": np.zeros((20, 4, 8, 1), np.uint8)}, ["(1, 8, 8)", "(1, 4, 8)"]),
            ({"arr_0": np.zeros((20, 8, 8), np.uint8)}, ["arr_0", "(20, 8, 8)"]),
            ({"arr_0": np.zeros((20, 8, 8, 1))}, ["arr_0", "float64"]),
            (
                {"arr_0": np.zeros((1, 8, 8, 1), np.uint8), "arr_1": None},
                ["at least 2 images", "1"],
            ),
        ],
        ids=["counts", "range", "2-d", "text", "none", "shape", "3-d", "floats", "one"],
    )
    def test_arrays_that_do_not_fit(self, refused, arrays, says):
        save_npz(**arrays)
        refused(2, "evaluate", "x.npz", says=says)

    @pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty", "objects", "gone"])
    def test_damaged_archives(self, refused, damage):
        save_npz()
        content = Path("x.npz").read_bytes()
        if damage == "flip":
            content = content[:200] + bytes([content[200] ^ 1]) + content[201:]
        Path("x.npz").write_bytes(
            {"cut": content[:300], "text": b"hello", "empty": b""}.get(damage, content)
        )
        if damage == "objects":
            np.savez("x.npz", arr_0=np.array([{}], dtype=object))
        if damage == "gone":
            Path("x.npz").unlink()
        line = refused(2, "evaluate", "x.npz", says="x.npz")
        assert "allow_pickle" not in line  # numpy's advice to its own users is wrong for ours

    def test_a_folder_with_two_sizes(self, refused):
        Path("images").mkdir()
        Image.new("L", (8, 8)).save("images/0_a.png")
        Image.new("L", (9, 8)).save("images/1_b.png")
        refused(2, "evaluate", "images", says=["mixed sizes", "images", "0_a.png", "1_b.png"])

    def test_colour_and_grey(self, refused):
        Path("images").mkdir()
        Image.new("L", (8, 8)).save("images/0_a.png")
        Image.new("RGB", (8, 8)).save("images/1_b.png")
        refused(2, "evaluate", "images", says=["mixed", "0_a.png", "1_b.png"])

    def test_a_folder_without_images(self, refused):
        Path("images").mkdir()
        Path("images/notes.txt").write_text("x")
        refused(2, "evaluate", "images", says=["images", "no images"])

    @pytest.mark.parametrize("keep", [0, 20, 60])
    def test_a_damaged_image_is_named(self, refused, keep):
        Path("images").mkdir()
        picture = Image.fromarray(save_npz()[0, :, :, 0])
        picture.save("images/0_a.png")
        picture.save("images/1_b.png")
        Path("images/1_b.png").write_bytes(Path("images/1_b.png").read_bytes()[:keep])
        refused(2, "evaluate", "images", says="1_b.png")

    def test_labels_out_of_range_in_file_names(self, refused):
        Path("images").mkdir()
        for i, picture in enumerate(save_npz()):
            Image.fromarray(picture[:, :, 0]).save(f"images/{i % 10 + 5}_{i}.png")
        refused(2, "evaluate", "images", says=["out of range", "0 … 9"])

    def test_classifiers_that_do_not_fit(self, refused, runs):
        save_npz()
        refused(
            2, "evaluate", "x.npz", "--features", "runs/tiny", says=["runs/tiny", "no classifier"]
        )
        refused(
            2, "evaluate", "x.npz", "--features", "nobody", says=["nobody", "digits_classifier"]
        )
        write_pair(Path("data"), 30, size=28)
        refused(2, "evaluate", "x.npz", "--reference", "data", says=["(1, 28, 28)", "--features"])

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"protocol": 3}', '{"protocol": {}}', None])
    def test_results_that_are_none(self, refused, text):
        save_npz()
        if text is not None:
            Path("earlier.json").write_text(text)
        refused(2, "evaluate", "x.npz", "--against", "earlier.json", says="earlier.json")

    def test_results_that_cannot_be_written(self, refused, runs, asleep):
        Path("file").write_text("mine")
        line = refused(2, "evaluate", "runs/cd", "--out", "file/x.json", says="file")
        assert "File exists" not in line


class TestCodes:
    """The exit code tells a script what kind of error it was."""

    def fail_with(self, monkeypatch, error):
        def load(*_, **__):
            raise error

        monkeypatch.setattr("fewstep.models.folder.load", load)

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                "3 bytes"
            ),
        ],
        ids=["python", "gpu", "cpu"],
    )
    def test_out_of_memory(self, refused, monkeypatch, error):
        self.fail_with(monkeypatch, error)
        refused(5, *SAMPLE, says=["out of memory", "micro_batch", "--batch"])

    @pytest.mark.parametrize(
        "error",
        [RuntimeError("two\nlines"), AttributeError("two"), KeyError("two"), AssertionError()],
    )
    def test_a_fault_of_our_own(self, refused, monkeypatch, error):
        self.fail_with(monkeypatch, error)
        refused(1, *SAMPLE, says=[type(error).__name__, "--debug"])

    def test_stopped_by_the_user(self, fewstep, monkeypatch):
        self.fail_with(monkeypatch, KeyboardInterrupt())
        ended = fewstep(*SAMPLE)
        assert ended.code == 130
        assert "Traceback" not in ended.err

    @pytest.mark.parametrize("words", [("--debug", *SAMPLE), (*SAMPLE, "--debug")])
    def test_debug_shows_the_traceback(self, words):
        with pytest.raises(FileNotFoundError, match="runs/cd"):
            main(list(words))


def test_nothing_is_lost_when_a_restart_cannot_begin(refused, runs):
    before = {path: path.read_bytes() for path in (runs / "cd").rglob("*") if path.is_file()}
    refused(2, *STUDENT, "name=cd", "teacher=nobody", "--restart", says="nobody")
    refused(2, *STUDENT, "name=cd", "data.fraction=0", "--restart", says="no images left")
    refused(2, *STUDENT, "name=cd", "trainer.device=quark", "--restart", says="quark")
    for path, content in before.items():
        if path.name != ".lock":
            assert path.read_bytes() == content, path


def test_plugins_that_are_not_there(refused):
    refused(2, *TEACHER, "name=new", "--plugin", "nosuchmodule", says="nosuchmodule")


class TestPictures:
    """Sources of pictures, by every verb that reads data."""

    def test_bad_pictures_are_named(self, refused):
        write_pictures(Path("data"), a=made(1)[0][0])
        Path("data/b.png").write_bytes(b"no picture")
        line = refused(2, "data", "check", "data", says=["data/b.png", "1 of 2", "on_bad=skip"])
        assert line == refused(2, "evaluate", "runs/cd", "--reference", "data")
        refused(2, "data", "check", "data", "on_bad=skip", says=["data/b.png", "1%"])

    def test_pictures_of_several_sizes(self, refused, fewstep):
        write_pictures(Path("data"), a=made(1)[0][0], b=made(1, shape=(3, 20, 40))[0][0])
        refused(
            2,
            "data",
            "check",
            "data",
            says=["data/a.png of 32×32", "data/b.png of 20×40", "size=N"],
        )
        assert (
            "images: 2 of 16×16, 3 channels"
            in fewstep("data", "check", "data", "size=16", "split=all").out
        )

    def test_damaged_files_of_each_kind(self, refused):
        images, labels = made(20)
        Path("data").mkdir()
        Path("data/data_batch_1.bin").write_bytes(cifar_bytes(images, labels)[:-1])
        refused(2, "data", "check", "data", says=["data/data_batch_1.bin", "3073"])
        Path("data/data_batch_1").write_bytes(
            b"\x80\2cos\nsystem\n(Vtouch marker\ntR" + b"." * 100_000
        )
        refused(2, "data", "check", "data", says=["data/data_batch_1", "os.system"])
        assert not Path("marker").exists()
        file = write_parquet(Path("tables/train.parquet"), map(encoded, images), label=labels)
        file.write_bytes(file.read_bytes()[:-5])
        refused(2, "data", "check", "tables", says="tables/train.parquet")

    def test_an_option_of_another_kind(self, refused):
        write_pictures(Path("data"), a=made(1)[0][0])
        refused(
            2,
            "data",
            "check",
            "data",
            "labels=coarse",
            says=["folder has no option 'labels'", "labels"],
        )
        refused(2, "data", "check", "data", "kind=cifr", says=["cifr", "did you mean cifar"])
        refused(2, "data", "check", "data", "kind=cifar", says=["no CIFAR", "found: a.png"])

    def test_what_was_found_is_shown(self, fewstep):
        images, labels = made(20)
        Path("data").mkdir()
        Path("data/test_batch.bin").write_bytes(cifar_bytes(images, labels))
        lines = fewstep("data", "check", "data").out.splitlines()
        assert lines[:2] == ["kind: cifar", "files: data/test_batch.bin"]
        assert "classes: 10, images in each: 2 2 2 2 2 2 2 2 2 2" in lines
