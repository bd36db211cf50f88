"""Pictures as files hold them (PNG, JPEG, WebP), decoded to pixels of one size and one number of
channels.
"""

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fewstep.images.files import FORMATS, MOST_PIXELS

MOST_BAD = 0.01  # the share of bad pictures above which leaving them out would change the data
GREY = ("1", "L", "LA", "I", "I;16")  # Pillow's modes
ORIENTATION, TURNED = 0x0112, 5  # EXIF's tag, and its first value that swaps the sides

Channels = Literal["auto", "grey", "rgb"]
OnBad = Literal["error", "skip"]
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class How(NamedTuple):
    """How pictures are read: what every source of them has as options.

    size: the short side becomes `size` and the middle square is cut out; 0 keeps what is there.
    channels: auto gives 1 if all are grey, else 3. on_bad: skip leaves out what cannot be read, up
    to 1 % of all.
    """

    size: int = 0
    channels: Channels = "auto"
    on_bad: OnBad = "error"


def decode_all(
    pictures: Sequence[tuple[str, Path | bytes]], how: How, workers: int
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Images (n, channels, height, width) uint8, their places in `pictures` (n,), and notes on
    those left out.

    pictures: names, with the file or its content. workers: threads; their number changes nothing in
    the result. ValueError names the picture.
    """

    def attempt(picture: tuple[str, Path | bytes]) -> Pixels | str:
        name, content = picture
        try:
            read = content.read_bytes() if isinstance(content, Path) else content
            return decode(read, how.size, how.channels)
        except MemoryError:
            raise
        except Exception as error:  # damaged content makes Pillow raise nearly every type there is
            return f"{name}: {error}"

    with warnings.catch_warnings(), ThreadPoolExecutor(max(workers, 1)) as pool:
        # Not in a thread: filters are the process's.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        outcomes = list((pool.map if workers else map)(attempt, pictures))
    bad, found = [], {}
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, str):
            bad.append((pictures[place][0], outcome))
        else:
            found[place] = outcome
    notes = left_out(bad, len(pictures), how.on_bad)
    images = stacked(list(found.values()), [pictures[place][0] for place in found])
    return images, torch.tensor(list(found)), notes


def left_out(bad: Sequence[tuple[str, str]], total: int, on_bad: OnBad) -> dict[str, str]:
    """Notes on pictures that are left out: (name, "name: reason") of each. ValueError where none,
    or not so many, may be.
    """
    if not bad:
        return {}
    count = f"{len(bad)} of {total}"
    if on_bad == "error" or len(bad) > MOST_BAD * total:
        remedy = f"on_bad=skip leaves out up to {MOST_BAD:.0%}"
        raise ValueError(f"{count} pictures cannot be read ({remedy}), the first is {bad[0][1]}")
    more = ", …" if len(bad) > 5 else ""
    return {"bad": f"{count}: {', '.join(name for name, _ in bad[:5])}{more}"}


def stacked(pictures: Sequence[Pixels], names: Sequence[str]) -> Tensor:
    """Decoded pictures as one tensor (n, channels, height, width); grey among colours is the same
    in all three. ValueError where their sizes differ.
    """
    first = pictures[0]
    for name, one in zip(names, pictures):
        if one.shape[:2] != first.shape[:2]:
            what = (
                f"{names[0]} of {first.shape[0]}×{first.shape[1]} and "
                f"{name} of {one.shape[0]}×{one.shape[1]}"
            )
            raise ValueError(f"pictures of different sizes, {what}: size=N makes all of them N×N")
    depth = max(one.shape[2] for one in pictures)
    images = np.empty((len(pictures), depth, *first.shape[:2]), np.uint8)
    for image, one in zip(images, pictures):
        image[:] = one.transpose(2, 0, 1)
    return torch.from_numpy(images)


def header(content: bytes) -> tuple[int, int, int]:
    """Width and height as the picture is shown, and whether it is grey; 0, 0, 0 where it cannot be
    read. Nothing is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Any = Image.open(io.BytesIO(content), formats=FORMATS)
        wide, high = image.size
        if wide * high > MOST_PIXELS:
            return 0, 0, 0
        # Of a PNG file without such a chunk, Pillow would decode everything to look for one.
        may_turn = image.format != "PNG" or b"eXIf" in content
        if may_turn and image.getexif().get(ORIENTATION, 1) >= TURNED:
            wide, high = high, wide
        return wide, high, int(image.mode in GREY)
    except MemoryError:
        raise
    except Exception:  # damaged content makes Pillow raise nearly every type there is
        return 0, 0, 0


def decode(content: bytes, size: int = 0, channels: Channels = "auto") -> Pixels:
    """The pixels (height, width, 1 or 3) of one picture. Pillow's errors or ValueError where it
    cannot be read.

    It is turned as its EXIF says. What is transparent lies on white; 16 bits become 8; all but grey
    becomes RGB.
    """
    if not content:
        raise ValueError("it is empty")
    try:
        image: Any = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(
            f"it is no {', '.join(FORMATS)}"
        ) from None  # Pillow's text holds an address in memory
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width}×{image.height} pixels are more than {MOST_PIXELS}")
    if image.format == "PNG":
        image.verify()  # the checksums, which loading does not look at
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    ImageOps.exif_transpose(image, in_place=True)
    grey = channels == "grey" or (channels == "auto" and image.mode in GREY)
    if image.mode.startswith("I"):
        image = Image.fromarray(
            ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        )
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    mode = "L" if grey else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size:
        wide, high = (round(side * size / min(image.size)) for side in image.size)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.resize((wide, high), Image.Resampling.LANCZOS).crop(
            (left, top, left + size, top + size)
        )
    return np.atleast_3d(np.asarray(image))
