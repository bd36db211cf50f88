"""Images in and out of files: .npz, a grid, a folder of PNG files."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.files import new_folder, write_bytes
from fewstep.report.figures import grid_image, png, write_grid


def check_place(path: Path, suffixes: Sequence[str] = (".npz", ".png")) -> None:
    """ValueError where no file (of these suffixes) or new folder can be written there, before the
    work is done.
    """
    if parent := next((p for p in path.parents if p.exists() and not p.is_dir()), None):
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
    folder of PNG files.
    """
    if path.suffix == ".npz":
        arrays = {"arr_0": (images * 255).round().byte().permute(0, 2, 3, 1).numpy()}
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        write_bytes(path, out.getvalue())
    elif path.suffix == ".png":
        write_grid(path, images)
    else:
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
        try:
            with np.load(path, allow_pickle=False) as arrays:
                pixels, numbers = arrays["arr_0"], arrays.get("arr_1")
        except FileNotFoundError:
            raise
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{path} is damaged or no .npz file with images as arr_0") from None
        if numbers is not None and (
            numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer)
        ):
            raise ValueError(
                f"{path}: arr_1 must be (n,) whole numbers, got {numbers.shape} {numbers.dtype}"
            )
        labels = None if numbers is None else torch.from_numpy(numbers.astype(np.int64))
        if pixels.ndim != 4 or pixels.dtype != np.uint8:
            raise ValueError(
                f"{path}: arr_0 must be (n, height, width, channels) uint8, got {pixels.shape} "
                f"{pixels.dtype}"
            )
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, labels
    if not path.is_dir():
        raise FileNotFoundError(
            f"no images at {path}: expected a .npz file or a folder of PNG files"
        )
    files = sorted(
        p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    )
    if not files:
        raise ValueError(f"{path} holds no images (PNG, JPEG or WebP)")
    pictures = []
    for file in files:
        try:
            with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
                pictures.append(
                    np.atleast_3d(np.asarray(image if image.mode == "L" else image.convert("RGB")))
                )
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{file} is damaged or no image: {error}") from None
        if pictures[-1].shape != pictures[0].shape:
            raise ValueError(
                f"mixed sizes in {path}: {files[0].name} is {pictures[0].shape}, {file.name} "
                f"{pictures[-1].shape}"
            )
    prefixes = [file.stem.split("_")[0] for file in files]
    numeric = all(p.isdigit() for p in prefixes) and all("_" in file.stem for file in files)
    labels = torch.tensor([int(p) for p in prefixes]) if numeric else None
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255, labels
