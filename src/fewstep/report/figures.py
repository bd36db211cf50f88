"""Pictures for a page: curves and histograms as SVG that take the page's colours, image grids as
PNG.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fewstep.images.grid import png

# Readable on white and on near-black; told apart without colour vision (Okabe & Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


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
