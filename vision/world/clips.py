"""Short clips of the generated world: objects and camera move, the truth of every frame is known.

Each object stands still or moves at an even speed: to the left or right, over 30 % to 55 % of the image, or closer or
away, by a factor of 1.35 to 1.7 in depth. It is at its planned place at a random moment, so that where it is in one
frame does not tell where it goes, and the frames of a clip in the other order show the opposite motion. The camera goes
sideways, by up to 0.25 at depth 1 with the parallax that this makes, and its horizon drifts by up to 4 %. Objects may
leave the image, and hide each other wholly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.errors import SpecError
from vision.world.plan import MOST, Plan, Shift, draw
from vision.world.render import render
from vision.world.scenes import Scenes, check, generator, together

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

MOTIONS = ("still", "left", "right", "closer", "away")
_CHUNK = 4  # clips drawn at a time


@dataclass(frozen=True, eq=False)
class Clips:
    """N clips of T frames. `frames` has them one after the other, and their truth; object k of a clip is one track."""

    frames: Scenes
    motion: Int64[np.ndarray, "N K"]  # numbers of `MOTIONS`, -1 where there is no object
    length: int  # frames of a clip, T

    @property
    def n(self) -> int:
        return len(self.motion)

    @property
    def images(self) -> UInt8[np.ndarray, "N T 3 H W"]:
        return self.frames.images.reshape(self.n, self.length, *self.frames.images.shape[1:])

    def at(self, moment: int) -> Scenes:
        """One frame of each clip."""
        return self.frames.take(np.arange(self.n) * self.length + moment)


def clips(
    n: int,
    *,
    frames: int = 8,
    size: int = 64,
    seed: int | tuple[int, ...] = 0,
    objects: tuple[int, int] = (1, MOST),
    shift: Shift | None = None,
) -> Clips:
    """n clips; arguments and errors are those of `scenes`, and `SpecError` for fewer than two frames."""
    check(n, size, objects, shift)
    if frames < 2:
        raise SpecError(f"frames are {frames}; a clip needs at least 2 to show motion")
    parts, motions = [], []
    for first in range(0, n, _CHUNK):
        rng = generator(seed, first // _CHUNK, 2)
        plan = draw(min(_CHUNK, n - first), rng, objects, shift)
        motion = np.where(plan.shape >= 0, rng.integers(len(MOTIONS), size=plan.shape.shape), -1)
        moved = _moved(plan, motion, frames, rng)
        parts.append((moved, *render(moved, size, rng)))
        motions.append(motion)
    return Clips(together(parts), np.concatenate(motions), frames)


def _moved(plan: Plan, motion: np.ndarray, frames: int, rng: np.random.Generator) -> Plan:
    """The plan of each frame, clip after clip."""
    n = plan.n
    time = np.arange(frames, dtype=np.float32) / (frames - 1)
    since = time - rng.uniform(0.2, 0.8, (n, MOST, 1)).astype(np.float32)  # [N, K, T]
    across = rng.uniform(0.3, 0.55, (n, MOST)) * plan.z * ((motion == 2) * 1.0 - (motion == 1))
    deeper = np.log(rng.uniform(1.35, 1.7, (n, MOST))) * ((motion == 4) * 1.0 - (motion == 3))
    z = np.maximum(plan.z[..., None] * np.exp(deeper[..., None] * since), 0.8)
    # what comes closer stays in its direction; what stands still does so in the world
    x = plan.x[..., None] * np.where(deeper[..., None] != 0, z / plan.z[..., None], 1) + across[..., None] * since
    camera = rng.uniform(-0.25, 0.25, (n, 1)) * (time - 0.5)
    drift = rng.uniform(-0.04, 0.04, (n, 1)) * (time - 0.5)
    repeated = plan.take(np.repeat(np.arange(n), frames))
    moved = {
        "x": x.transpose(0, 2, 1).reshape(-1, MOST),
        "z": z.transpose(0, 2, 1).reshape(-1, MOST),
        "camera_x": camera.ravel(),
        "horizon": (plan.horizon[:, None] + drift).ravel(),
    }
    return dataclasses.replace(repeated, **{name: value.astype(np.float32) for name, value in moved.items()})
