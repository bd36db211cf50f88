"""The door for models of others: what a folder or a file is recognised as, one module a family."""

from pathlib import Path

from fewstep.models import dit_pipelines, pixel_pipelines, stable_diffusion
from fewstep.models.bundle import DiffusionModel

FAMILIES = (stable_diffusion, pixel_pipelines, dit_pipelines)
"""Modules with `recognises(path)`, which reads names alone, and `load(path)`."""


def recognised(path: Path) -> bool:
    """Whether `load_recognised` knows what lies there."""
    return any(family.recognises(path) for family in FAMILIES)


def load_recognised(path: Path) -> DiffusionModel | None:
    """The model of a family that lies there; None where no family recognises it. FileNotFoundError
    or ValueError, in one line, for one that is not whole or of a kind that cannot be served.
    """
    for family in FAMILIES:
        if family.recognises(path):
            return family.load(path)
    return None
