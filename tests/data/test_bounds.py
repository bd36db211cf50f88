"""What a file says of its own size costs a message, and no memory."""

import gzip
import io
import json
import struct
import tarfile
import tracemalloc

import datasets  # noqa: F401  (its import takes memory of its own)
import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from tests.data.idx_files import write_idx, write_pair
from tests.data.picture_files import encoded, long_names, made, tar_bytes

from fewstep.data import bounds
from fewstep.data.bounds import MOST_BYTES, MOST_TIMES, check_bytes
from fewstep.data.folder import Folder
from fewstep.data.idx import Idx
from fewstep.data.prompts import Prompts
from fewstep.data.table import Table

PICTURE = encoded(made(1)[0][0])


@pytest.fixture
def refusal():
    """What is said of a source, where reading it takes less than 8 MB."""

    def call(source, match):
        tracemalloc.start()
        with pytest.raises(ValueError, match=match) as error:
            source.read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
        return str(error.value)

    return call


def test_512_mb_or_20_times_the_file(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(bytes(100))
    check_bytes(file, MOST_BYTES)
    with pytest.raises(ValueError, match=r"x says that it holds 536,870,913 bytes in its 100: ref"):
        check_bytes(file, MOST_BYTES + 1)
    with file.open("r+b") as sparse:
        sparse.truncate(1 << 30)
    check_bytes(file, MOST_TIMES << 30)
    with pytest.raises(ValueError, match="more than 512 MB or 20 times its size"):
        check_bytes(file, (MOST_TIMES << 30) + 1)


class TestIdx:
    @pytest.mark.parametrize("sizes", [(3000, 1024, 1024), (2**32 - 1, 2**32 - 1, 2**32 - 1)])
    def test_a_packed_file_that_unpacks_to_too_much(self, tmp_path, refusal, sizes):
        write_pair(tmp_path, 20)
        content = b"\0\0\x08\x03" + struct.pack(">3I", *sizes) + bytes(4 << 20)
        file = tmp_path / "train-images-idx3-ubyte"
        file.write_bytes(gzip.compress(content))
        refusal(Idx(path=str(file)), r"train-images-idx3-ubyte says that it holds .* 512 MB")

    @pytest.mark.parametrize("shape", [(20, 0, 0), (20, 8, 0), (20, 0, 8, 3)])
    def test_images_of_no_size(self, tmp_path, shape):
        file = write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros(shape))
        told = "×".join(map(str, shape[1:]))
        with pytest.raises(ValueError, match=f"{file}: its header announces images of {told}"):
            Idx(path=str(file)).read()

    def test_many_images_in_a_large_file_are_right(self, tmp_path, monkeypatch):
        monkeypatch.setattr(bounds, "MOST_BYTES", 10)
        images, _ = write_pair(tmp_path, 200, packed=True)
        assert np.array_equal(Idx(path=str(tmp_path)).read().images[:, 0].numpy(), images)


def sparse_member(size):
    """An archive of 1.5 kB whose one member says that it is so large, most of it holes."""

    def octal(number):
        return b"%011o\0" % number

    info = tarfile.TarInfo("0.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = octal(0) + octal(512)
    header[483:495] = octal(size)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + bytes(1024)


class TestTables:
    def test_pages_that_unpack_to_too_much(self, tmp_path, monkeypatch, refusal):
        monkeypatch.setattr(bounds, "MOST_BYTES", 8 << 20)
        rows = pyarrow.table({"image": pyarrow.array([bytes(1 << 20)] * 12)})
        file = tmp_path / "x.parquet"
        parquet.write_table(rows, file, compression="zstd", use_dictionary=False)
        refusal(Table(path=str(file)), r"x\.parquet says that it holds 12,58.* more than 8 MB")

    def test_rows_that_repeat_a_large_entry(self, tmp_path, monkeypatch, refusal):
        """Of a dictionary, which is packed once; small ones may be repeated."""
        monkeypatch.setattr(bounds, "MOST_BYTES", 8 << 20)
        file = tmp_path / "x.parquet"
        for size, refused in ((1 << 20, True), (1000, False)):
            rows = pyarrow.table({"image": pyarrow.array([bytes(size)] * 12)})
            parquet.write_table(rows, file, compression="zstd", dictionary_pagesize_limit=1 << 30)
            says = r"x\.parquet says that it holds 13,63" if refused else "no PNG"
            with pytest.raises(ValueError, match=says):
                Table(path=str(file)).read()

    @pytest.mark.parametrize("form", ["stream", "file"])
    @pytest.mark.parametrize("packing", ["zstd", "lz4", None])
    def test_buffers_that_unpack_to_too_much(self, tmp_path, monkeypatch, form, packing):
        monkeypatch.setattr(bounds, "MOST_BYTES", 8 << 20)
        rows = pyarrow.table({"image": pyarrow.array([bytes(1 << 20)] * 12)})
        options = pyarrow.ipc.IpcWriteOptions(compression=packing)
        writer = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
        with writer(str(tmp_path / "x.arrow"), rows.schema, options=options) as out:
            out.write_table(rows)
        says = r"x\.arrow says that it holds 12,58" if packing else "no PNG"
        with pytest.raises(ValueError, match=says):
            Table(path=str(tmp_path)).read()

    @pytest.mark.parametrize("packed", [False, True])
    def test_members_that_unpack_to_too_much(self, tmp_path, monkeypatch, refusal, packed):
        monkeypatch.setattr(bounds, "MOST_BYTES", 8 << 20)
        members = {f"{i}.png": bytes(1 << 20) for i in range(12)}
        content = tar_bytes(members) if packed else sparse_member(1 << 32)
        (tmp_path / "x.tar").write_bytes(content)
        told = "9,437,184" if packed else "4,294,967,296"
        refusal(Table(path=str(tmp_path)), rf"x\.tar says that it holds {told} bytes")

    def test_an_archive_of_nothing_but_long_names(self, tmp_path):
        (tmp_path / "x.tar").write_bytes(long_names(3000))
        with pytest.raises(ValueError, match=r"x\.tar is damaged or cannot be used"):
            Table(path=str(tmp_path)).read()

    def test_an_archive_in_the_archive(self, tmp_path, monkeypatch, refusal):
        """What reads an archive unpacks those in it, too."""
        monkeypatch.setattr(bounds, "MOST_BYTES", 8 << 20)
        inner = io.BytesIO()
        np.savez_compressed(inner, np.zeros(12 << 20, np.uint8))
        members = {"0.png": PICTURE, "0.npz": inner.getvalue()}
        (tmp_path / "x.tar").write_bytes(tar_bytes(members, packed=False))
        refusal(Table(path=str(tmp_path)), r"x\.tar says that it holds 12,")


class TestJsonLines:
    @pytest.mark.parametrize("start", ["[", '{"a":', "[[", '"]]]", [', "[\n"])
    def test_lists_in_lists(self, tmp_path, start):
        """A reader that recurs would end the interpreter."""
        file = tmp_path / "x.jsonl"
        file.write_text('{"caption": "x", "b": [' + start * 150_000 + "]}\n")
        with pytest.raises(ValueError, match=r"x\.jsonl holds lists in lists, more than 100 deep"):
            Table(path=str(tmp_path)).read()

    def test_brackets_in_texts_are_none(self, tmp_path):
        texts = ["[" * 300, '\\" [{' * 200, "]]", "a [cat] {here}"]
        lines = [json.dumps({"caption": text}) for text in texts]
        (tmp_path / "x.jsonl").write_text("\n".join(lines))
        dataset = Table(path=str(tmp_path), split="all").dataset()
        assert dataset.rows(torch.arange(4))["caption"] == texts

    def test_a_line_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(bounds, "LONGEST_LINE", 1000)
        (tmp_path / "x.jsonl").write_text('{"caption": "' + "a" * 2000 + '"}\n')
        with pytest.raises(ValueError, match=r"x\.jsonl: a line of more than"):
            Table(path=str(tmp_path)).read()


def test_whole_files_stay_readable(tmp_path):
    members = {f"{i}.png": PICTURE for i in range(6)}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members, packed=False))
    assert len(Table(path=str(tmp_path)).read()) == 6


class TestTexts:
    @pytest.mark.parametrize("begun", ["", "file_name\n1.png\n"])
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
    def test_a_file_of_holes_is_no_text(self, tmp_path, refusal, suffix, begun):
        """Of 1 GB, of which no more than a first block is read."""
        file = tmp_path / f"rows.{suffix}"
        file.write_text(begun)
        with file.open("r+b") as sparse:
            sparse.truncate(1 << 30)
        source = Prompts if suffix == "txt" else Table
        told = f"is no text in UTF-8: byte {len(begun)} is 0"
        refusal(source(path=str(file)), rf"rows\.{suffix} {told}")

    def test_captions_of_holes(self, tmp_path, refusal):
        (tmp_path / "a.png").write_bytes(PICTURE)
        with (tmp_path / "a.txt").open("wb") as sparse:
            sparse.truncate(1 << 30)
        refusal(Folder(path=str(tmp_path)), r"a\.txt is no text in UTF-8: byte 0 is 0")

    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
    def test_a_long_line(self, tmp_path, monkeypatch, suffix):
        monkeypatch.setattr(bounds, "LONGEST_LINE", 1 << 20)
        file = tmp_path / f"rows.{suffix}"
        file.write_text("caption\n" + "a" * ((1 << 20) + 1))
        with pytest.raises(ValueError, match=rf"rows\.{suffix}: a line of more than 1 MB"):
            Table(path=str(file)).read()

    def test_holes_behind_the_first_block(self, tmp_path):
        file = tmp_path / "rows.csv"
        file.write_text("caption\n" * 10_000 + "a\0b\n")
        with pytest.raises(ValueError, match=r"rows\.csv is no text in UTF-8: byte 80001 is 0"):
            Table(path=str(file)).read()
