"""Writes pictures, and CIFAR in every version that is handed out, whole and damaged."""

import gzip
import io
import json
import struct
import tarfile

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet


def made(count=12, classes=10, shape=(3, 32, 32), seed=0):
    """Images (n, channels, height, width) uint8 and labels (n,) that go through all classes."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(
        count
    ) * 7 % classes


def encoded(pixels, form="PNG", **options):
    """The bytes of a picture (channels, height, width); lossless where the format can."""
    out = io.BytesIO()
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.save(out, form, **({"lossless": True} if form == "WEBP" else {}), **options)
    return out.getvalue()


def write_pictures(folder, **pictures):
    """PNG files by their path without the suffix (`/` as `__`)."""
    for name, pixels in pictures.items():
        file = folder / f"{name.replace('__', '/')}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(pixels))
    return folder


def write_parquet(path, contents, column="img", packed=True, names=None, checksum=True, **labels):
    """A Parquet file of encoded pictures with these columns of labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": content, "path": None} for content in contents] if packed else contents
    kind = (
        pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        if packed
        else pyarrow.binary()
    )
    table = pyarrow.table(
        {column: pyarrow.array(pictures, kind)} | {k: pyarrow.array(v) for k, v in labels.items()}
    )
    if names:
        features = {
            label: {"names": list(words), "_type": "ClassLabel"} for label, words in names.items()
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    parquet.write_table(
        table, path, write_page_checksum=checksum, compression="none", use_dictionary=False
    )
    return path


def cifar_bytes(images, *labels):
    """The binary version: the labels of an image, then its pixels."""
    columns = [np.asarray(column, np.uint8)[:, None] for column in labels]
    return np.concatenate([*columns, images.reshape(len(images), -1)], 1).tobytes()


def _string(text):
    return (
        b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))
    ) + text


def python2_pickle(images, **labels):
    """The python version as Python 2 wrote it, opcode by opcode: nothing of today writes such
    files.
    """
    dtype = b"cnumpy\ndtype\n" + _string(b"u1") + b"K\0K\1\x87R(K\3" + _string(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xff" * 2 + b"K\0tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + _string(b"b") + b"\x87R"
    )
    array += b"(K\1M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    array += dtype + b"\x89" + _string(images.tobytes()) + b"tb"
    lists = {
        name: b"](" + b"".join(b"K" + bytes([int(n)]) for n in numbers) + b"e"
        for name, numbers in labels.items()
    }
    items = {"data": array, "filenames": b"](" + _string(b"a.png") * len(images) + b"e"} | lists
    return (
        b"\x80\2}q\1"
        + b"".join(_string(name.encode()) + value + b"s" for name, value in items.items())
        + b"."
    )


def tar_bytes(members, packed=True, end=True):
    """A tar archive of {name: content, or a TarInfo without content}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if content is info else len(content)
            archive.addfile(info, None if content is info else io.BytesIO(content))
        whole = archive.offset
    content = out.getvalue() if end else out.getvalue()[:whole]
    return gzip.compress(content, 1) if packed else content


def long_names(count):
    """A tar archive that announces as many long names, and nothing that has them."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10
    return (info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * count + bytes(1024)
