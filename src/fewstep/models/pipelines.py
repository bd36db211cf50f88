"""What all pipelines of diffusers have in common: an index of their parts, each in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.choice import Choice
from fewstep.files import read_json, tensor_shapes
from fewstep.models.library import library_class, quiet
from fewstep.models.schedulers import FEW_STEP, class_name, read
from fewstep.models.size import without_memory
from fewstep.models.space import Space
from fewstep.text import in_one_line

INDEX = "model_index.json"
FAST_NAMES = ("turbo", "lightning", "hyper-sd", "hypersd", "lcm", "tcd", "dmd", "distilled")
"""Words in names under which few-step models are published."""


def pipeline_class(folder: Path) -> str:
    """The class that a pipeline's folder names; '' for other folders."""
    try:
        index = read_json(folder / INDEX)
    except (OSError, ValueError):
        return ""
    return class_name(index) if isinstance(index, dict) else ""


def card_of(path: Path, family: str, scheduler: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """What the card of such a model says: where it is from, and by what it is seen to be a few-step
    one. also: reasons of its family.
    """
    reasons = [f"its scheduler is {scheduler}"] if scheduler in FEW_STEP else []
    reasons += also
    if told := few_step_name(path.stem):
        reasons.append(f"its name says {told}")
    card = {"family": family, "scheduler": scheduler}
    return card | ({"distilled": ", ".join(reasons)} if reasons else {})


def few_step_name(name: str) -> str:
    """The word of a name by which it is one of a few-step model; '' for others."""
    return next((word for word in FAST_NAMES if word in name.lower()), "")


def read_part(path: Path, name: str, class_of_part: str) -> Any:
    """A network of a pipeline's folder: in the folder of its name, or in the old layout beside the
    index. ValueError where its file has not exactly its weights.
    """
    there = (path / name).is_dir()
    files = [file.name for file in (path / name if there else path).glob("*.safetensors")]
    only_small = bool(files) and all(".fp16." in file for file in files)
    module, told = library_class(class_of_part).from_pretrained(
        str(path),
        subfolder=name if there else "",
        variant="fp16" if only_small else None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    check_none(told["missing_keys"], f"its {name} lacks the weights")
    surplus = [key for key in told["unexpected_keys"] if not key.endswith("position_ids")]
    check_none(surplus, f"its {name} has no place for the weights")
    return module


def read_scheduler(path: Path) -> tuple[str, dict[str, Any]]:
    """The class of a folder's scheduler, and its options. FileNotFoundError where it has none."""
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        file = path / "scheduler_config.json"
    if not file.is_file():
        raise FileNotFoundError("it has no scheduler")
    described = read_json(file)
    if not isinstance(described, dict):
        raise ValueError(f"{file.name} holds no options")
    return read(described)


def around(spec: Choice, module: nn.Module, *space: Space) -> Any:
    """The module of ours around one of theirs, which is there already."""
    with without_memory():
        made: Any = spec.build(*space)  # type: ignore[attr-defined]
    made.module = module.float().eval()
    return made


def check_none(keys: Iterable[str], what: str) -> None:
    """ValueError for keys, with what they are: "it lacks the weights"."""
    if found := sorted(keys):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(f"{what} {found[0]}{more}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within the block what diffusers and transformers refuse is one line with the path; they say
    nothing else, and draw no bars.
    """
    try:
        with quiet():
            yield
    except ImportError:
        raise
    except Exception as error:  # of any kind: the libraries check files in many ways
        reason = _damage(path) or in_one_line(error, 300)
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _damage(path: Path) -> str:
    """Which file of weights is not whole; '' for none."""
    for file in sorted(path.rglob("*.safetensors")):
        try:
            tensor_shapes(file)
        except ValueError as error:
            return str(error)
    return ""
