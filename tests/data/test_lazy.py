"""Sets that are too large to keep: rows are read when they are needed, and are the same rows."""

import multiprocessing
import struct
import zlib

import numpy as np
import pytest
import torch
from tests.data.picture_files import encoded, made, write_parquet, write_pictures

from fewstep.choice import replaced
from fewstep.data import lazy
from fewstep.data.dataset import Held
from fewstep.data.folder import Folder
from fewstep.data.index import indexed
from fewstep.data.lazy import Stored, looked_at
from fewstep.data.stream import Stream
from fewstep.data.table import Table
from fewstep.diffusion.draws import Draws
from fewstep.methods.diffusion import Diffusion
from fewstep.models.codec import Pixels
from fewstep.models.conditioner import Labels
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run, distil
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log

COUNT, CLASSES = 60, 4
TINY = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
IMAGES, LABELS = made(COUNT, CLASSES, (3, 8, 8))


@pytest.fixture(params=["folder", "table"])
def source(request, tmp_path):
    """Sixty pictures in a folder and in a table, in the order of their classes."""
    order = np.argsort(LABELS, kind="stable")
    if request.param == "folder":
        names = {f"{LABELS[i]}__{place:03}": IMAGES[i] for place, i in enumerate(order)}
        write_pictures(tmp_path / "set", **names)
        return Folder(path=str(tmp_path / "set"), split="all")
    contents = [encoded(IMAGES[i]) for i in order]
    for part in range(3):
        rows = slice(20 * part, 20 * part + 20)
        file = tmp_path / "set" / f"train-{part}.parquet"
        write_parquet(file, contents[rows], label=LABELS[order][rows])
    return Table(path=str(tmp_path / "set"), split="all")


@pytest.fixture
def large(monkeypatch):
    """Every set is too large to keep."""
    monkeypatch.setattr(lazy, "MEMORY", 0)
    monkeypatch.setattr(lazy.pictures, "__defaults__", (0,))
    monkeypatch.setattr(Table.read_files, "__defaults__", (None, 0))


def test_the_rows_are_those_of_a_set_in_memory(source, large, monkeypatch):
    stored = source.dataset()
    monkeypatch.undo()
    held = source.dataset()
    assert (type(stored), type(held)) == (Stored, Held)
    assert (stored.in_memory, held.in_memory) == (False, True)
    assert (stored.shape, stored.classes) == (held.shape, held.classes) == ((3, 8, 8), 4)
    assert torch.equal(stored.labels, held.labels)
    assert torch.equal(stored.images, held.images)
    index = torch.tensor([5, 0, 59, 5])
    assert torch.equal(stored.rows(index)["image"], held.rows(index)["image"])
    assert torch.equal(stored.rows(index)["label"], held.rows(index)["label"])
    assert torch.equal(stored.floats(slice(3, 6)), held.floats(slice(3, 6)))


def test_the_same_splits_and_limits(source, large, monkeypatch):
    chosen = Folder(path=source.path, split="test") if isinstance(source, Folder) else None
    chosen = chosen or Table(path=source.path, split="test")
    stored = chosen.dataset()
    monkeypatch.undo()
    held = chosen.dataset()
    assert torch.equal(stored.ids, held.ids)
    assert torch.equal(stored.images, held.images)
    assert torch.equal(stored.labels, held.labels)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_no_bit(source, large, workers):
    """Any rows of any batch, in order and out of it, and again."""
    dataset = source.dataset()
    codec, conditioner = Pixels().build(), Labels(CLASSES).build()
    alone = Stream(dataset, codec, conditioner, 3, 16)
    some = Stream(dataset, codec, conditioner, 3, 16, workers=workers, share=range(4, 12))
    state = torch.get_rng_state()
    for number, rows in [(0, (4, 8)), (0, (8, 12)), (1, (4, 12)), (2, (4, 6)), (7, (5, 9))]:
        here = range(*rows)
        one = alone(number, here, Draws(0, here))
        other = some(number, here, Draws(0, here))
        assert torch.equal(one.data, other.data)
        assert torch.equal(one.cond["label"], other.cond["label"])
    outside = range(0, 3)
    assert torch.equal(
        alone(7, outside, Draws(0, outside)).data, some(7, outside, Draws(0, outside)).data
    )
    assert torch.equal(torch.get_rng_state(), state)
    some.close()


def test_an_error_of_a_worker_is_the_error(source, large, tmp_path):
    """Its own type and words, without the traceback of a loader."""
    dataset = source.dataset()
    dataset.held = {"label": torch.arange(3)}
    stream = Stream(dataset, Pixels().build(), Labels(CLASSES).build(), 3, 16, workers=1)
    if isinstance(source, Folder):
        for file in (tmp_path / "set").rglob("*.png"):
            file.write_bytes(b"")
        with pytest.raises(ValueError, match=r"1 of 60 pictures .* the first is .*: it is empty$"):
            stream(0, range(16), Draws(0, range(16)))
    stream.close()


class TestBadPictures:
    @staticmethod
    def folder(tmp_path, count, bad):
        """Pictures whose header is whole and whose end is missing are found when they are read."""
        write_pictures(tmp_path, **{f"{i:03}": made(1, seed=i)[0][0] for i in range(count)})
        for i in bad:
            file = tmp_path / f"{i:03}.png"
            file.write_bytes(file.read_bytes()[:-400])
        return Folder(path=str(tmp_path), split="all", on_bad="skip")

    def test_they_are_left_out_counted_and_named(self, tmp_path, large, monkeypatch):
        """As of a set in memory: the same rows, the same note, before the first row is read."""
        source = self.folder(tmp_path / "set", 300, (7, 299))
        stored = source.read(tmp_path / "index")
        first, second = (f"{tmp_path}/set/{name}.png: " for name in ("007", "299"))
        assert stored.notes["bad"].startswith(f"2 of 300: {first}")
        assert second in stored.notes["bad"]
        images = stored.rows(torch.tensor([6, 7, 297]))["image"]
        wanted = [made(1, seed=i)[0][0] for i in (6, 8, 298)]
        assert np.array_equal(images.numpy(), np.stack(wanted))
        again = source.read(tmp_path / "index")
        assert (again.notes, again.fingerprint()) == (stored.notes, stored.fingerprint())
        monkeypatch.undo()
        held = source.read()
        assert torch.equal(held.ids, stored.ids)
        assert held.notes == stored.notes

    def test_of_tables_too(self, tmp_path, large):
        contents = [encoded(made(1, seed=i)[0][0]) for i in range(120)]
        contents[40] = contents[40][:-400]
        file = write_parquet(tmp_path / "x.parquet", contents, label=[i % 3 for i in range(120)])
        stored = Table(path=str(file), split="all", on_bad="skip").read(tmp_path / "index")
        assert stored.notes["bad"].startswith(f"1 of 120: {file} row 40: ")
        assert stored.rows(torch.tensor([39, 40]))["label"].tolist() == [0, 2]
        with pytest.raises(ValueError, match=r"1 of 120 .*x\.parquet row 40"):
            Table(path=str(file), split="all").read(tmp_path / "index").verify()

    def test_what_breaks_later_is_an_error(self, tmp_path, large):
        """No other picture takes its place without a word."""
        dataset = self.folder(tmp_path, 150, ()).read()
        (tmp_path / "003.png").write_bytes(encoded(IMAGES[0])[:-400])
        with pytest.raises(ValueError, match=r"003\.png"):
            dataset.rows(torch.arange(10))

    def test_more_than_one_in_a_hundred_is_an_error(self, tmp_path, large):
        with pytest.raises(ValueError, match="2 of 150 pictures cannot be read"):
            self.folder(tmp_path, 150, (3, 4)).dataset()

    def test_one_is_an_error_where_none_may_be(self, tmp_path, large):
        self.folder(tmp_path, 150, (3,))
        dataset = Folder(path=str(tmp_path), split="all").dataset()
        with pytest.raises(ValueError, match=r"1 of 150 .* the first is .*003\.png: "):
            dataset.rows(torch.arange(10))

    def test_what_its_header_tells_is_left_out_at_once(self, tmp_path, large):
        source = self.folder(tmp_path, 200, ())
        (tmp_path / "050.png").write_bytes(b"x")
        dataset = source.dataset()
        assert len(dataset) == 199
        assert dataset.notes["bad"].startswith(f"1 of 200: {tmp_path / '050.png'}: it is no PNG")
        with pytest.raises(ValueError, match=r"1 of 200 .*050\.png: it is no PNG"):
            Folder(path=str(tmp_path), split="all").dataset()


def test_metadata_that_cannot_be_read_is_counted(tmp_path, large):
    """Seen in the header, or where the whole is decoded; the pixels are the same."""
    files = write_pictures(tmp_path, **{f"{i:02}": IMAGES[i] for i in range(20)})
    for name, place in (("03", 33), ("11", -12)):
        content = (files / f"{name}.png").read_bytes()
        short = struct.pack(">I4sI", 0, b"pHYs", zlib.crc32(b"pHYs"))
        (files / f"{name}.png").write_bytes(content[:place] + short + content[place:])
    dataset = Folder(path=str(tmp_path), split="all").read()
    assert dataset.notes["metadata"] == f"passed over in 1 of 20 pictures: {tmp_path}/03.png"
    dataset.verify()
    told = f"passed over in 2 of 20 pictures: {tmp_path}/03.png, {tmp_path}/11.png"
    assert dataset.notes["metadata"] == told
    assert np.array_equal(dataset.images.numpy(), IMAGES[:20])


def test_sizes_are_seen_before_the_first_picture_is_decoded(tmp_path, large):
    write_pictures(tmp_path, a=made(1, shape=(3, 8, 8))[0][0], b=made(1, shape=(3, 8, 9))[0][0])
    with pytest.raises(ValueError, match=r"a\.png of 8×8 and .*b\.png of 8×9: size=N"):
        Folder(path=str(tmp_path), split="all").dataset()


def test_grey_pictures_among_colours(tmp_path, large):
    grey, colour = made(1, shape=(1, 8, 8))[0][0], IMAGES[0]
    write_pictures(tmp_path / "mixed", a=grey, b=colour)
    write_pictures(tmp_path / "grey", a=grey, b=grey)
    mixed = Folder(path=str(tmp_path / "mixed"), split="all").dataset()
    assert np.array_equal(mixed.images.numpy(), np.stack([np.repeat(grey, 3, 0), colour]))
    assert Folder(path=str(tmp_path / "grey"), split="all").dataset().shape == (1, 8, 8)


class TestIndex:
    def test_what_is_known_is_not_read_again(self, source, large, tmp_path, monkeypatch):
        beside = tmp_path / "index"
        first = source.choose(source.read(beside))
        seen = []

        def looked(file):
            seen.append(file.name)
            return looked_at(file)

        monkeypatch.setattr(lazy, "looked_at", looked)
        monkeypatch.setattr("fewstep.data.table_files.file_hash", looked)
        monkeypatch.setattr("fewstep.data.table.header", looked)
        again = source.choose(source.read(beside))
        assert seen == []
        assert again.fingerprint() == first.fingerprint()
        assert torch.equal(again.images, first.images)

    def test_what_changed_is(self, tmp_path, large):
        write_pictures(tmp_path / "set", **{f"{i:02}": made(1, seed=i)[0][0] for i in range(20)})
        source = Folder(path=str(tmp_path / "set"), split="all")
        first = source.read(tmp_path / "index")
        changed = tmp_path / "set" / "07.png"
        changed.write_bytes(encoded(made(1, seed=99)[0][0]))
        again = source.read(tmp_path / "index")
        assert again.fingerprint() != first.fingerprint()
        (tmp_path / "set" / "20.png").write_bytes(encoded(IMAGES[0].repeat(4, 1).repeat(4, 2)))
        assert len(source.read(tmp_path / "index")) == 21

    def test_the_fingerprint_is_of_contents_and_not_of_places(self, source, large, tmp_path):
        first = source.dataset().fingerprint()
        (tmp_path / "set").rename(tmp_path / "moved")
        moved = type(source)(path=str(tmp_path / "moved"), split="all")
        assert moved.dataset().fingerprint() == first
        assert type(source)(path=moved.path, split="train").dataset().fingerprint() != first
        assert type(source)(path=moved.path, split="all", size=4).dataset().fingerprint() != first

    @pytest.mark.parametrize("content", [b"", b"x" * 100])
    def test_a_damaged_index_is_made_anew(self, tmp_path, content):
        write_pictures(tmp_path / "set", a=IMAGES[0], b=IMAGES[1])
        files = sorted((tmp_path / "set").iterdir())
        beside = tmp_path / "files.safetensors"
        beside.write_bytes(content)
        made_anew = indexed(files, ["a", "b"], looked_at, beside)
        assert made_anew.headers.tolist() == [[8, 8, 0]] * 2
        kept = indexed(files, ["a", "b"], None, beside)  # looks at nothing
        assert torch.equal(kept.digests, made_anew.digests)

    def test_names_of_any_bytes(self, tmp_path):
        import os

        folder = os.fsencode(tmp_path)
        with open(folder + b"/\xff\xfe\n.png", "wb") as file:
            file.write(encoded(IMAGES[0]))
        source = Folder(path=str(tmp_path), split="all")
        for _ in range(2):
            assert len(source.read(tmp_path / "index")) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_gives_the_same_bits_with_workers(source, large, tmp_path, workers):
    """Micro-batches, health on held-out rows, a resume: the log of a run without workers."""
    logs = []
    for number in (0, workers):
        data = replaced(source, split="train", workers=number)
        run = Run(
            data,
            Diffusion(),
            Fresh(network=TINY),
            trainer=TrainerConfig(
                steps=4, batch=8, micro_batch=4, ema=(0.9,), device="cpu", health_every=2
            ),
        )
        distil(run, tmp_path / f"run-{number}", progress=False)
        logs.append(read_log(tmp_path / f"run-{number}" / "log.jsonl"))
    assert len(logs[0]) == 4
    assert logs[0] == logs[1]
    assert not multiprocessing.active_children()
    changed = replaced(run, data=replaced(run.data, workers=0))
    assert distil(changed, tmp_path / f"run-{workers}", progress=False).already
