"""The built wheel alone, in an environment that sees the libraries but not the source tree, does
the main job.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    ran = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, **options
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_the_wheel_runs_the_demo(tmp_path):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    assert "fewstep/py.typed" in zipfile.ZipFile(wheel).namelist()
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel
    )
    # The libraries of this environment, without its .pth files: one of those would lead back to the
    # source tree.
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.endswith(".pth") and "fewstep" not in entry.name:
            (libraries / entry.name).symlink_to(entry)
    (site / "libraries.pth").write_text(f"{libraries}\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    where = run(
        python, "-c", "import fewstep; print(fewstep.__file__)", cwd=tmp_path, env=environment
    ).strip()
    assert Path(where).is_relative_to(tmp_path)
    few = ("trainer.steps=3", "trainer.batch=16", "trainer.health_every=0", "--num", 20)
    run(tmp_path / "env/bin/fewstep", "demo", *few, cwd=tmp_path, env=environment)
    results = json.loads((tmp_path / "runs/demo/results.json").read_text())
    assert [r["model"] for r in results] == ["teacher"] * 4 + ["student"] * 3 + ["data"]
    assert (tmp_path / "runs/demo/report.html").stat().st_size > 20_000
