"""Puts a finished run's student into the package: python tools/ship.py runs/digits_teacher."""

import sys
from pathlib import Path

import torch

from fewstep.export.card import Card
from fewstep.export.rounding import round_model
from fewstep.export.stable_diffusion import export_pipeline
from fewstep.files import read_json
from fewstep.models.classifier import load_classifier
from fewstep.models.folder import load_folder

run = Path(sys.argv[1])
weights = Path(__file__).parent.parent / "src" / "fewstep" / "weights" / run.name
if "classifier" in read_json(run / "student" / "model.json"):
    load_classifier(run / "student").save(weights)
else:
    model = load_folder(run / "student")
    if "caption" in model.conditioner.spec.reads:  # as a pipeline of Stable Diffusion
        round_model(model, torch.float16)
        export_pipeline(model, weights, Card(run.name, None, "apache-2.0"), torch.float16)
    else:
        model.save(weights)  # its own weights alone, without the other averages
print(weights)
