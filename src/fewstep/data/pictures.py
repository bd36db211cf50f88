"""Pictures as files hold them (PNG, JPEG, WebP), decoded to pixels of one size and one number of
channels.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fewstep.data.bounds import memory_for
from fewstep.data.metadata import SWAPS_SIDES, TURNS, orientation, unwarned, without_metadata

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 64_000_000  # a larger picture is rather an attack on the memory
NAMED = 20  # bad pictures of a message, at most
MOST_BAD = 0.01  # the share of bad pictures above which leaving them out would change the data
MOST_RESIZED = 1 << 24  # pixels of a resized picture above which its middle is cut out before
LUMA = 19595, 38470, 7471  # of red, green and blue in grey, in 65,536ths, as Pillow has them
LARGE = 4096  # bytes of a picture's file; of smaller ones threads wait for each other
STRIP = 1 << 20  # pixels that are laid on white together
GREY_MODES = ("1", "L", "LA", "I", "I;16")  # Pillow's
GREY, ODD = 1, 2  # of a header: whether the picture is grey, and its metadata cannot be read
TELLING = b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp"  # where PNG says how it is turned

Channels = Literal["auto", "grey", "rgb"]
OnBad = Literal["error", "skip", "skip_all"]
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class How(NamedTuple):
    """How pictures are read: what every source of them has as options.

    size: the short side becomes `size` and the middle square is cut out; 0 keeps what is there.
    channels: auto gives 1 if all are grey, else 3. on_bad: skip leaves out what cannot be read, up
    to 1 % of all, skip_all any number.
    """

    size: int = 0
    channels: Channels = "auto"
    on_bad: OnBad = "error"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every image, where the options settle it; () where only reading tells."""
        if not self.size or self.channels == "auto":
            return ()
        return (1 if self.channels == "grey" else 3, self.size, self.size)


class Picture(NamedTuple):
    """pixels: (height, width, 1 or 3). odd: whether its metadata could not be read."""

    pixels: Pixels
    odd: bool


def decode_all(
    pictures: Sequence[tuple[str, bytes]], how: How, workers: int
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Images (n, channels, height, width) uint8, their places in `pictures` (n,), and notes on
    those left out.

    pictures: names, with the content of the file. workers: threads, if the pictures are worth it;
    their number changes nothing in the result. ValueError names the picture.
    """

    def attempt(picture: tuple[str, bytes]) -> Picture | str:
        name, content = picture
        try:
            with memory_for(name):
                return read(content, how.size, how.channels)
        except MemoryError:
            raise
        except Exception as error:  # damaged content makes Pillow raise nearly every type there is
            return f"{name}: {error}"

    threads = (
        workers if sum(len(content) for _, content in pictures) >= LARGE * len(pictures) else 0
    )
    with unwarned(), ThreadPoolExecutor(max(threads, 1)) as pool:
        outcomes = list((pool.map if threads else map)(attempt, pictures))
    bad, odd, found = [], [], {}
    for (name, _), place, outcome in zip(pictures, range(len(pictures)), outcomes):
        if isinstance(outcome, str):
            bad.append((name, outcome))
            continue
        found[place] = outcome.pixels
        if outcome.odd:
            odd.append(name)
    notes = left_out(bad, len(pictures), how.on_bad) | unread_metadata(odd, len(pictures))
    images = stacked(list(found.values()), [pictures[place][0] for place in found])
    return images, torch.tensor(list(found)), notes


def left_out(bad: Sequence[tuple[str, str]], total: int, on_bad: OnBad) -> dict[str, str]:
    """Notes on pictures that are left out: (name, "name: reason") of each. ValueError where none,
    or not so many, may be.
    """
    if not bad:
        return {}
    count = f"{len(bad)} of {total}"
    few = len(bad) <= MOST_BAD * total
    if on_bad == "error" or (on_bad == "skip" and not few) or len(bad) == total:
        remedy = f"on_bad=skip leaves out up to {MOST_BAD:.0%}"
        if not few:
            remedy += ", on_bad=skip_all any number"
        more = ", ".join(name for name, _ in bad[1:NAMED])
        more = f"; others: {more}{', …' * (len(bad) > NAMED)}" if more else ""
        raise ValueError(
            f"{count} pictures cannot be read ({remedy}), the first is {bad[0][1]}{more}"
        )
    return {"bad": f"{count}: {some([reason for _, reason in bad])}"}


def unread_metadata(names: Sequence[str], total: int) -> dict[str, str]:
    """Notes on pictures whose pixels are whole and whose metadata cannot be read."""
    if not names:
        return {}
    return {"metadata": f"passed over in {len(names)} of {total} pictures: {some(names)}"}


def some(names: Sequence[str]) -> str:
    """The first five."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


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
    with memory_for(f"{len(pictures)} pictures, {names[0]} …"):
        images = np.empty((len(pictures), depth, *first.shape[:2]), np.uint8)
    for image, one in zip(images, pictures):
        image[:] = one.transpose(2, 0, 1)
    return torch.from_numpy(images)


def header(content: bytes) -> tuple[int, int, int]:
    """Width and height as the picture is shown, and what is known of it: `GREY`, `ODD`; 0, 0, 0
    where it cannot be read. Nothing is decoded.
    """
    try:
        image, odd = _with_or_without_metadata(content, _opened)
        turn, whole = (1, True) if _untold(image, content) else orientation(image)
    except MemoryError:
        raise
    except Exception:  # damaged content makes Pillow raise nearly every type there is
        return 0, 0, 0
    wide, high = image.size
    if turn >= SWAPS_SIDES:
        wide, high = high, wide
    return wide, high, GREY * (image.mode in GREY_MODES) + ODD * (odd or not whole)


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Images (n, 1 or 3, height, width) uint8 in so many channels: grey ones are the same in all
    three, colours become grey as `decode` makes them. ValueError for other numbers.
    """
    there = images.shape[1]
    if there == channels:
        return images
    if {there, channels} != {1, 3}:
        raise ValueError(f"images of {there} channels cannot be read as {channels}")
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    parts = [((part * weights).sum(1, keepdim=True) + (1 << 15)) >> 16 for part in images.split(64)]
    return torch.cat(parts).byte()


def checked_header(content: bytes) -> tuple[int, int, int]:
    """The same where the picture can be decoded, else 0, 0, 0."""
    try:
        read(content)
    except MemoryError:
        raise
    except Exception:  # damaged content makes Pillow raise nearly every type there is
        return 0, 0, 0
    return header(content)


def decode(content: bytes, size: int = 0, channels: Channels = "auto") -> Pixels:
    """The pixels (height, width, 1 or 3) of one picture. Pillow's errors or ValueError where it
    cannot be read.

    It is turned as its EXIF says. What is transparent lies on white; 16 bits become 8; all but grey
    becomes RGB.
    """
    return read(content, size, channels).pixels


def read(content: bytes, size: int = 0, channels: Channels = "auto") -> Picture:
    """What `decode` says, and whether the picture's metadata had to be passed over."""
    image, odd = _with_or_without_metadata(content, _loaded)
    turn, whole = orientation(image)
    if turn in TURNS:
        image = image.transpose(TURNS[turn])
    grey = channels == "grey" or (channels == "auto" and image.mode in GREY_MODES)
    mode = "L" if grey else "RGB"
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        image = Image.fromarray((deep // 257 + (deep % 257 >= 129)).astype(np.uint8))
    elif image.has_transparency_data:
        image = _on_white(image, mode)
    if image.mode != mode:
        image = image.convert(mode)
    if size:
        image = _middle(image, size)
    return Picture(np.atleast_3d(np.asarray(image)), odd or not whole)


def _with_or_without_metadata(content: bytes, open_: Callable[[bytes], Any]) -> tuple[Any, bool]:
    """The image, and whether it can be had only without what stands beside the pixels."""
    try:
        return open_(content), False
    except MemoryError:
        raise
    except Exception:  # damaged content makes Pillow raise nearly every type there is
        alone = without_metadata(content)
        if alone == content:
            raise
        return open_(alone), True


def _opened(content: bytes) -> Any:
    """Its header is read."""
    if not content:
        raise ValueError("it is empty")
    try:
        image: Any = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(
            f"it is no {', '.join(FORMATS)}"
        ) from None  # Pillow's text holds an address in memory
    except Image.DecompressionBombError:  # its own limit is another
        raise ValueError(f"it has more than {MOST_PIXELS} pixels") from None
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width}×{image.height} pixels are more than {MOST_PIXELS}")
    return image


def _loaded(content: bytes) -> Any:
    """Its pixels are read."""
    image = _opened(content)
    if image.format == "PNG":
        image.verify()  # the checksums, which loading does not look at
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    image.load()
    return image


def _untold(image: Any, content: bytes) -> bool:
    """Whether a PNG file says nothing of how it is turned: Pillow would decode everything to look
    for it behind the pixels.
    """
    return image.format == "PNG" and not any(name in content for name in TELLING)


def _on_white(image: Any, mode: str) -> Any:
    """What is transparent on white; in strips, as a large picture takes its memory many times."""
    flat = Image.new(mode, image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        part = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        flat.paste(Image.alpha_composite(white, part).convert(mode), box)
    return flat


def _middle(image: Any, size: int) -> Any:
    """The middle square of an image whose short side becomes `size`."""
    wide, high = (round(side * size / min(image.size)) for side in image.size)
    left, top = (wide - size) // 2, (high - size) // 2
    if wide * high <= MOST_RESIZED:
        whole = image.resize((wide, high), Image.Resampling.LANCZOS)
        return whole.crop((left, top, left + size, top + size))
    across, down = image.width / wide, image.height / high
    square = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=square)
