"""Pictures as files hold them (PNG, JPEG, WebP), decoded to pixels of one size and one number of
channels.
"""

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 64_000_000  # a larger picture is rather an attack on the memory
MOST_BAD = (
    0.01  # the share of bad pictures above which leaving them out would change what is learned
)

Channels = Literal["auto", "grey", "rgb"]
OnBad = Literal["error", "skip"]
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def decode_all(
    pictures: Sequence[tuple[str, Path | bytes]],
    size: int,
    channels: Channels,
    workers: int,
    on_bad: OnBad,
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Images (n, channels, height, width) uint8, their places in `pictures` (n,), and notes on
    those left out.

    pictures: names, with the file or its content. size: the short side becomes `size` and the
    middle square is cut out; 0 keeps what is there. channels: auto gives 1 if all are grey, else 3.
    workers: threads; their number changes nothing in the result. on_bad: skip leaves out what
    cannot be read, up to 1 % of all. ValueError names the picture.
    """

    def attempt(picture: tuple[str, Path | bytes]) -> Pixels | str:
        name, content = picture
        try:
            return decode(
                content.read_bytes() if isinstance(content, Path) else content, size, channels
            )
        except MemoryError:
            raise
        except Exception as error:  # damaged content makes Pillow raise nearly every type there is
            return f"{name}: {error}"

    with warnings.catch_warnings(), ThreadPoolExecutor(max(workers, 1)) as pool:
        warnings.simplefilter(
            "error", Image.DecompressionBombWarning
        )  # not in a thread: filters are the process's
        outcomes = list((pool.map if workers else map)(attempt, pictures))
    bad = [
        (name, outcome)
        for (name, _), outcome in zip(pictures, outcomes)
        if isinstance(outcome, str)
    ]
    count = f"{len(bad)} of {len(pictures)}"
    if bad and (on_bad == "error" or len(bad) > MOST_BAD * len(pictures)):
        remedy = f"on_bad=skip leaves out up to {MOST_BAD:.0%}"
        raise ValueError(f"{count} pictures cannot be read ({remedy}), the first is {bad[0][1]}")
    found = {
        place: outcome for place, outcome in enumerate(outcomes) if not isinstance(outcome, str)
    }
    first = next(iter(found))
    for place, one in found.items():
        if one.shape[:2] != found[first].shape[:2]:
            what = " and ".join(
                "{} of {}×{}".format(pictures[i][0], *found[i].shape[:2]) for i in (first, place)
            )
            raise ValueError(f"pictures of different sizes, {what}: size=N makes all of them N×N")
    depth = max(one.shape[2] for one in found.values())
    images = np.empty((len(found), depth, *found[first].shape[:2]), np.uint8)
    for image, one in zip(images, found.values()):
        image[:] = one.transpose(2, 0, 1)  # grey among colours: the same in all three
    more = ", …" * (len(bad) > 5)
    notes = {"bad": f"{count}: {', '.join(name for name, _ in bad[:5])}{more}"} if bad else {}
    return torch.from_numpy(images), torch.tensor(list(found)), notes


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
    grey = channels == "grey" or (
        channels == "auto" and image.mode in ("1", "L", "LA", "I", "I;16")
    )
    if image.mode.startswith("I"):
        image = Image.fromarray(
            ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        )
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if grey else "RGB")
    if size:
        wide, high = (round(side * size / min(image.size)) for side in image.size)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.resize((wide, high), Image.Resampling.LANCZOS).crop(
            (left, top, left + size, top + size)
        )
    return np.atleast_3d(np.asarray(image))
