"""Targets: towers of pictures and of captions, and what is kept of runs with them."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save as to_bytes

from tsprobe.encoders import load_encoder

from .checkpoints import Files, folder_target
from .harness import Target


def _towers() -> Files:
    from vision.models import MODEL_TYPE, TextShape, TextTower, Tower, TowerShape, Vocabulary

    torch.manual_seed(0)
    shape = TowerShape(size=16, patch=8, width=8, depth=1, heads=2, ratio=1, embed=4)
    tower, words = Tower(shape), Vocabulary.of(["a red disc", "a blue square"])
    text = TextTower(TextShape(width=8, depth=1, heads=2, ratio=1, context=8), words, 4)
    config = {
        "model_type": MODEL_TYPE, "objective": "contrastive", "tower": asdict(shape), "text": asdict(text.shape),
        "vocabulary": words.words, "pretrained_on": "noise", "overlaps": ["COCO"],
    }  # fmt: skip
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": to_bytes({name: t.half() for name, t in tower.state_dict().items()}),
        "text.safetensors": to_bytes({**text.state_dict(), "scale": torch.tensor(7.0)}),
    }


def _pictures_only() -> Files:
    return {name: content for name, content in _towers().items() if not name.startswith("text")}


def _tower(folder: Path) -> Any:
    encoder: Any = load_encoder(f"vision:{folder}")
    return encoder.module.encode(torch.zeros(1, 3, 16, 16)) if encoder.module.shape.patch in (4, 8, 16) else encoder


def _start(folder: Path) -> Any:
    from vision.pretraining.video.start import load_start, with_words

    found = load_start(str(folder))
    return with_words(found.text, ["a green ring"]).encode(["a green disc"]) * found.scale


def _masks(_: Path) -> list[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 4, 4), np.float16))
    return [buffer.getvalue()]


def _kept_masks(folder: Path, content: bytes) -> Any:
    """Masks that were kept are read, or found to be damaged and made again; small ones, here."""
    from vision import sam

    (folder / "x.npy").write_bytes(content)
    with patch.object(sam, "POINTS", 2), patch.object(sam, "MAP", 4):
        found = sam._read(folder / "x.npy")
    return None if found is None else torch.from_numpy(found).float()


def _drawn(n: int, size: int, seed: int) -> tuple[np.ndarray, list[str]]:
    return np.full((n, 3, size, size), 7, np.uint8), [f"thing {i}" for i in range(n)]


def _pool(folder: Path) -> Any:
    """Scenes that were kept for a run are read, or found to be damaged and drawn again."""
    from vision.pretraining.pool import _kept
    from vision.pretraining.spec import WorldSpec

    world = WorldSpec.model_validate({"size": 32, "pool": 256, "held_out": 256, "folder": str(folder)})
    found = _kept(world, 2, 0, _drawn)
    assert found.vocabulary()
    return found.batch(np.arange(2), 32)


def _scenes() -> Files:
    with tempfile.TemporaryDirectory() as place:
        _pool(Path(place))
        return {str(f.relative_to(place)): f.read_bytes() for f in sorted(Path(place).rglob("*")) if f.is_file()}


TARGETS = [
    folder_target("vision", _pictures_only, _tower),
    folder_target("vision-untrained", _pictures_only, lambda folder: load_encoder(f"vision:{folder}@untrained")),
    folder_target("vision-start", _towers, _start),
    Target("masks", ".npy", _masks, _kept_masks),
    folder_target("scenes", _scenes, _pool),
]
