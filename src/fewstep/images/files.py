"""Images into files: .npz, a grid, a folder of PNG files. Sources of data read them."""

import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from fewstep.files import new_folder, write_bytes
from fewstep.finite import check_images
from fewstep.images.grid import as_bytes, grid_image, png, write_grid


def check_place(path: Path, suffixes: Sequence[str] = (".npz", ".png")) -> None:
    """ValueError where no file (of these suffixes) or new folder can be written there, before the
    work is done.
    """
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{path} cannot be written: {parent} is a file")
    if path.suffix and path.suffix not in suffixes:
        raise ValueError(f"{path}: expected a {' file, a '.join(suffixes)} file or a folder")
    if path.suffix and path.is_dir():
        raise ValueError(f"{path} is a folder")
    if not path.suffix and path.is_file():
        raise ValueError(f"{path} is a file; choose another name")
    if not path.suffix and path.exists() and any(path.iterdir()):
        raise ValueError(f"{path} is a folder with files in it; choose a new one")
    _check_writable(path)


def _check_writable(path: Path) -> None:
    there = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {there}: {error.strerror}") from None


def write_images(
    path: Path, images: Tensor, labels: Tensor | None, captions: Sequence[str] | None = None
) -> None:
    """Writes images in [0, 1]: .npz (arr_0 NHWC uint8, arr_1 labels, captions), .png (a grid), else
    a new folder of PNG files, with captions in a metadata.csv. NotFiniteError, and nothing written,
    where their numbers are not finite.
    """
    if path.suffix == ".npz":
        arrays = {"arr_0": as_bytes(images)}
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        if captions is not None:
            arrays["captions"] = np.array(captions, dtype=np.str_)
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        write_bytes(path, out.getvalue())
    elif path.suffix == ".png":
        write_grid(path, images)
    else:
        check_images(images)
        names = []
        with new_folder(path) as beside:
            for i, image in enumerate(images):
                label = "" if labels is None or labels[i] < 0 else f"{int(labels[i])}_"
                names.append(f"{label}{i:06d}.png")
                (beside / names[i]).write_bytes(png(grid_image(image[None], 1)))
            if captions is not None:
                _write_captions(beside / "metadata.csv", names, captions)


def _write_captions(path: Path, names: Sequence[str], captions: Sequence[str]) -> None:
    """A table beside the pictures, as Hugging Face's image folders have it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        writer.writerows(zip(names, captions))
