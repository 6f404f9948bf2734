"""Clips as the engine has them: small frames, an exact caption, and what is true of each object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from tsprobe.errors import DataError
from vision.engine.things import Thing
from vision.world.clips import MOTIONS, Clips, clips
from vision.world.patterns import TEXTURES
from vision.world.plan import MOST
from vision.world.shapes import SHAPES
from vision.world.words import COLOUR_NAMES, clip_captions

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, UInt8
    from torch import Tensor

_TOGETHER = 64  # clips drawn at a time: large frames are not kept


@dataclass(frozen=True, eq=False)
class Films:
    """N clips of T frames, at the size that the tower is given."""

    frames: UInt8[np.ndarray, "N T 3 H W"]
    captions: list[str]  # exact
    truth: list[list[Thing]]  # all objects of each clip, whole

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.shape[1] < 2:
            raise DataError(f"clips of shape {self.frames.shape}: give [N, T, 3, H, W] with two frames or more")

    @property
    def n(self) -> int:
        return len(self.captions)

    def pictures(self, rows: np.ndarray, moments: np.ndarray) -> Float[Tensor, "B*F 3 H W"]:
        """These frames of these clips, clip after clip, in [-1, 1]."""
        chosen = self.frames[rows][:, moments]
        return torch.from_numpy(chosen).flatten(0, 1).float() / 127.5 - 1


def films(
    n: int, *, frames: int, size: int, drawn: int, objects: tuple[int, int], seed: int | tuple[int, ...]
) -> Films:
    """n clips, drawn at `drawn` pixels a side and shrunk to `size`, as pictures are. Errors as `clips`."""
    parts: list[np.ndarray] = []
    captions: list[str] = []
    truth: list[list[Thing]] = []
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    for first in range(0, n, _TOGETHER):
        part = clips(min(_TOGETHER, n - first), frames=frames, size=drawn, seed=(*seeds, first), objects=objects)
        parts.append(_shrunk(part.images, size))
        captions += clip_captions(part, (*seeds, first))
        truth += _truth(part)
    return Films(np.concatenate(parts), captions, truth)


def moments(frames: int, count: int) -> Int64[np.ndarray, " F"]:
    """`count` moments of a clip, evenly spread from its first frame to its last."""
    return np.linspace(0, frames - 1, count).round().astype(np.int64)


def _shrunk(images: UInt8[np.ndarray, "N T 3 H W"], size: int) -> UInt8[np.ndarray, "N T 3 h w"]:
    if images.shape[-1] == size:
        return images
    flat = torch.from_numpy(images).flatten(0, 1).float()
    small = F.interpolate(flat, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return small.round().clamp(0, 255).byte().unflatten(0, images.shape[:2]).numpy()


def _truth(part: Clips) -> list[list[Thing]]:
    plan = part.at(0).plan
    return [
        [
            Thing(
                COLOUR_NAMES[plan.colour[i, k]], TEXTURES[plan.texture[i, k]], SHAPES[plan.shape[i, k]],
                MOTIONS[part.motion[i, k]],
            )
            for k in range(MOST)
            if plan.shape[i, k] >= 0
        ]
        for i in range(part.n)
    ]  # fmt: skip
