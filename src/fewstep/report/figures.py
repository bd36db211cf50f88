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
    """The named numbers of a log over its steps, as SVG; long series are averaged in 200 pieces.
    Of equal ones the first is drawn alone: the others would lie under it.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 2.9))
    drawn: list[list[tuple[float, float]]] = []
    for key, colour in zip(keys, COLOURS):
        points = [
            (line["step"], line[key]) for line in lines if key in line and math.isfinite(line[key])
        ]
        if not points or points in drawn:
            continue
        drawn.append(points)
        pieces = np.array_split(np.array(points), min(200, len(points)))
        x, y = zip(*(piece.mean(0) for piece in pieces), strict=True)
        axes.plot(x, y, color=colour, linewidth=1.4, marker="." if len(points) < 30 else "")
        axes.plot([], [], color=colour, label=key.removeprefix("health.").replace("_", " "))
    if log_scale and any(y > 0 for points in drawn for _, y in points):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    return svg(figure, axes, "")


def tradeoff(
    series: Mapping[str, Sequence[tuple[int, float]]], label: str, level: float | None = None
) -> str:
    """What each model reaches (a value, `label`) at a number of network evaluations, both on
    logarithmic axes, as SVG. level: a value that stands for itself, drawn as a line.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    costs: set[int] = set()
    for (name, points), colour in zip(series.items(), COLOURS):
        x, y = zip(*sorted(points), strict=True)
        costs |= set(x)
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=5, label=name)
    if level is not None:
        axes.axhline(level, color="#888888", linewidth=1, linestyle="--", label="data")
    axes.set_xscale("log")
    if all(value > 0 for points in series.values() for _, value in points):
        axes.set_yscale("log")
    axes.set_xticks(sorted(costs), [str(cost) for cost in sorted(costs)], minor=False)
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_xlabel("network evaluations for an image")
    axes.set_ylabel(label)
    return svg(figure, axes, "")


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

    if title:
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
