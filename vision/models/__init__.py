"""Small towers in the shape of PE core: `tower.py` (images), `text.py` (captions), and how both are saved.

A folder holds `config.json` and `model.safetensors` (the image tower), and, where captions were part of the training,
`text.safetensors` (the text tower and the logit scale).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsprobe.encoders import hub
from tsprobe.errors import DAMAGE, EncoderError, StorageError, reason
from vision.models.text import TextShape, TextTower, Vocabulary
from vision.models.tower import Tower, TowerShape

__all__ = [
    "MODEL_TYPE", "TextShape", "TextTower", "Tower", "TowerShape", "Vocabulary", "build", "load_text", "load_tower",
]  # fmt: skip

MODEL_TYPE = "vision-zoo"


def build(config: dict[str, Any]) -> nn.Module:
    """The image tower, a `Tower`, that a `config.json` describes, with random weights. Raises `EncoderError`."""
    if config.get("model_type") != MODEL_TYPE or not isinstance(config.get("tower"), dict):
        raise EncoderError(f"no config of the vision zoo: it says model_type {MODEL_TYPE!r} and has a tower")
    try:
        return Tower(TowerShape(**config["tower"]))
    except (TypeError, ValueError) as error:
        raise EncoderError(f"no tower can be built from this config: {error}") from error


def load_tower(config: dict[str, Any], folder: Path, family: str) -> nn.Module:
    """The image tower of a folder, half precision in the file, float32 in the module. Raises `EncoderError`."""
    with hub.building(folder, family):
        with torch.device("meta"):
            skeleton = build(config)
        hub.refuse_larger(skeleton, folder, family)
        if hub.wants_weights():  # before sizes of the config are made real
            hub.check_weights(skeleton, folder, family)
        module = build(config)
    return hub.load_state(module, folder, family)


def load_text(folder: Path) -> tuple[TextTower, float]:
    """The text tower of a folder and the scale of its cosines (the inverse of the temperature).

    Raises `EncoderError` where the folder has none, `StorageError` for a damaged file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_file, weights = folder / "config.json", folder / "text.safetensors"
    if not config_file.exists() or not weights.exists():
        raise EncoderError(f"{folder} holds no text tower: its images were not trained with captions")
    config = hub.read_config(folder, "vision")
    try:
        state = {name: tensor.float() for name, tensor in load_file(weights).items()}
        scale = float(state.pop("scale"))
        shape, vocabulary = TextShape(**config["text"]), Vocabulary(config["vocabulary"])
        with torch.device("meta"):  # before sizes of the config are made real
            TextTower(shape, vocabulary, config["tower"]["embed"]).load_state_dict(state, assign=True)
        tower = TextTower(shape, vocabulary, config["tower"]["embed"])
        tower.load_state_dict(state)
    except (OSError, SafetensorError, *DAMAGE) as error:
        raise StorageError(f"the text tower in {folder} cannot be read: {reason(error)}") from error
    return tower.eval(), scale
