"""Pictures of one's own: found, fitted to, and trained on by one command."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from fewstep.cli.configure import configured
from fewstep.cli.plan import outside
from fewstep.data.cifar import Cifar
from fewstep.data.digits import Digits
from fewstep.data.folder import Folder
from fewstep.data.table import Table
from fewstep.images.grid import png


class TestDataOfOnesOwn:
    """`data.path=` alone: the kind is what lies there, and recipes of pictures fit themselves."""

    @pytest.fixture
    def pictures(self, tmp_path):
        generator = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (tmp_path / "own" / name).mkdir(parents=True)
            for i in range(5):
                size = (int(generator.integers(40, 90)), 40, 3)
                pixels = generator.integers(256, size=size, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / name / f"{i}.png")
        return tmp_path / "own"

    def test_the_kind_is_what_lies_there(self, pictures):
        """With what both kinds know as the recipe says it; unless an option names a kind."""
        before = configured("cifar10_teacher", ["data.path=x"])[0].data
        assert isinstance(before, Cifar)
        data = configured("cifar10_teacher", ["data.size=32", f"data.path={pictures}"])[0].data
        assert data == Folder(path=str(pictures), size=32, split="all", flip=True)
        for words in (["data=cifar"], ["data.kind=cifar"]):
            named = configured("cifar10_teacher", [*words, f"data.path={pictures}"])[0].data
            assert isinstance(named, Cifar)

    def test_a_table_speaks_for_the_pictures_beside_it(self, pictures):
        recipe = "sd15_cd"
        assert isinstance(configured(recipe, [f"data.path={pictures}"])[0].data, Folder)
        lines = [f"{name}/{i}.png,a {name}" for name in ("cat", "dog") for i in range(5)]
        (pictures / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
        data = configured(recipe, [f"data.path={pictures}"])[0].data
        assert isinstance(data, Table)
        assert (data.size, data.split) == (512, "all")

    def test_parquet_of_cifar_stays_cifar(self, tmp_path):
        rows = {"img": [{"bytes": png(Image.new("RGB", (32, 32))), "path": None}] * 4}
        parquet.write_table(pyarrow.table({**rows, "label": [0, 1, 2, 3]}), tmp_path / "a.parquet")
        assert isinstance(configured("cifar10_cd", [f"data.path={tmp_path}"])[0].data, Cifar)
        fitted = configured("images_ct", [f"data.path={tmp_path}"])[0].data
        assert fitted == Table(path=str(tmp_path), flip=True)

    def test_a_recipe_fits_itself_to_pictures(self, pictures):
        """Of different sizes squares are made; few pictures get dropout and few steps."""
        words = [f"data.path={pictures}", "trainer.batch=4", "data.split_seed=3"]
        run, folder = configured("images_teacher", words)
        assert folder == Path("runs/images_teacher")
        assert run.data == Folder(path=str(pictures), size=40, flip=True, split_seed=3)
        assert (run.trainer.steps, run.trainer.batch) == (2000, 4)
        network = run.teacher.network
        assert (network.multipliers, network.attention) == ((1, 2, 2, 2), (8,))
        assert network.dropout == 0.2
        student = configured("images_cd", [f"data.path={pictures}", "data.size=16"])[0]
        assert student.data.size == 16
        assert student.teacher.path == "runs/images_teacher"
        assert student.trainer.steps == 600
        large = configured("images_ct", [f"data.path={pictures}", "data.size=128"])[0]
        assert (large.data.size, large.trainer.batch) == (128, 32)

    def test_squares_of_one_size_stay_as_they_are(self):
        run = configured("images_ct", ["data=digits"])[0]
        assert run.data == Digits()
        assert run.teacher.network.multipliers == (1, 2)
        assert run.trainer.steps == 2800  # 100 looks at each of 1,797

    def test_what_is_there_is_planned_for(self, pictures):
        run = configured("images_teacher", [f"data.path={pictures}"])[0]
        space = outside(run, None, None)
        assert (space.shape, space.classes) == ((3, 40, 40), 2)

    def test_from_pictures_to_a_page(self, pictures, done):
        few = ("trainer.steps=2", "trainer.batch=4", "trainer.health_every=0", "data.size=16")
        small = ("teacher.network.channels=16", "teacher.network.head_channels=16")
        done("train", "images_teacher", f"data.path={pictures}", *few, *small)
        done("train", "images_cd", f"data.path={pictures}", *few)
        page = Path("runs/images_cd/report.html").read_text()
        assert "<th>teacher</th><th>student</th>" in page
        assert "<span>cat</span>" in page

    def test_where_there_are_none(self, refused, tmp_path):
        refused(2, "train", "images_teacher", says="no data: give data.path=DIR")
        says = "no data at nowhere: give data.path=FOLDER, your pictures"
        refused(2, "train", "images_teacher", "data.path=nowhere", says=says)
        (tmp_path / "none").mkdir()
        refused(2, "train", "images_ct", f"data.path={tmp_path / 'none'}", says="no data in")
