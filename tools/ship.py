"""Puts a finished run's student into the package: python tools/ship.py runs/digits_teacher."""

import sys
from pathlib import Path

from fewstep.files import read_json
from fewstep.models.classifier import load_classifier
from fewstep.models.folder import load_folder

run = Path(sys.argv[1])
weights = Path(__file__).parent.parent / "src" / "fewstep" / "weights" / run.name
kind = load_classifier if "classifier" in read_json(run / "student" / "model.json") else load_folder
kind(run / "student").save(weights)  # its own weights alone, without the other averages
print(weights)
