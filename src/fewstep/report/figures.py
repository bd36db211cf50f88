"""Pictures for a page: curves and histograms as SVG that take the page's colours, image grids as
PNG.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fewstep.files import write_bytes

# Readable on white and on near-black; told apart without colour vision (Okabe & Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def grid_image(images: Tensor, columns: int, zoom: int = 1) -> Image.Image:
    """(n, channels, height, width) in [0, 1] as one picture, with a line of one pixel (times zoom)
    between images.
    """
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    n, height, width, channels = pixels.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 128, np.uint8)
    for i, picture in enumerate(pixels):
        y, x = i // columns * (height + 1), i % columns * (width + 1)
        sheet[y : y + height, x : x + width] = picture
    image = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def write_grid(path: Path, images: Tensor) -> None:
    """All images in one PNG of about 640 pixels or, where they are many or large, more: rows of ten
    if that is even.
    """
    columns = 10 if len(images) % 10 == 0 else math.ceil(math.sqrt(len(images)))
    write_bytes(
        path, png(grid_image(images, columns, max(1, 640 // (columns * (images.shape[-1] + 1)))))
    )


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def data_uri(image: Image.Image) -> str:
    """A PNG inside a page."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def curves(
    lines: Sequence[Mapping[str, Any]], keys: Sequence[str], title: str, log_scale: bool = False
) -> str:
    """The named numbers of a log over its steps, as SVG; long series are averaged in 200 pieces."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 2.9))
    for key, colour in zip(keys, COLOURS):
        points = [
            (line["step"], line[key]) for line in lines if key in line and math.isfinite(line[key])
        ]
        if not points:
            continue
        pieces = np.array_split(np.array(points), min(200, len(points)))
        x, y = zip(*(piece.mean(0) for piece in pieces), strict=True)
        axes.plot(x, y, color=colour, linewidth=1.4, marker="." if len(points) < 30 else "")
        axes.plot([], [], color=colour, label=key.removeprefix("health.").replace("_", " "))
    if log_scale:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    return svg(figure, axes, title)


def histogram(groups: Mapping[str, Tensor], title: str, label: str) -> str:
    """Outlines of several histograms over common bins, as SVG."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 2.9))
    high = max(float(values.max()) for values in groups.values())
    for (name, values), colour in zip(groups.items(), COLOURS):
        axes.hist(
            values.numpy(),
            bins=np.linspace(0, high, 41),
            density=True,
            histtype="step",
            color=colour,
            linewidth=1.4,
        )
        axes.plot([], [], color=colour, label=name)
    axes.set_xlabel(label)
    axes.set_yticks([])
    return svg(figure, axes, title)


def svg(figure: Any, axes: Any, title: str) -> str:
    """The figure as SVG text: no date, no fixed background, black replaced by the colour of the
    page's text.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "fewstep", "svg.fonttype": "none"}):
        figure.tight_layout()
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    plt.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(
        r"#000000|\bblack\b",
        "currentColor",
        text.replace("<svg ", '<svg role="img" color="inherit" ', 1),
    )
