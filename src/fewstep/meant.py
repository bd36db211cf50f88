"""What somebody meant by a name that is none."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "learningrate"), "lr"),
    **dict.fromkeys(("batch_size", "train_batch_size", "bs"), "batch"),
    **dict.fromkeys(("max_steps", "num_steps", "max_train_steps", "train_steps"), "steps"),
    **dict.fromkeys(("iterations", "iters", "epochs", "num_epochs", "num_train_epochs"), "steps"),
    **dict.fromkeys(("resolution", "image_size"), "size"),
    **dict.fromkeys(("guidance_scale", "cfg", "cfg_scale"), "guidance"),
    "mixed_precision": "precision",
    "gradient_checkpointing": "checkpointing",
    "gradient_accumulation_steps": "micro_batch",
    "checkpointing_steps": "save_every",
    "num_workers": "workers",
    "max_grad_norm": "clip",
}
"""What other programs call options, and what they are called here."""


def did_you_mean(name: str, valid: list[str]) -> str:
    """`"; did you mean bins?"`, or the list of valid names where nothing is close."""
    close = difflib.get_close_matches(name, valid, n=2, cutoff=0.6)
    if close:
        return _question(close)
    return f"; valid: {', '.join(sorted(valid)) or 'none'}"


def option_meant(name: str, value: Any, fields: Mapping[str, Any], own: list[str]) -> str:
    """The same for an option: those of that name further inside, or of what it is called here.

    fields: all that was given, of which defaults are a part. own: the names beside it.
    """
    for known in (name, ELSEWHERE.get(name.lower(), "")):
        found = [known] if known in own else list(nested(known, fields))[:3]
        if not found:
            continue
        if isinstance(value, Mapping) and len(value) == 1:
            (inner,) = value
            found = [f"{one}.{inner}" for one in found]
        return _question(found)
    return did_you_mean(name, own)


def nested(name: str, fields: Mapping[str, Any]) -> Iterator[str]:
    """Dotted paths to options of that name further inside."""
    for key, value in fields.items():
        if not isinstance(value, Mapping):
            continue
        if name in value:
            yield f"{key}.{name}"
        for path in nested(name, value):
            yield f"{key}.{path}"


def _question(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?"
