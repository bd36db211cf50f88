"""Forged pickles and archives of CIFAR cost a message, and never the interpreter."""

import pytest
from tests.data.picture_files import cifar_bytes, long_names, made, tar_bytes

from fewstep.data.cifar import Cifar


@pytest.mark.parametrize(
    "deep",
    [
        b")" + b"\x85" * 200_000,
        b")" + b"q\0h\0\x86q\0" * 100_000,
        b"(" * 100_000 + b"t" * 100_000,
        b")" + b"\x85q\0h\0" * 100_000 + b"0" * 50_000 + b"(h\0\x91",
        b")" + b"2\x86" * 100_000,
    ],
    ids=["one", "memo", "marks", "frozenset", "twice"],
)
def test_tuples_in_tuples(tmp_path, deep):
    """Python hashes them by recursion, and would end without a message."""
    (tmp_path / "data_batch_1").write_bytes(b"\x80\4}" + deep + b"Ns.")
    with pytest.raises(ValueError, match=r"data_batch_1 is damaged.*in tuples, more than 50"):
        Cifar(path=str(tmp_path)).read()


@pytest.mark.parametrize("size", [2**70, 2**62, 2**88 - 600])
def test_a_member_of_any_size(tmp_path, size):
    whole = tar_bytes({"data_batch_1.bin": cifar_bytes(*made(12))}, packed=False)
    header = bytearray(whole[:512])
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "cifar.tar").write_bytes(bytes(header) + whole[512:])
    with pytest.raises(ValueError, match=r"cifar\.tar is damaged or cut off: its end is miss"):
        Cifar(path=str(tmp_path)).read()


def test_an_archive_of_nothing_but_long_names(tmp_path):
    (tmp_path / "cifar.tar").write_bytes(long_names(3000))
    with pytest.raises(ValueError, match=r"cifar\.tar is damaged"):
        Cifar(path=str(tmp_path)).read()
