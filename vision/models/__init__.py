"""Small towers in the shape of PE core: `tower.py` (images), `text.py` (captions), and how both are saved.

A folder holds `config.json` and `model.safetensors` (the image tower), and, where captions were part of the training,
`text.safetensors` (the text tower and the logit scale).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from tsprobe.errors import EncoderError, StorageError
from vision.models.text import TextShape, TextTower, Vocabulary
from vision.models.tower import Tower, TowerShape

__all__ = ["MODEL_TYPE", "TextShape", "TextTower", "Tower", "TowerShape", "Vocabulary", "build", "load_text"]

MODEL_TYPE = "vision-zoo"


def build(config: dict[str, Any]) -> nn.Module:
    """The image tower, a `Tower`, that a `config.json` describes, with random weights. Raises `EncoderError`."""
    if config.get("model_type") != MODEL_TYPE or not isinstance(config.get("tower"), dict):
        raise EncoderError(f"no config of the vision zoo: it says model_type {MODEL_TYPE!r} and has a tower")
    try:
        return Tower(TowerShape(**config["tower"]))
    except (TypeError, ValueError) as error:
        raise EncoderError(f"no tower can be built from this config: {error}") from error


def load_text(folder: Path) -> tuple[TextTower, float]:
    """The text tower of a folder and the scale of its cosines (the inverse of the temperature).

    Raises `EncoderError` where the folder has none, `StorageError` for a damaged file.
    """
    from safetensors.torch import load_file

    config_file, weights = folder / "config.json", folder / "text.safetensors"
    if not config_file.exists() or not weights.exists():
        raise EncoderError(f"{folder} holds no text tower: its images were not trained with captions")
    try:
        config = json.loads(config_file.read_text())
        tower = TextTower(TextShape(**config["text"]), Vocabulary(config["vocabulary"]), config["tower"]["embed"])
        state = {name: tensor.float() for name, tensor in load_file(weights).items()}
        scale = float(state.pop("scale"))
        tower.load_state_dict(state)
    except Exception as error:  # a damaged file raises what it likes
        raise StorageError(f"the text tower in {folder} cannot be read: {' '.join(str(error).split())}") from error
    return tower.eval(), scale
