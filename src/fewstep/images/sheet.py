"""Images of several models side by side, with words at the rows and columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewstep.images.grid import as_bytes
from fewstep.text import printable

CELL = 96  # pixels that small images are enlarged to, at least
SIDE = 190  # pixels of the words at a row
GAP = 4
SIZE = 13  # of the letters
MOST_LINES = 4  # of the words over a column


def sheet(rows: Sequence[Tensor], beside: Sequence[str], above: Sequence[str]) -> Image.Image:
    """Rows of images, each (columns, channels, height, width) in [0, 1], as one picture on white.

    beside: words at each row, their lines as given. above: words over each column, broken where
    they are too wide, and cut. NotFiniteError where numbers are not finite.
    """
    pixels = [as_bytes(images) for images in rows]
    _, height, width, _ = pixels[0].shape
    zoom = max(1, -(-CELL // width))
    wide, high = width * zoom + GAP, height * zoom + GAP
    font = _font()
    titles = [_broken(text, wide - GAP, font) for text in above]
    head = max((len(lines) for lines in titles), default=0) * (SIZE + 3) + 2 * GAP
    whole = Image.new("RGB", (SIDE + len(pixels[0]) * wide, head + len(rows) * high), "white")
    draw = ImageDraw.Draw(whole)
    for column, lines in enumerate(titles):
        draw.multiline_text((SIDE + column * wide, GAP), "\n".join(lines), "black", font)
    for row, (images, words) in enumerate(zip(pixels, beside, strict=True)):
        top = head + row * high
        lines = [line for text in words.splitlines() for line in _broken(text, SIDE - 8, font)]
        draw.multiline_text((GAP, top + GAP), "\n".join(lines), "black", font)
        for column, image in enumerate(images):
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            size = (width * zoom, height * zoom)
            enlarged = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
            whole.paste(enlarged, (SIDE + column * wide, top))
    return whole


def _font() -> Any:
    """One that knows the letters of most languages."""
    import matplotlib  # which brings it, and is slow to import

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), SIZE)


def _broken(text: str, width: int, font: Any) -> list[str]:
    """Lines no wider than so many pixels, between words where that is possible; four at most."""
    lines = [""]
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:-1] + "…"]
    return lines
