"""The model card of an export: README.md with the front matter of model hubs."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.files import write_bytes
from fewstep.models.hub import is_name
from fewstep.text import in_one_line


@dataclass(frozen=True)
class Card:
    """What the card says that no file tells.

    title: of the page. base: the hub's name of the model that was distilled, or where it lies.
    licence: its id. ValueError for what hubs would not take.
    """

    title: str
    base: str | None = None
    licence: str = "other"

    def __post_init__(self) -> None:
        if self.base is not None and not self.base.strip():
            raise ValueError("--base is empty: what hubs call the model that was distilled")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.licence):
            raise ValueError(
                f"--license is the id that hubs know a licence by (apache-2.0, openrail, other), "
                f"got {in_one_line(self.licence, 40)!r}"
            )


def write_card(
    folder: Path,
    card: Card,
    made: Mapping[str, Any],
    told: Mapping[str, Any],
    snippet: str,
    few_step: bool,
    lora: bool = False,
    tag: str = "text-to-image",
) -> None:
    """Writes README.md.

    made: the model's own card. told: how it is sampled, by the names of the library. snippet:
    Python that makes an image in this folder. few_step: whether it was distilled. lora: whether
    the files are an addition to the base. tag: what hubs call the task.
    """
    method = str(made.get("method", {}).get("kind", ""))
    tags = [tag, "diffusers"]
    if few_step:
        tags.append("few-step")
    if lora:
        tags.append("lora")
    if method:
        tags.append(method)
    front = {"library_name": "diffusers", "pipeline_tag": tag, "license": card.licence}
    if card.base and is_name(card.base):
        front["base_model"] = card.base
    lines = ["---"]
    lines += [f"{name}: {json.dumps(value)}" for name, value in front.items()]
    lines += ["tags:", *(f"- {tag}" for tag in tags), "---", ""]
    lines += [f"# {in_one_line(card.title)}", ""]
    what = "A low-rank addition (LoRA) to its base, for strength 1" if lora else "A pipeline"
    done = "distilled" if few_step else "trained"
    by = f", {done} by `{method}`" if method else ""
    lines += [f"{what}{by}, written by fewstep.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {in_one_line(value)} |" for name, value in told.items()]
    lines += ["", "```python", snippet, "```", ""]
    write_bytes(folder / "README.md", "\n".join(lines).encode())
