"""Procedural pictures with exact truth: `scenes(n, seed=0)`.

Everything follows from the seed, so that training and test sets that are drawn with other seeds never share a scene.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.errors import SpecError
from vision.world.plan import MOST, SHIFTS, Plan, Shift, draw
from vision.world.render import render

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

_CHUNK = 32  # scenes drawn at a time: temporaries stay near the cache
SMALLEST = 32  # pixels a side, so that shapes can be told


@dataclass(frozen=True, eq=False)
class Scenes:
    """N pictures and what is true of them. Objects are numbered 0 to 3; those that are there come first.

    `instance` tells which object is seen at a pixel (k + 1, 0 for none); `plan` has the attributes of all objects.
    """

    images: UInt8[np.ndarray, "N 3 H W"]
    instance: UInt8[np.ndarray, "N H W"]
    depth: Float32[np.ndarray, "N H W"]
    plan: Plan

    @property
    def n(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.images.shape[2]

    @property
    def values(self) -> Float32[np.ndarray, "N 3 S"]:
        """The pictures as series, rows behind each other, between 0 and 1."""
        return self.images.reshape(self.n, 3, -1).astype(np.float32) / 255

    @property
    def there(self) -> np.ndarray:
        """Which objects there are, bool `[N, K]`."""
        return self.plan.shape >= 0

    @property
    def classes(self) -> Int64[np.ndarray, "N H W"]:
        """The shape that is seen at each pixel, a number of `SHAPES`, -1 for the background."""
        shape = np.concatenate([np.full((self.n, 1), -1), self.plan.shape], 1)
        return shape[np.arange(self.n)[:, None, None], self.instance]

    @property
    def area(self) -> Int64[np.ndarray, "N K"]:
        """Pixels of each object that are seen."""
        return np.stack([(self.instance == k + 1).sum((1, 2)) for k in range(MOST)], 1)

    @property
    def boxes(self) -> Int64[np.ndarray, "N K 4"]:
        """Left, top, right, bottom around what is seen of each object, in pixels, right and bottom excluded; else 0."""
        found = np.zeros((self.n, MOST, 4), np.int64)
        for k in range(MOST):
            mask = self.instance == k + 1
            for axis, at in ((1, 0), (2, 1)):
                line = mask.any(axis)  # over rows: columns that hold a pixel; over columns: rows
                found[:, k, at] = line.argmax(1)
                found[:, k, at + 2] = np.where(line.any(1), self.size - line[:, ::-1].argmax(1), 0)
        return found

    def take(self, rows: np.ndarray) -> Scenes:
        return Scenes(self.images[rows], self.instance[rows], self.depth[rows], self.plan.take(rows))


def scenes(
    n: int,
    *,
    size: int = 64,
    seed: int | tuple[int, ...] = 0,
    objects: tuple[int, int] = (1, MOST),
    shift: Shift | None = None,
) -> Scenes:
    """n pictures of `size` pixels a side with a number of objects in a range, both ends included, equally often.

    With `shift` they come from another domain, for tests of robustness: patterns of other scales and two colours, light
    from below, strong colour casts, blur and noise, or backgrounds of coloured cells. The same arguments give the same
    pictures; at another size they give the same scenes, but for the noise of the camera.

    Seeds are whole numbers that are not negative, or tuples of them; different ones share no scene. The tasks take
    triples, so that training on whole numbers or pairs never sees a scene of a task.

    Raises `SpecError` for none, fewer than 32 pixels, another range of objects than 1 to 4, or another shift.
    """
    check(n, size, objects, shift)
    parts = []
    for first in range(0, n, _CHUNK):
        rng = generator(seed, first // _CHUNK, 1)
        plan = draw(min(_CHUNK, n - first), rng, objects, shift)
        parts.append((plan, *render(plan, size, rng)))
    return together(parts)


def together(parts: Sequence[tuple[Plan, np.ndarray, np.ndarray, np.ndarray]]) -> Scenes:
    """Plans and their pictures, instances and depths as one set."""
    plans, images, instance, depth = zip(*parts, strict=True)
    plan = Plan(**{f.name: np.concatenate([getattr(p, f.name) for p in plans]) for f in dataclasses.fields(Plan)})
    return Scenes(np.concatenate(images), np.concatenate(instance), np.concatenate(depth), plan)


def generator(seed: int | tuple[int, ...], chunk: int, kind: int) -> np.random.Generator:
    """Random numbers of one chunk. No two seeds share any, seeds of another length neither.

    Hence length and kind: numpy fills up short seeds with zeros, so that (5,) and (5, 0) would be one.
    """
    numbers = seed if isinstance(seed, tuple) else (seed,)
    return np.random.default_rng((len(numbers), *numbers, chunk, kind))


def check(n: int, size: int, objects: tuple[int, int], shift: str | None) -> None:
    if n < 1:
        raise SpecError(f"n is {n}; generate at least 1 scene")
    if size < SMALLEST:
        raise SpecError(f"size is {size}; scenes need at least {SMALLEST} pixels a side")
    if not 1 <= objects[0] <= objects[1] <= MOST:
        raise SpecError(f"objects are {objects}; give a range within 1 to {MOST}")
    if shift is not None and shift not in SHIFTS:
        raise SpecError(f"shift {shift!r} is none of {', '.join(SHIFTS)}")
