"""What stands behind `=` is the text, whatever it looks like; places may begin with ~."""

import os
from pathlib import Path

import pytest
from tests.cli.conftest import TEACHER, arrays
from tests.data.idx_files import write_pair
from tests.test_yaml import TEXTS

from fewstep.cli.configure import configured, source_of
from fewstep.data.cached import Cached
from fewstep.data.digits import Digits
from fewstep.data.folder import Folder
from fewstep.models.source import Saved
from fewstep.options import values
from fewstep.run import Run
from fewstep.yaml import to_yaml


def asked(*words):
    return configured("mnist_cd", ["data=folder", *words])[0]


@pytest.mark.parametrize("text", TEXTS)
def test_a_place_is_what_was_typed(text):
    assert asked(f"data.path={text}").data.path == text
    assert asked(f"teacher.path={text}").teacher == Saved(text)
    assert asked(f"trainer.device={text}").trainer.device == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_place_in_a_run_file(text):
    Path("mine.yaml").write_text(to_yaml(asked(f"data.path={text}").dump()))
    assert configured("mine.yaml", [])[0].data.path == text


@pytest.mark.parametrize("text", ["2024-05-01", "2023", "1e3", "0x10", "1_000", "null", "true"])
def test_a_run_file_without_quotes(text):
    Path("mine.yaml").write_text(
        f"data: {{kind: folder, path: {text}}}\nmethod: diffusion\nstart: null\n"
    )
    run, _ = configured("mine.yaml", [])
    assert run.data.path == text
    assert run.start is None


@pytest.mark.parametrize("text", [t for t in TEXTS if t not in ("{x}", "")])
def test_a_model_is_named_by_any_text(text):
    """Also where the option takes a choice, of which a mapping in braces gives the options."""
    assert asked(f"teacher={text}").teacher == Saved(text)
    assert asked(f"start.path={text}").start == Saved(text)
    if text not in ("null", "none"):
        assert asked(f"start={text}").start == Saved(text)
        assert asked(f"teacher={text}", "teacher.ema=0.5").teacher == Saved(text, "0.5")


def test_nothing_is_said_by_null_and_none():
    for word in ("null", "none", "Null", "~", ""):
        assert asked("start=x", f"start={word}").start is None
        assert asked("teacher=x", f"teacher.ema={word}").teacher == Saved("x")
        assert asked("dropout=0.1", f"dropout={word}").dropout is None
        assert asked(f"start={word}", "start.path=x").start == Saved("x")
    assert asked("start='null'").start == Saved("null")


def test_an_average_is_named_by_its_number():
    for word in ("0.9990", ".999", "9.99e-1", "'0.999'"):
        assert asked("teacher=x", f"teacher.ema={word}").teacher == Saved("x", "0.999")


def test_quotes_and_braces():
    assert asked('data.path="imgs #2"').data.path == "imgs #2"
    assert asked("data.path='it''s'").data.path == "it's"
    assert asked("teacher={kind: saved, path: 2024-05-01}").teacher == Saved("2024-05-01")
    assert asked("teacher={path: 'a #b'}", "teacher.ema=0.5").teacher == Saved("a #b", "0.5")
    assert configured("mnist_cd", ["name='a b'"])[1] == Path("runs/a b")
    assert configured("mnist_cd", ["name=2024-05-01"])[1] == Path("runs/2024-05-01")


@pytest.mark.parametrize("text", [t for t in TEXTS if "\n" not in t and "\udce9" not in t])
def test_no_text_option_takes_anything_else_for_its_text(text):
    """Names: a text that is none is said as it was typed; text: it is taken."""
    run, _ = configured("digits_teacher", [])
    for path, _, option in values(run):
        if option.words == "text":
            found = configured("digits_teacher", [f"{path}={text}"])[0]
            shown = {name: value for name, value, _ in values(found)}
            assert shown[path] == (text or "''"), path
        elif " or none" in option.words:
            continue  # null and none are nothing there
        elif " | " in option.words and text not in option.words.split(" | "):
            with pytest.raises(ValueError, match=path):
                configured("digits_teacher", [f"{path}={text}"])


def test_texts_in_lists_are_text():
    run = asked("teacher=unet", "teacher.network.extra=[2024-05-01, 's', 1e3, a b]")
    assert run.teacher.network.extra == ("2024-05-01", "s", "1e3", "a b")


def test_options_of_data_check():
    Path("imgs #2").mkdir()
    write_pair(Path("imgs #2"), 4)
    source = source_of("imgs #2", ["split=test", "split_seed=0x10"])
    assert (source.path, source.split, source.split_seed) == ("imgs #2", "test", 16)


def test_a_folder_beside_one_with_a_mark(done, fewstep):
    """The comment of YAML began at ` #`: the other folder was trained on, without a word."""
    for number, name in enumerate(("imgs", "imgs #2")):
        write_pair(Path(name), 20 + number, size=8)
    words = ("data=idx", "data.path=imgs #2", "data.split=all", "data.limit=0", "name=x")
    done(*TEACHER, *words)
    assert "path: 'imgs #2'" in Path("runs/x/run.yaml").read_text()
    assert '"images": 21' in Path("runs/x/student/model.json").read_text()


class TestHome:
    """~ is the home folder wherever a place is named."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path, monkeypatch, runs):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")

    def test_training(self, done):
        write_pair(Path("../imgs"), 20, size=8)
        words = ("data=idx", "data.path=~/imgs", "data.split=all", "data.limit=0", "name=x")
        done(*TEACHER, *words, "start=~/runs/tiny")
        done(*TEACHER, *words, "teacher=~/runs/tiny", "name=y", "method=easy_consistency")
        done("train", "~/elsewhere/runs/x/run.yaml", "name=z", "trainer.steps=1")
        assert Path("runs/z/student/model.json").is_file()

    def test_the_other_verbs(self, done):
        done("sample", "~/runs/cd", "--out=~/x.npz", "--num", "20")
        assert len(arrays(Path("../x.npz"))["arr_0"]) == 20
        words = ("--reference=~/imgs", "--features=~/runs/judge", "--num", "20", "--out=~/y.json")
        write_pair(Path("../imgs"), 40, size=8)
        done(
            *("train", "digits_classifier", "trainer.steps=1", "trainer.batch=8", "name=judge"),
            "trainer.health_every=0",
        )
        os.rename("runs/judge", "../runs/judge")
        done("evaluate", "~/x.npz", *words)
        done("evaluate", "~/runs/cd", *words[:4], "--against=~/y.json", "--report=~/z.html")
        assert Path("../z.html").is_file()
        assert "unet" in done("inspect", "~/runs/cd")
        assert "images: 40" in done("data", "check", "~/imgs")

    def test_from_python(self):
        from fewstep import load
        from fewstep.data.idx import Idx

        assert load("~/runs/cd").shape == (1, 8, 8)
        assert Idx(path="~/imgs").path == str(Path("~/imgs").expanduser())
        assert Idx(path="a//b~").path == "a//b~"

    def test_no_such_home(self, refused):
        refused(2, "data", "check", "~nobody-at-all/x", says="~nobody-at-all/x")


def test_a_run_goes_on_in_its_own_folder(done, runs, monkeypatch):
    monkeypatch.chdir(runs / "cd")
    assert "is finished already" in done("train", "run.yaml")
    assert not Path("runs").exists()
    done("train", "../tiny/run.yaml", "name=z", "trainer.steps=1")
    assert Path("runs/z/student/model.json").is_file()


def test_a_run_file_in_the_current_folder_makes_a_new_run(tmp_path):
    run, _ = configured("digits_teacher", [])
    Path("run.yaml").write_text(to_yaml(run.dump()))
    assert configured("run.yaml", []) == (run, Path("runs") / tmp_path.name)
    assert isinstance(run, Run)


class TestWhatLeadsOn:
    """An error names the word that was meant, or the command that comes first."""

    def test_an_option_that_lies_deeper(self, refused):
        for word, meant in (
            ("lr=1e-3", "did you mean trainer.optimizer.lr?"),
            ("steps=100", "did you mean trainer.steps?"),
            ("optimizer.lr=1", "did you mean trainer.optimizer.lr?"),
            ("batch_size=8", "did you mean trainer.batch?"),
            ("epochs=3", "did you mean trainer.steps?"),
            ("trainer.learning_rate=1", "did you mean optimizer.lr?"),
            ("trainer.mixed_precision=fp16", "did you mean precision?"),
            ("bins=12", "did you mean method.bins?"),
            ("trainer.lr=1", "did you mean optimizer.lr?"),
            ("trainer.setps=1", "did you mean steps?"),
        ):
            refused(2, "train", "digits_cd", word, says=meant)

    def test_an_option_with_dashes(self, refused):
        says = "options of a run have no dashes: trainer.optimizer.lr=1e-3"
        refused(2, "train", "digits_cd", "--lr", "1e-3", says=says)
        says = ["--steps", "fewstep sample --help says more"]
        refused(2, "sample", "digits_teacher", "--stps", "3", says=says)

    def test_what_is_missing(self, refused):
        says = "Missing argument 'recipe'; fewstep train --help says more"
        refused(2, "train", says=says)
        refused(2, "foo", says="No such command 'foo'; fewstep --help says more")

    def test_a_model_that_a_recipe_makes(self, refused):
        says = "no run runs/mnist_teacher yet; train it first: fewstep train mnist_teacher"
        refused(2, "train", "mnist_cd", "data.path=x", says=f"{says} data.path=x")
        says = "train it first: fewstep train digits_cd"
        refused(2, "train", "digits_cd", "start=runs/digits_cd", "name=new", says=says)
        refused(2, "train", "digits_cd", "teacher=runs/nobody", says="no model or run")
        says = "no run runs/shapes_vae yet; train it first: fewstep train shapes_vae"
        refused(2, "train", "shapes_teacher", says=says)

    def test_a_model_of_another_kind(self, refused):
        says = "does not describe a diffusion model: it is that of a classifier"
        refused(2, "sample", "digits_classifier", "--out", "x.png", says=says)


class TestAnotherKindOfData:
    """What all kinds have stays as the recipe says; what only the old one has is dropped."""

    @pytest.mark.parametrize("word", ["data=folder", "data.kind=folder"])
    def test_what_is_shared_stays(self, word):
        """labels=fine is of CIFAR alone; half of a training set is no mistake that one notices."""
        before = configured("cifar10_teacher", ["data.path=x"])[0].data
        assert (before.split, before.flip, before.labels) == ("all", True, "fine")
        for words in ([word, "data.path=x"], ["data.path=x", word]):
            data = configured("cifar10_teacher", words)[0].data
            assert isinstance(data, Folder)
            assert (data.split, data.flip, data.path) == ("all", True, "x")

    def test_the_cache_of_a_recipe_for_all_pictures(self):
        data = configured("sd15_lcm_lora", ["data=cached", "data.path=x"])[0].data
        assert isinstance(data, Cached)
        assert (data.split, data.path) == ("all", "x")

    def test_a_mapping_is_all_there_is(self):
        data = configured("cifar10_teacher", ["data={kind: folder, path: x}"])[0].data
        assert data == Folder(path="x")

    def test_the_same_kind_changes_nothing(self):
        before = configured("cifar10_teacher", ["data.labels=coarse"])[0].data
        after = configured("cifar10_teacher", ["data.labels=coarse", "data.kind=cifar"])[0].data
        assert after == before

    def test_a_kind_without_a_path(self):
        data = configured("cifar10_teacher", ["data.path=x", "data=digits"])[0].data
        assert data == Digits(split="all", flip=True)
