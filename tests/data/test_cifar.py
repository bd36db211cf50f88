"""CIFAR: every version gives the same images; what is damaged or hostile is named, and nothing of
it is run.
"""

import gzip
import pickle
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
from tests.data.picture_files import (
    cifar_bytes,
    encoded,
    made,
    python2_pickle,
    tar_bytes,
    write_parquet,
)

from fewstep.data import cifar
from fewstep.data.cifar import Cifar

IMAGES, LABELS = made(12)


def read(path, **options):
    return Cifar(path=str(path), **options).read()


def python3_pickle(protocol, key=str.encode, images=IMAGES, labels=None, order="C"):
    rows = np.asarray(images.reshape(len(images), -1), order=order)
    return pickle.dumps(
        {key("data"): rows, key("labels"): labels or LABELS.tolist()}, protocol=protocol
    )


def nested(depth):
    """A small pickle of 10^depth numbers: each list holds the one before ten times."""
    numbers = [0] * 10
    for _ in range(depth - 1):
        numbers = [numbers] * 10
    return numbers


VERSIONS = {
    "data_batch_1.bin": cifar_bytes(IMAGES, LABELS),
    "data_batch_1": python2_pickle(IMAGES, labels=LABELS),
    "cifar-10-python.tar.gz": tar_bytes(
        {
            "cifar-10-batches-py/batches.meta": b"x",
            "cifar-10-batches-py/data_batch_1": python2_pickle(IMAGES[:5], labels=LABELS[:5]),
            "cifar-10-batches-py/data_batch_2": python2_pickle(IMAGES[5:], labels=LABELS[5:]),
            "cifar-10-batches-py/test_batch": python2_pickle(IMAGES[:2], labels=LABELS[:2]),
        }
    ),
    "cifar-10-binary.tar.gz": tar_bytes(
        {"cifar-10-batches-bin/data_batch_1.bin": cifar_bytes(IMAGES, LABELS)}
    ),
    "cifar10.tar": tar_bytes({"data_batch_1.bin": cifar_bytes(IMAGES, LABELS)}, packed=False),
    "cifar10.tgz": tar_bytes({"data_batch_1": python3_pickle(2)}),
    "test_batch": python3_pickle(4),
}


def check(dataset, images=IMAGES, labels=LABELS, classes=10):
    assert np.array_equal(dataset.images.numpy(), images)
    assert dataset.labels.tolist() == list(labels)
    assert (dataset.classes, dataset.shape) == (classes, (3, 32, 32))
    assert dataset.ids.tolist() == list(range(len(images)))


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("place", ["folder", "file", "below"])
def test_every_version_gives_the_same(tmp_path, name, place):
    file = tmp_path / "cifar" / ("inner" if place == "below" else "") / name
    file.parent.mkdir(parents=True)
    file.write_bytes(VERSIONS[name])
    dataset = read(file if place == "file" else tmp_path / "cifar")
    check(dataset)
    assert str(file) in dataset.notes["files"]


@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_gives_the_same(tmp_path, column):
    file = write_parquet(
        tmp_path / "plain_text" / "train-0.parquet", map(encoded, IMAGES), column, label=LABELS
    )
    check(read(tmp_path), classes=LABELS.max() + 1)
    check(read(file), classes=LABELS.max() + 1)
    assert read(tmp_path).notes["files"] == str(file)


def test_the_pickle_of_these_tests_is_one():
    """Python's own reader finds in it what was written."""
    table = pickle.loads(VERSIONS["data_batch_1"], encoding="bytes")
    assert np.array_equal(table[b"data"], IMAGES.reshape(12, -1))
    assert table[b"labels"] == LABELS.tolist()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("key", [str, str.encode])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_python_3(tmp_path, protocol, key, order):
    (tmp_path / "data_batch_1").write_bytes(python3_pickle(protocol, key, order=order))
    check(read(tmp_path))


HUNDRED = made(100, 100)
COARSE = HUNDRED[1] // 5
HUNDREDS = {
    "train.bin": cifar_bytes(HUNDRED[0], COARSE, HUNDRED[1]),
    "train": python2_pickle(HUNDRED[0], coarse_labels=COARSE, fine_labels=HUNDRED[1]),
    "cifar-100-python.tar.gz": tar_bytes(
        {"train": python2_pickle(HUNDRED[0], fine_labels=HUNDRED[1], coarse_labels=COARSE)}
    ),
    "train.parquet": None,
}


@pytest.mark.parametrize("name", HUNDREDS)
def test_the_fine_and_coarse_classes_of_cifar_100(tmp_path, name):
    images, fine = HUNDRED
    if HUNDREDS[name] is None:
        write_parquet(tmp_path / name, map(encoded, images), fine_label=fine, coarse_label=COARSE)
    else:
        (tmp_path / name).write_bytes(HUNDREDS[name])
    check(read(tmp_path), images, fine, 100)
    check(read(tmp_path, labels="coarse"), images, COARSE, 20)


def test_cifar_10_has_no_coarse_labels(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(VERSIONS["data_batch_1.bin"])
    with pytest.raises(ValueError, match=r"data_batch_1\.bin has no coarse_labels, only labels"):
        read(tmp_path, labels="coarse")
    write_parquet(tmp_path / "parquet" / "train.parquet", map(encoded, IMAGES), label=LABELS)
    with pytest.raises(
        ValueError, match=r"train\.parquet.*no column coarse_label, only img, label"
    ):
        read(tmp_path / "parquet", labels="coarse")


@pytest.mark.parametrize(
    ("training", "test"),
    [
        ("data_batch_1.bin", "test_batch.bin"),
        ("data_batch_3", "test_batch"),
        ("train-0.parquet", "test-0.parquet"),
    ],
)
def test_training_files_go_first_and_test_files_will_do(tmp_path, training, test):
    def write(name, images, labels):
        if name.endswith("parquet"):
            write_parquet(tmp_path / name, map(encoded, images), label=labels)
        elif name.endswith("bin"):
            (tmp_path / name).write_bytes(cifar_bytes(images, labels))
        else:
            (tmp_path / name).write_bytes(python2_pickle(images, labels=labels))

    write(test, IMAGES[:10], LABELS[:10])
    only = read(tmp_path)
    assert (only.labels.tolist(), only.notes["files"]) == (
        LABELS[:10].tolist(),
        str(tmp_path / test),
    )
    write(training, IMAGES[10:], LABELS[10:])
    both = read(tmp_path)
    assert (both.labels.tolist(), both.notes["files"]) == (
        LABELS[10:].tolist(),
        str(tmp_path / training),
    )
    assert read(tmp_path / test).labels.tolist() == LABELS[:10].tolist()


def test_the_batches_are_read_in_their_order(tmp_path):
    for i in range(3):
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(
            cifar_bytes(IMAGES[4 * i :][:4], LABELS[4 * i :][:4])
        )
    check(read(tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        "data_batch_1",
        "cifar-10-python.tar.gz",
        "inner/data_batch_2.bin",
        "train.bin",
        "cifar-100.tar",
        "notes/train",
    ],
)
def test_of_several_versions_the_largest_is_used_alone(tmp_path, other):
    """The same batches in two versions, or those of another data set, must not be mixed."""
    (tmp_path / "data_batch_1.bin").write_bytes(cifar_bytes(*made(40)))
    (tmp_path / other).parent.mkdir(exist_ok=True)
    content = (VERSIONS | HUNDREDS).get(other) or VERSIONS["data_batch_1.bin"]
    (tmp_path / other).write_bytes(content[: 3074 * 10] if other == "train.bin" else content)
    dataset = read(tmp_path)
    check(dataset, *made(40))
    assert dataset.notes["files"] == str(tmp_path / "data_batch_1.bin")


# What is hostile.


def marking(marker, module="builtins", name="exec", code="open({!r}, 'w')"):
    """Opcodes that run code as soon as they are loaded."""
    return f"c{module}\n{name}\n".encode() + b"(V" + code.format(str(marker)).encode() + b"\ntR"


class TestHostile:
    def test_the_attack_works_where_nobody_defends(self, tmp_path):
        """Without this the tests below would show nothing."""
        pickle.loads(b"\x80\2" + marking(tmp_path / "marker") + b".")
        assert (tmp_path / "marker").exists()

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize(
        "where",
        ["whole", "value", "before", "instance", "numpy", "shell", "stack", "inert", "object"],
    )
    def test_no_code_of_a_pickle_is_run(self, tmp_path, where, packed):
        marker = tmp_path / "marker"
        call = marking(marker)
        code = f"open({str(marker)!r}, 'w')".encode()
        content = {
            "whole": b"\x80\2" + call + b".",
            "value": b"\x80\2}U\x06labels" + call + b"s.",
            "before": b"\x80\2" + call + b"0" + VERSIONS["data_batch_1"][2:],
            "instance": b"(V" + code + b"\nibuiltins\nexec\n.",
            "numpy": b"\x80\2" + marking(marker, "numpy", "load") + b".",
            "shell": b"\x80\2" + marking(marker, "os", "system", "touch {}") + b".",
            "stack": b"\x80\4\x8c\x08builtins\x8c\x04exec\x93\x8c"
            + bytes([len(code)])
            + code
            + b"\x85R.",
            "inert": b"\x80\2cnumpy\ndtype\n(V" + code + b"\ntR}U\x05stateV" + code + b"\nsb.",
            "object": b"\x80\2(cbuiltins\nexec\nV" + code + b"\no.",
        }[where]
        content = b"\x80\2" + content if content[:1] != b"\x80" else content
        name = "cifar-10-python.tar.gz" if packed else "data_batch_1"
        (tmp_path / name).write_bytes(tar_bytes({"data_batch_1": content}) if packed else content)
        with pytest.raises(ValueError, match="data_batch_1 is damaged or no CIFAR") as error:
            read(tmp_path)
        assert not marker.exists()
        named = {"numpy": "numpy.load", "shell": "os.system", "inert": "damaged"}.get(
            where, "builtins.exec"
        )
        assert named in str(error.value)
        assert str(tmp_path / name) in str(error.value)

    @pytest.mark.parametrize(
        "content",
        [
            b"\x80\2}r\xff\xff\xff\x7f.",  # LONG_BINPUT at 2 G
            b"\x80\2}p2000000000\n.",
            b"\x80\4\x8e" + struct.pack("<Q", 2**60) + b"x.",  # BINBYTES8
            b"\x80\5\x96" + struct.pack("<Q", 2**33) + b"x.",  # BYTEARRAY8
            b"\x80\4\x95" + struct.pack("<Q", 2**40) + b"}.",  # FRAME
            b"\x80\2T" + struct.pack("<i", 2**31 - 1) + b"x.",
            VERSIONS["data_batch_1"].replace(
                struct.pack("<H", 12) + b"M", struct.pack("<H", 65535) + b"M"
            ),
            python3_pickle(2, labels=nested(9)),
        ],
        ids=["binput", "put", "bytes", "bytearray", "frame", "string", "shape", "nested"],
    )
    def test_forged_sizes_cost_a_message_and_no_memory(self, tmp_path, content):
        (tmp_path / "data_batch_1").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ValueError, match="data_batch_1 is damaged or no CIFAR"):
            read(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6

    def test_a_pickle_of_many_small_things(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cifar, "MOST_OPCODES", 1000)
        (tmp_path / "data_batch_1").write_bytes(b"\x80\2(" + b"}" * 2000 + b"t.")
        with pytest.raises(ValueError, match="more memory than CIFAR needs"):
            read(tmp_path)
        (tmp_path / "data_batch_1").write_bytes(VERSIONS["data_batch_1"])
        check(read(tmp_path))

    def test_archives_that_unpack_to_too_much(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cifar, "MOST_BYTES", 1 << 20)
        file = tmp_path / "cifar-10-python.tar.gz"
        file.write_bytes(tar_bytes({"x": bytes(2 << 20)}))
        with pytest.raises(
            ValueError, match=r"cifar-10-python\.tar\.gz.*unpacks to more than 1 MB"
        ):
            read(tmp_path)

    def test_nothing_is_written_and_links_are_passed_over(self, tmp_path):
        (tmp_path / "secret").write_bytes(VERSIONS["data_batch_1.bin"])
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        hard = tarfile.TarInfo("data_batch_2.bin")
        hard.type, hard.linkname = tarfile.LNKTYPE, "../secret"
        pipe = tarfile.TarInfo("data_batch_3.bin")
        pipe.type = tarfile.FIFOTYPE
        archive = tmp_path / "in" / "cifar.tar.gz"
        archive.parent.mkdir()
        archive.write_bytes(tar_bytes({"1": link, "2": hard, "3": pipe}))
        with pytest.raises(ValueError, match=r"cifar\.tar\.gz holds no CIFAR"):
            read(archive)
        archive.write_bytes(
            tar_bytes({"1": link, "../../data_batch_4.bin": VERSIONS["data_batch_1.bin"]})
        )
        dataset = read(archive)
        check(dataset)
        assert dataset.notes["files"] == str(archive / "data_batch_4.bin")
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["cifar.tar.gz", "in", "secret"]


# What is damaged.


class TestDamaged:
    @pytest.mark.parametrize("name", ["data_batch_1.bin", "train.bin"])
    @pytest.mark.parametrize("length", [0, 1, 3072, -1, -3072])
    def test_a_cut_binary_file(self, tmp_path, name, length):
        whole = (VERSIONS | HUNDREDS)[name]
        (tmp_path / name).write_bytes(whole[:length])
        record = 3073 + (name == "train.bin")
        with pytest.raises(
            ValueError, match=rf"{name} is cut off or empty: {len(whole[:length])} .* {record}"
        ):
            read(tmp_path)

    @pytest.mark.parametrize("share", [0, 0.0001, 0.5, 0.999])
    def test_a_cut_pickle(self, tmp_path, share):
        whole = VERSIONS["data_batch_1"]
        (tmp_path / "data_batch_1").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="data_batch_1 is damaged"):
            read(tmp_path)

    def test_an_empty_batch_among_others_is_not_passed_over(self, tmp_path):
        (tmp_path / "data_batch_1").write_bytes(VERSIONS["data_batch_1"])
        (tmp_path / "data_batch_2").write_bytes(b"")
        with pytest.raises(ValueError, match="data_batch_2 is damaged"):
            read(tmp_path)

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_a_cut_archive(self, tmp_path, packed, share):
        whole = tar_bytes(
            {f"data_batch_{i}.bin": VERSIONS["data_batch_1.bin"] for i in range(3)}, packed
        )
        file = tmp_path / "cifar-10-binary.tar.gz"
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=rf"{file} is damaged or cut off"):
            read(tmp_path)

    def test_an_archive_that_ends_between_two_members(self, tmp_path):
        """Where every header and member is whole, only the end mark tells that some are missing."""
        members = {f"data_batch_{i}.bin": VERSIONS["data_batch_1.bin"] for i in range(3)}
        whole, less = (
            tar_bytes(members, packed=False),
            tar_bytes(dict(list(members.items())[:2]), False, end=False),
        )
        assert whole.startswith(less)
        for packed in (False, True):
            (tmp_path / "cifar.tar").write_bytes(gzip.compress(less) if packed else less)
            with pytest.raises(
                ValueError, match=r"cifar\.tar is damaged or cut off: its end is missing"
            ):
                read(tmp_path)

    @pytest.mark.parametrize("where", ["header", "checksum"])
    def test_a_flipped_bit_in_an_archive(self, tmp_path, where):
        plain = bytearray(
            tar_bytes(
                {f"data_batch_{i}.bin": VERSIONS["data_batch_1.bin"] for i in range(3)},
                packed=False,
            )
        )
        packed = bytearray(gzip.compress(plain, 1))
        size = -(-len(VERSIONS["data_batch_1.bin"]) // 512) * 512 + 512
        plain[size + 3] ^= 1  # the second header
        packed[-6] ^= 1
        (tmp_path / "cifar.tar").write_bytes(plain if where == "header" else packed)
        with pytest.raises(ValueError, match=r"cifar\.tar is damaged"):
            read(tmp_path)

    def test_labels_out_of_range(self, tmp_path):
        (tmp_path / "test_batch.bin").write_bytes(
            cifar_bytes(IMAGES, np.where(np.arange(12) == 7, 10, LABELS))
        )
        with pytest.raises(
            ValueError, match=r"test_batch\.bin: 1 labels out of range 0 … 9.*10 of image 7"
        ):
            read(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            python2_pickle(IMAGES, labels=LABELS[:11]),
            python2_pickle(IMAGES, other=LABELS),
            python3_pickle(2, images=IMAGES[:, :, :16]),
            pickle.dumps({"labels": [1]}, 2),
            pickle.dumps([1, 2], 2),
            pickle.dumps({"data": 3, "labels": [1]}, 2),
            pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [1]}, 2),
        ],
        ids=["labels", "no labels", "size", "no data", "list", "number", "floats"],
    )
    def test_a_pickle_of_something_else(self, tmp_path, content):
        (tmp_path / "data_batch_1").write_bytes(content)
        with pytest.raises(
            ValueError,
            match=r"data_batch_1 (is damaged or no CIFAR|is no CIFAR|has no fine_labels)",
        ):
            read(tmp_path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match="no data: give data"):
            Cifar().read()
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere")
        (tmp_path / "notes.txt").write_text("x")
        for path in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(ValueError, match=r"no CIFAR .* in .*found: notes\.txt"):
                read(path)


def test_a_table_without_pictures_is_no_cifar(tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt,label\na cat,0\n")
    with pytest.raises(ValueError, match=r"prompts\.csv has no pictures, only label, caption"):
        Cifar(path=str(tmp_path)).read()
