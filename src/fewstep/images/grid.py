"""Many images in one picture, and pictures as PNG."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fewstep.files import write_bytes
from fewstep.finite import check_images

WIDTH = 640  # pixels that a grid of small images is enlarged to
LINE = 128  # the grey between images


def as_bytes(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(n, channels, height, width) in [0, 1] as (n, height, width, channels) of 8 bits.
    NotFiniteError.
    """
    check_images(images)
    pixels: Any = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def grid_image(images: Tensor, columns: int, zoom: int = 1) -> Image.Image:
    """(n, channels, height, width) in [0, 1] as one picture, with a line of one pixel (times zoom)
    between images.
    """
    pixels = as_bytes(images)
    n, height, width, channels = pixels.shape
    rows = math.ceil(n / columns)
    size = (rows * (height + 1) - 1, columns * (width + 1) - 1, channels)
    sheet = np.full(size, LINE, np.uint8)
    for i, picture in enumerate(pixels):
        y = i // columns * (height + 1)
        x = i % columns * (width + 1)
        sheet[y : y + height, x : x + width] = picture
    image = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def write_grid(path: Path, images: Tensor) -> None:
    """All images in one PNG of about 640 pixels or, where they are many or large, more: rows of ten
    if that is even.
    """
    columns = 10 if len(images) % 10 == 0 else math.ceil(math.sqrt(len(images)))
    zoom = max(1, WIDTH // (columns * (images.shape[-1] + 1)))
    write_bytes(path, png(grid_image(images, columns, zoom)))


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
