"""The notebook, cell by cell, on a miniature of Stable Diffusion; the README has its commands."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny_diffusion import tiny_pipeline

from fewstep.cli.main import main

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
HOME = Path(__file__).parents[2]
NOTEBOOK = HOME / "examples" / "text_to_image.ipynb"
MINE = {"BASE": "sd", "PICTURES": "pictures", "SIZE": 8, "STEPS": 2}


def cells():
    """The code of the notebook."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def commands(text, names):
    """Those of fewstep, as words, without what is said behind a #."""
    for name, value in names.items():
        text = text.replace(f"${name}", str(value)).replace(f"{{{name}}}", str(value))
    lines = re.findall(r"^!?(fewstep .*)$", text, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def run_cell(source, names):
    """As IPython does it, but the commands in this process and the parameters ours."""
    python = []
    for line in source.splitlines():
        if line.startswith("!fewstep "):
            exec("\n".join(python), names)
            python = []
            with pytest.raises(SystemExit) as ended:
                main(shlex.split(line.removeprefix("!fewstep ").format(**names)))
            assert ended.value.code == 0, line
        elif not line.startswith("!pip "):
            python.append(line)
    exec("\n".join(python), names)
    if "BASE =" in source:
        assert MINE.keys() <= names.keys()
        names.update(MINE)


def test_every_cell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fewstep.report.run_report.curves", lambda *_, **__: "<svg></svg>")
    pipeline = tiny_pipeline()
    pipeline.to(torch.float16)  # as many bases are stored
    pipeline.save_pretrained("sd")
    Path("pictures").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{i}.png")
        Path(f"pictures/{i}.txt").write_text(f"picture number {i}")
    names = {}
    for source in cells():
        run_cell(source, names)
    assert names["image"].size == (8, 8)
    assert Path("runs/mine/lora/pytorch_lora_weights.safetensors").is_file()


def test_the_readme_says_the_same():
    names = {}
    exec(next(source for source in cells() if "BASE =" in source), names)
    base = names["BASE"]
    names["ROWS"] = f"{base},steps=25,name=base {base},steps=4,name=base runs/mine"
    readme = (HOME / "README.md").read_text(encoding="utf-8")
    _, _, section = readme.partition("## Text to image")
    block = re.search(r"```bash\nBASE=.*?```", section, flags=re.DOTALL).group()
    assert commands(block, {"BASE": base}) == commands("\n".join(cells()), names)
