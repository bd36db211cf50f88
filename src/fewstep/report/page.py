"""The page: a headline table, pictures, curves and the protocol, in light and dark, without any
outside request.
"""

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.files import write_bytes
from fewstep.report.comparison import Comparison
from fewstep.report.figures import data_uri
from fewstep.report.tables import Table
from fewstep.text import printable


@dataclass
class Section:
    """A heading with a text, a table, captioned pictures, images of models side by side and figures
    (SVG made by figures.py).
    """

    title: str
    text: str = ""
    table: Table | None = None
    pictures: Sequence[tuple[str, Image.Image]] = ()
    comparison: Comparison | None = None
    figures: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Writes the page in one step. All text is escaped but figures, which are made here; control
    characters are written out.
    """
    import jinja2

    file = importlib.resources.files("fewstep.report") / "page.html"
    source = file.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_printable
    )
    template = environment.from_string(source)
    html = template.render(title=title, subtitle=subtitle, sections=sections, uri=data_uri)
    write_bytes(path, html.encode(errors="backslashreplace"))


def _printable(value: Any) -> Any:
    return printable(value) if type(value) is str else value
