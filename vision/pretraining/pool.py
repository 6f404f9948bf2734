"""The pictures and captions of a run: drawn once, kept on disk, read in an order that follows from the seed."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tsprobe.errors import DAMAGE, warn_damaged
from tsprobe.files import parse_json, replace_file, replace_text
from vision.models import Vocabulary
from vision.pretraining.spec import WorldSpec

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

    Draw = Callable[[int, int, int], tuple[UInt8[np.ndarray, "N 3 H W"], list[str]]]

_HELD_OUT = 10**6  # added to the seed: scenes that are never trained on


@dataclass(frozen=True)
class Batch:
    """Pictures in [-1, 1] at the size of the pool, their captions, and the size that the step works with."""

    values: Float[Tensor, "B 3 H W"]
    captions: list[str]
    size: int


@dataclass(frozen=True, eq=False)
class Pool:
    """N pictures, memory-mapped, and a caption for each; `mark` tells one pool from another."""

    images: UInt8[np.ndarray, "N 3 H W"]
    captions: list[str]
    mark: str = ""

    def batch(self, rows: np.ndarray, size: int, device: str = "cpu") -> Batch:
        values = torch.from_numpy(np.asarray(self.images[rows])).to(device).float() / 127.5 - 1
        return Batch(values, [self.captions[row] for row in rows], size)

    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.captions)


def pools(world: WorldSpec, draw: Draw | None = None) -> tuple[Pool, Pool]:
    """Scenes to train on, and held-out ones. `draw(n, size, seed)` replaces the generated world."""
    draw = draw or drawn
    return _kept(world, world.pool, world.seed, draw), _kept(world, world.held_out, world.seed + _HELD_OUT, draw)


def rows_at(step: int, batch: int, pool: int, seed: int) -> np.ndarray:
    """Which pictures of the pool a step sees: each once before any is seen again."""
    place = step * batch + np.arange(batch)
    rows = np.empty(batch, np.int64)
    for epoch in np.unique(place // pool):
        here = place // pool == epoch
        rows[here] = np.random.default_rng((seed, 17, int(epoch))).permutation(pool)[place[here] % pool]
    return rows


def generator(seed: int, step: int, stream: int) -> torch.Generator:
    """Chance for one purpose at one step."""
    state = np.random.SeedSequence((seed, step, stream)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed((int(state[0]) << 31) ^ int(state[1]))


def _kept(world: WorldSpec, n: int, seed: int, draw: Draw) -> Pool:
    """Drawn scenes from disk, or drawn and put there. A changed world has other first scenes, hence another name."""
    first, captions = draw(min(n, 16), world.size, seed)
    mark = hashlib.sha256(first.tobytes() + "\n".join(captions).encode()).hexdigest()[:12]
    folder = Path(world.folder or Path(tempfile.gettempdir(), "tsprobe-scenes")) / f"{mark}-{n}"
    images_file, captions_file = folder / "images.npy", folder / "captions.json"
    if captions_file.exists():
        try:
            return Pool(*_read(images_file, captions_file, (n, 3, world.size, world.size)), folder.name)
        except (OSError, *DAMAGE) as error:
            warn_damaged(folder, error)
    images, captions = draw(n, world.size, seed)
    replace_file(images_file, lambda handle: np.save(handle, images))
    replace_text(captions_file, json.dumps(captions))  # last: its presence says that the folder is whole
    return Pool(*_read(images_file, captions_file, images.shape), folder.name)


def _read(images_file: Path, captions_file: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """Raises `ValueError`, or another of `DAMAGE`, for other pictures or captions than were written."""
    images, captions = np.load(images_file, mmap_mode="r"), parse_json(captions_file.read_bytes())
    if images.shape != shape or images.dtype != np.uint8:
        raise ValueError(f"pictures of shape {images.shape} and type {images.dtype}")
    if not isinstance(captions, list) or len(captions) != len(images) or not all(isinstance(c, str) for c in captions):
        raise ValueError("not one caption for each picture")
    return images, captions


def drawn(n: int, size: int, seed: int) -> tuple[UInt8[np.ndarray, "N 3 H W"], list[str]]:
    """Scenes of the generated world and their captions."""
    from vision.world.scenes import scenes
    from vision.world.words import captions

    found = scenes(n, size=size, seed=seed)
    return found.images, captions(found, seed)
