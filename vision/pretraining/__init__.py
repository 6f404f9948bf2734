"""How the vision zoo was made: one tower, three objectives, the same generated pictures.

Read `spec.py` (what a run is), `pool.py` and `augment.py` (what it sees), `objectives/` (what differs), `train.py`; and
`video/` for a contrastive tower that goes on to clips.
`tsprobe pretrain CONFIG` finds the recipes through the entry point `vision` of the group `tsprobe.recipes`.
"""

from __future__ import annotations

from typing import Any

from tsprobe.pretraining.train import Fitting
from tsprobe.settings import validated
from vision.pretraining.spec import SPECS, spec_of
from vision.pretraining.train import Run
from vision.pretraining.video import VideoRun, VideoSpec

__all__ = ["SPECS", "Run", "list_recipes", "load_recipe", "spec_of"]


def load_recipe(settings: dict[str, Any], device: str) -> Fitting:
    """The run of settings whose `recipe` is `vision/NAME`. Raises `SpecError` for settings it does not know."""
    if settings.get("recipe") == f"vision/{VideoSpec.name}":
        return VideoRun(validated(VideoSpec, settings), device)
    return Run(spec_of(settings, (VideoSpec.name,)), device)


def list_recipes() -> list[dict[str, Any]]:
    return [
        {"name": f"vision/{name}", "what": " ".join((spec.__doc__ or "").partition("\n\n")[0].split())}
        for name, spec in {**SPECS, VideoSpec.name: VideoSpec}.items()
    ]
