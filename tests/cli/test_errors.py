"""Every mistake ends with its exit code and one line that names what is wrong and what would be
right.
"""

import json
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import LOOP, STUDENT, TEACHER
from tests.data.idx_files import write_pair

SAMPLE = ("sample", "runs/cd", "--out", "x.png")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trainer.steps=abc", ["trainer.steps", "integer", "'abc'"]),
        ("trainer.steps=true", ["trainer.steps", "integer", "'true'"]),
        ("trainer.steps=1e30", ["trainer.steps", "between -2^63 and 2^63", "1e+30"]),
        ("trainer.steps=0", ["trainer.steps", "greater than or equal to 1"]),
        ("trainer.stepz=5", ["trainer.stepz", "did you mean steps"]),
        ("method=consistancy_training", ["method", "did you mean consistency_training"]),
        ("method.densty=log_normal", ["method.densty", "did you mean density"]),
        ("method.density=log_nrmal", ["method.density", "did you mean log_normal"]),
        ("method.density={kind: log_normal, std: -1}", ["method.density.std", "greater than"]),
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
        ("method.guidance=3", ["method.guidance", "diffusion has no option"]),
        ("dropout=2", ["dropout", "less than or equal to 1"]),
        ("trainr.steps=5", ["trainr", "did you mean trainer"]),
        ("trainer", ["option=value", "'trainer'"]),
        ("=4", "option"),
        ("name=../x", ["name=", "plain folder name"]),
        ("name=..", ["name=", "plain folder name"]),
        ("name=.", ["name=", "plain folder name"]),
        ("name=/tmp/x", ["name=", "plain folder name"]),
        ("name=", ["name=", "plain folder name"]),
        ("trainer.ema=[0.9", ["trainer.ema: ", "not valid YAML"]),
        ("trainer.ema=*x", ["trainer.ema: ", "'*x'"]),
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
        (b"method: !!python/object/apply:os.system ['touch pwned']\n", "tags are not allowed"),
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
        from fewstep.training.run_folder import Lock

        lock = Lock(unfinished)
        lock.take()
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
        """It can be looked at (test_begun.py), and is no teacher yet."""
        says = ["runs/half", "no finished model yet"]
        for option in ("teacher", "start"):
            refused(2, *STUDENT, f"{option}=runs/half", "name=new", says=says)

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


def test_nothing_is_lost_when_a_restart_cannot_begin(refused, runs):
    before = {path: path.read_bytes() for path in (runs / "cd").rglob("*") if path.is_file()}
    refused(2, *STUDENT, "name=cd", "teacher=nobody", "--restart", says="nobody")
    refused(2, *STUDENT, "name=cd", "data.fraction=0", "--restart", says="no images left")
    refused(2, *STUDENT, "name=cd", "trainer.device=quark", "--restart", says="quark")
    for path, content in before.items():
        if path.name != ".lock":
            assert path.read_bytes() == content, path


@pytest.mark.parametrize("suffix", ["pt", "ckpt", "pkl"])
def test_a_checkpoint_of_others_in_every_place_of_a_model(refused, runs, asleep, suffix):
    path = f"theirs.{suffix}"
    torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    says = [path, "a checkpoint of PyTorch", "fewstep.from_network"]
    for words in (
        (*STUDENT, f"teacher={path}", "name=x"),
        (*STUDENT, f"start={path}", "name=x"),
        ("sample", path, "--out", "x.png"),
        ("evaluate", path),
        ("evaluate", "runs/cd", "--teacher", path),
        ("evaluate", "runs/cd", "--features", path),
        ("export", path, "--to", "diffusers"),
        ("inspect", path),
    ):
        refused(2, *words, says=says)
    assert not Path("runs/x").exists()
