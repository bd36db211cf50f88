"""Writes IDX files, whole and damaged."""

import gzip
import struct

import numpy as np


def idx_bytes(array):
    """The content of an IDX file of bytes with these numbers."""
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path, array, packed=False):
    """Writes an IDX file, gzipped where asked for, and gives its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    return path


def write_pair(folder, count, name="train", size=8, packed=False, seed=0):
    """A pair of images and labels with MNIST's names; gives both arrays."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, size, size), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    end = ".gz" if packed else ""
    write_idx(folder / f"{name}-images-idx3-ubyte{end}", images, packed)
    write_idx(folder / f"{name}-labels-idx1-ubyte{end}", labels, packed)
    return images, labels
