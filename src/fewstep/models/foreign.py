"""What lies where a model is expected: told from names and first bytes, never loaded."""

from pathlib import Path

from fewstep.files import read_json

PICKLED = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHTS = (*PICKLED, ".safetensors", ".onnx", ".gguf", ".h5", ".msgpack")
WRAP = (
    "build its network in Python, give it these weights by fewstep.from_network, save that "
    "(docs/your_network.md)"
)


def foreign(path: Path) -> str:
    """What a file or folder is, and how to come from there to a model; '' where nothing is known of
    it.
    """
    found = _folder(path) if path.is_dir() else _file(path)
    return (
        f"{path} is {found}; a model is a folder with model.json and its weights" if found else ""
    )


def _folder(path: Path) -> str:
    if (path / "manifest.json").is_file() and path.name.startswith("step-"):
        step = path.name.removeprefix("step-").lstrip("0") or "0"
        return f"a checkpoint of a run: give {path.parent.parent}, with --checkpoint {step}"
    if (path / "fewstep.json").is_file():
        return "an export for diffusers: give the run or model that it was made of"
    if (path / "model_index.json").is_file():
        return f"a pipeline of diffusers{_class(path / 'model_index.json')}: {WRAP}"
    if any(path.glob("diffusion_pytorch_model*")) or _class(path / "config.json"):
        return f"a model of diffusers{_class(path / 'config.json')}: {WRAP}"
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in WEIGHTS and file.is_file():
            return f"a folder with {file.name}, which is {_file(file)}"
    return ""


def _class(file: Path) -> str:
    """The class that a file of diffusers names, in brackets."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return ""
    name = found.get("_class_name") if isinstance(found, dict) else None
    return f" ({name[:60]})" if isinstance(name, str) and name.isidentifier() else ""


def _file(path: Path) -> str:
    if (path.parent / "model.json").is_file():
        return f"a file of a model: give its folder, {path.parent}"
    if not path.is_file():
        return "neither a file nor a folder"
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"GGUF" or path.suffix.lower() == ".gguf":
        return f"a GGUF file: {WRAP}"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        if b"lora" in head.lower():
            return f"a LoRA, an addition to a base: both are teacher=BASE teacher.lora={path}"
        return f"a safetensors file, weights that do not say of which network: {WRAP}"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"a pickle (a checkpoint of PyTorch, EDM or the like), which can run code: {WRAP}"
    if head[:4] == b"PK\x03\x04" and b"data.pkl" in head:
        return f"a checkpoint of PyTorch, which can run code when it is read: {WRAP}"
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        return f"by its name ({suffix}) a checkpoint, which can run code when it is read: {WRAP}"
    if suffix in WEIGHTS:
        return f"by its name ({suffix}) a file of weights: {WRAP}"
    return ""
