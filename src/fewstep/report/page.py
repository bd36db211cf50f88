"""The page: a headline table, pictures, curves and the protocol, in light and dark, without any outside request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.files import write_bytes
from fewstep.report.figures import data_uri


@dataclass
class Section:
    """A heading with a text, rows of a table, captioned pictures and figures (SVG made by figures.py)."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    pictures: Sequence[tuple[str, Image.Image]] = ()
    figures: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --text: #1c1e21; --page: #ffffff; --soft: #5f6670; --line: #d9dde3; --band: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --page: #15171a; --soft: #a3abb5; --line: #343a42; --band: #1e2226 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 66rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p { margin: .4rem 0; max-width: 48rem } .soft { color: var(--soft) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 } th:first-child, td:first-child { text-align: left; padding-left: 0 }
tr.mark { background: var(--band); font-weight: 600 }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start } figure { margin: .5rem 0 }
figcaption { font-size: .85rem; color: var(--soft) } img { image-rendering: pixelated; max-width: 100% }
svg { max-width: 100%; height: auto } svg text { fill: currentColor }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
pre { background: var(--band); padding: .8rem; overflow-x: auto; font-size: .8rem }
</style></head><body>
<h1>{{ title }}</h1><p class="soft">{{ subtitle }}</p>
{% for s in sections %}<section><h2>{{ s.title }}</h2>
{% if s.text %}<p>{{ s.text }}</p>{% endif %}
{% if s.rows %}<div class="wide"><table><thead><tr>{% for c in s.columns %}<th>{{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in s.rows %}<tr{% if row[0] == "student" %} class="mark"{% endif %}>
{%- for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if s.pictures %}<div class="row">{% for caption, image in s.pictures %}<figure>
<img src="{{ uri(image) }}" alt="{{ caption }}" width="{{ image.width }}" height="{{ image.height }}">
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if s.figures %}<div class="row">{% for figure in s.figures %}<figure>{{ figure | safe }}</figure>{% endfor %}</div>
{% endif %}
{% if s.facts %}<dl>{% for k, v in s.facts.items() %}<dt>{{ k }}</dt><dd>{{ v }}</dd>{% endfor %}</dl>{% endif %}
{% if s.code %}<pre>{{ s.code }}</pre>{% endif %}</section>
{% endfor %}</body></html>
"""


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Writes the page in one step. All text is escaped; only figures made by this package are not."""
    import jinja2

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE)
    html = template.render(title=title, subtitle=subtitle, sections=sections, uri=data_uri)
    write_bytes(path, html.encode())
