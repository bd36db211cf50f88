"""Images in files: .npz, a grid, a folder of PNG files."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.files import new_folder, write_bytes
from fewstep.finite import check_images
from fewstep.images.grid import as_bytes, grid_image, png, write_grid

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 64_000_000  # a larger picture is rather an attack on the memory
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


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


def write_images(path: Path, images: Tensor, labels: Tensor | None) -> None:
    """Writes images in [0, 1]: .npz (arr_0 NHWC uint8, arr_1 labels), .png (a grid), else a new
    folder of PNG files. NotFiniteError, and nothing written, where their numbers are not finite.
    """
    if path.suffix == ".npz":
        arrays = {"arr_0": as_bytes(images)}
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        write_bytes(path, out.getvalue())
    elif path.suffix == ".png":
        write_grid(path, images)
    else:
        check_images(images)
        with new_folder(path) as beside:
            for i, image in enumerate(images):
                label = "" if labels is None else f"{int(labels[i])}_"
                (beside / f"{label}{i:06d}.png").write_bytes(png(grid_image(image[None], 1)))


def read_images(path: Path) -> tuple[Tensor, Tensor | None]:
    """Images in [0, 1] and labels of a .npz file or an image folder (class as file-name prefix
    `3_…`, if numeric).

    Raises FileNotFoundError or ValueError that name the file.
    """
    if path.suffix == ".npz":
        return _read_archive(path)
    if path.is_dir():
        return _read_folder(path)
    raise FileNotFoundError(f"no images at {path}: expected a .npz file or a folder of PNG files")


def _read_archive(path: Path) -> tuple[Tensor, Tensor | None]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels, numbers = arrays["arr_0"], arrays.get("arr_1")
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} is damaged or no .npz file with images as arr_0") from None
    if pixels.ndim != 4 or pixels.dtype != np.uint8:
        raise ValueError(
            f"{path}: arr_0 must be (n, height, width, channels) uint8, got {pixels.shape} "
            f"{pixels.dtype}"
        )
    if numbers is None:
        return _floats(pixels), None
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"{path}: arr_1 must be (n,) whole numbers, got {numbers.shape} {numbers.dtype}"
        )
    return _floats(pixels), torch.from_numpy(numbers.astype(np.int64))


def _read_folder(path: Path) -> tuple[Tensor, Tensor | None]:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no images (PNG, JPEG or WebP)")
    pictures: list[Pixels] = []
    for file in files:
        picture = _picture(file)
        if pictures and picture.shape != pictures[0].shape:
            raise ValueError(
                f"mixed sizes in {path}: {files[0].name} is {pictures[0].shape}, "
                f"{file.name} {picture.shape}"
            )
        pictures.append(picture)
    return _floats(np.stack(pictures)), _labels(files)


def _picture(file: Path) -> Pixels:
    """(height, width, 1 or 3) uint8."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"more than {MOST_PIXELS} pixels")
            kept = image if image.mode == "L" else image.convert("RGB")
            return np.atleast_3d(np.asarray(kept))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} is damaged or no image: {error}") from None


def _labels(files: Sequence[Path]) -> Tensor | None:
    """What stands before the first `_` of all names, where these are numbers."""
    labels = []
    for file in files:
        label, line, _ = file.stem.partition("_")
        if not line or not label.isdigit():
            return None
        labels.append(int(label))
    return torch.tensor(labels)


def _floats(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
