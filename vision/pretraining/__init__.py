"""How the vision zoo was made: one tower, three objectives, the same generated pictures.

Read `spec.py` (what a run is), `pool.py` and `augment.py` (what it sees), `objectives/` (what differs), `train.py`.
`tsprobe pretrain CONFIG` finds the recipes through the entry point `vision` of the group `tsprobe.recipes`.
"""

from __future__ import annotations

from typing import Any

from vision.pretraining.spec import SPECS, spec_of
from vision.pretraining.train import Run

__all__ = ["SPECS", "Run", "list_recipes", "load_recipe", "spec_of"]


def load_recipe(settings: dict[str, Any], device: str) -> Run:
    """The run of settings whose `recipe` is `vision/NAME`. Raises `SpecError` for settings it does not know."""
    return Run(spec_of(settings), device)


def list_recipes() -> list[dict[str, Any]]:
    return [
        {"name": f"vision/{name}", "what": " ".join((spec.__doc__ or "").partition("\n\n")[0].split())}
        for name, spec in SPECS.items()
    ]
