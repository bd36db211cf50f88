"""Choices from outside the package: which count, what is said of those that do not."""

import importlib
import re
import sys
import textwrap
import types
import warnings
from dataclasses import dataclass

import pytest

from fewstep import plugins
from fewstep.choice import Choice, origins
from fewstep.learning.schedules import Constant, Cosine, Schedule

HALF = """
    from dataclasses import dataclass
    from fewstep.learning.schedules import Schedule

    @dataclass(frozen=True)
    class {cls}(Schedule):
        share: float = 0.5

        def after_warmup(self, done):
            return self.share
"""


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch, tmp_path):
    """What a test loads from its own folder is forgotten behind it."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def written(folder, file, text=HALF, **names):
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text.format(**names)))
    return path


def test_a_file_is_loaded_from_where_it_lies(tmp_path):
    path = written(tmp_path / "elsewhere", "lies_there.py", cls="LiesThere")
    with pytest.raises(ValueError, match="unknown schedule 'lies_there'"):
        Schedule.parse("lies_there")
    plugins.load(path)
    made = Schedule.parse({"kind": "lies_there", "share": 0.25})
    assert made.after_warmup(0.0) == 0.25
    assert made.dump() == {"kind": "lies_there", "share": 0.25}
    assert plugins.load(path) is sys.modules["lies_there"]  # twice is once


def test_a_module_by_its_name(tmp_path, monkeypatch):
    written(tmp_path, "lab_of_mine/__init__.py", "")
    written(tmp_path, "lab_of_mine/parts.py", cls="OfMine")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load("lab_of_mine.parts")
    assert Schedule.parse("of_mine").after_warmup(0.0) == 0.5


def test_what_lies_beside_a_file_can_be_imported(tmp_path):
    written(tmp_path, "shares_of_it.py", "HALF = 0.5")
    path = written(tmp_path, "uses_shares.py", "from shares_of_it import HALF")
    assert plugins.load(path).HALF == 0.5


def test_what_is_only_imported_does_not_count(tmp_path, monkeypatch):
    written(tmp_path, "not_named.py", cls="NotNamed")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("not_named")
    assert "not_named" not in Schedule.kinds()
    with pytest.raises(ValueError, match=r"not_named\.NotNamed is of no plug-in; give --plugin"):
        Schedule.parse("not_named")
    plugins.load("not_named")
    assert "not_named" in Schedule.kinds()


def test_the_program_that_runs_counts(monkeypatch):
    """A script or a notebook: what it defines is saved and read back without an option."""
    program = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    exec(textwrap.dedent(HALF.format(cls="OfTheProgram")), program.__dict__)
    assert Schedule.kinds()["of_the_program"] is program.OfTheProgram
    exec(textwrap.dedent(HALF.format(cls="OfTheProgram")), program.__dict__)  # a cell, run again
    assert Schedule.kinds()["of_the_program"] is program.OfTheProgram


def test_one_name_twice_is_refused_with_both_modules(tmp_path):
    plugins.load(written(tmp_path, "second_cosine.py", cls="Cosine"))
    both = (
        "two schedules are called cosine: one in fewstep.learning.schedules, one in second_cosine"
    )
    with pytest.raises(ValueError, match=both):
        Schedule.parse("cosine")
    assert Schedule.parse("constant") == Constant()  # who does not ask for it is not disturbed
    assert Schedule.kinds()["cosine"] is Cosine


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            """
            from fewstep.learning.schedules import Schedule

            class Undecorated(Schedule):
                def after_warmup(self, done):
                    return 1.0
            """,
            "says_why.Undecorated is no frozen dataclass; put @dataclass(frozen=True) above it",
        ),
        (
            """
            from dataclasses import dataclass
            from fewstep.learning.schedules import Schedule

            @dataclass
            class Undecorated(Schedule):
                def after_warmup(self, done):
                    return 1.0
            """,
            "says_why.Undecorated is no frozen dataclass; put @dataclass(frozen=True) above it",
        ),
        (
            """
            from dataclasses import dataclass
            from fewstep.learning.schedules import Schedule

            @dataclass(frozen=True)
            class Undecorated(Schedule):
                share: float = 0.5
            """,
            "says_why.Undecorated leaves out after_warmup",
        ),
    ],
    ids=["no dataclass", "not frozen", "abstract"],
)
def test_a_class_that_cannot_be_named_is_not_passed_over(tmp_path, text, says):
    plugins.load(written(tmp_path, "says_why.py", text))
    assert "undecorated" not in Schedule.kinds()
    with pytest.raises(ValueError, match=re.escape(says)):
        Schedule.parse("undecorated")


class TestProvenance:
    def test_of_one_file(self, tmp_path):
        path = written(tmp_path, "of_one_file.py", cls="OfOneFile")
        plugins.load(path)
        (kind, source), *others = origins([Schedule.parse("of_one_file")]).items()
        assert (kind, others) == ("of_one_file", [])
        assert re.fullmatch("of_one_file.py, sha256 [0-9a-f]{64}", source)
        again = plugins.hashlib.sha256(path.read_bytes()).hexdigest()
        assert source.endswith(again)

    def test_our_own_have_none_and_nested_ones_are_found(self, tmp_path):
        plugins.load(written(tmp_path, "of_nesting.py", cls="OfNesting"))

        @dataclass(frozen=True)
        class Holds(Choice):
            schedules: tuple[Schedule, ...] = ()
            by_name: dict[str, Schedule] = None

        assert origins([Cosine()]) == {}
        assert Cosine().noted() == Cosine().dump()
        inner = Schedule.parse("of_nesting")
        assert "of_nesting" in origins([Holds((Cosine(), inner))])
        assert "of_nesting" in Holds((), {"x": inner}).noted()["plugins"]

    def test_is_told_and_never_followed(self, tmp_path):
        path = written(tmp_path, "is_told.py", "raise SystemExit('it was imported')")
        noted = {"is_told": f"{path}, sha256 0", "cosine": "nonsense", 3: None}
        with plugins.told(noted), pytest.raises(ValueError, match="unknown schedule") as caught:
            Schedule.parse("is_told")
        assert f"made with {path}: give --plugin PATH" in str(caught.value)
        with pytest.raises(ValueError, match="unknown schedule") as caught:
            Schedule.parse("is_told")
        assert "made with" not in str(caught.value)
        with plugins.told(noted):
            assert Schedule.parse("cosine") == Cosine()

    @pytest.mark.parametrize("noted", [None, [], "text", 3, {"is_told": "\x1b[31m" + "x" * 9999}])
    def test_whatever_a_file_says(self, noted):
        with plugins.told(noted), pytest.raises(ValueError, match="unknown schedule") as caught:
            Schedule.parse("is_told")
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 500


class TestRefusals:
    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no plug-in .*gone\.py"):
            plugins.load(tmp_path / "gone.py")

    def test_no_module(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "notes.md").touch()
        with pytest.raises(ImportError, match=r"notes\.md cannot be .* a Python file"):
            plugins.load(tmp_path / "notes.md")
        with pytest.raises(ImportError, match="plug-in no_such_thing cannot be imported"):
            plugins.load("no_such_thing")
        written(tmp_path, "no_such_thing.py", cls="NoSuchThing")
        with pytest.raises(ImportError, match=r"the file beside you is --plugin no_such_thing\.py"):
            plugins.load("no_such_thing")

    @pytest.mark.parametrize("text", ["import nosuchmodule", "def (", "raise KeyError('x')"])
    def test_a_broken_file_is_named_and_forgotten(self, tmp_path, text):
        path = written(tmp_path, "is_broken.py", text)
        with pytest.raises(ImportError, match=r"is_broken\.py cannot be imported"):
            plugins.load(path)
        assert "is_broken" not in sys.modules
        written(tmp_path, "is_broken.py", cls="MendedNow")
        plugins.load(path)
        assert "mended_now" in Schedule.kinds()

    @pytest.mark.parametrize("name", ["random", "json", "torch", "sys"])
    def test_a_name_that_is_taken(self, tmp_path, name):
        with pytest.raises(ImportError, match=f"there is a module {name} already"):
            plugins.load(written(tmp_path, f"{name}.py", cls="Taken"))

    def test_two_files_of_one_name(self, tmp_path):
        plugins.load(written(tmp_path / "a", "of_one_name.py", cls="OfOneName"))
        with pytest.raises(ImportError, match=r"a.of_one_name\.py; rename it"):
            plugins.load(written(tmp_path / "b", "of_one_name.py", cls="OfOneName"))


class TestInstalled:
    def installed(self, folder, monkeypatch, name, text, **names):
        """A package as pip leaves it: the module, and its metadata beside it."""
        module = name.replace("-", "_")
        written(folder, f"{module}.py", text, **names)
        about = f"{module}-0.1.dist-info"
        written(folder, f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        written(folder, f"{about}/entry_points.txt", f"[fewstep]\nparts = {module}\n")
        written(folder, f"{about}/top_level.txt", f"{module}\n")
        if str(folder) not in sys.path:
            monkeypatch.syspath_prepend(folder)
        plugins.load_installed.cache_clear()

    @pytest.fixture(autouse=True)
    def _read_again(self):
        yield
        plugins.load_installed.cache_clear()

    def test_needs_no_option(self, tmp_path, monkeypatch):
        self.installed(tmp_path, monkeypatch, "my-lab", HALF, cls="OfTheLab")
        made = Schedule.parse("of_the_lab")
        assert made.after_warmup(0.0) == 0.5
        assert origins([made]) == {"of_the_lab": "my-lab 0.1"}

    def test_a_broken_one_is_a_warning_that_names_it(self, tmp_path, monkeypatch):
        self.installed(tmp_path, monkeypatch, "broken-lab", "import nosuchmodule")
        self.installed(tmp_path, monkeypatch, "my-lab", HALF, cls="OfTheLab")
        with pytest.warns(UserWarning, match="plug-in broken-lab 0.1 cannot be imported.*left out"):
            assert "of_the_lab" in Schedule.kinds()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Schedule.kinds()  # said once
