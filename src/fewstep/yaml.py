"""Run files: plain YAML, read safely."""

import io
from pathlib import Path
from typing import Any

LIMIT = 1_000_000  # characters; a run file has a few thousand


def to_yaml(value: Any) -> str:
    """Plain data as YAML, keys in their order."""
    from ruamel.yaml import YAML

    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(value, out)
    return out.getvalue()


def from_yaml(text: str, name: str) -> Any:
    """Plain data of a YAML text: no anchors (they can grow without bound), no duplicate keys.

    `name` stands in the ValueError of a text that is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.tokens import AliasToken

    if len(text) > LIMIT:
        raise ValueError(f"{name} is too long for a run file")
    yaml = YAML(typ="safe", pure=True)
    try:
        if any(isinstance(token, AliasToken) for token in yaml.scan(text)):
            raise ValueError(f"{name}: YAML aliases are not allowed")
        return YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply for a run file") from None
    except MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{name} is not valid YAML: {error.problem}{line}") from None
    except YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> Any:
    """Plain data of a file; ValueError with its name where it is no text or no YAML."""
    try:
        return from_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from None
