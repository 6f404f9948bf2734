"""Outlines of the shapes: how far a point lies outside (positive) or inside (negative) each, in units of its radius.

Points `(u, v)` have u to the right and v upwards; every shape lies within a circle of radius 1 (triangles 1.25) and
stands on about v = -0.88. Values are exact distances near the edges, which is all that smooth edges and bevels need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

_Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.88


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.71


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = v + 0.25
    return np.maximum(-v, 0.866 * np.abs(u) + 0.5 * v) - 0.55


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points: each fifth of the circle is folded on the line from a point to the dent beside it."""
    fifth, outer, inner = 2 * np.pi / 5, 1.0, 0.42
    angle = np.abs((np.arctan2(u, v) + fifth / 2) % fifth - fifth / 2)
    radius = np.hypot(u, v)
    x, y = radius * np.sin(angle), radius * np.cos(angle)
    dx, dy = inner * np.sin(fifth / 2), inner * np.cos(fifth / 2) - outer
    length = np.hypot(dx, dy)
    return ((y - outer) * dx - x * dy) / length


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.66) - 0.25


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(a, b) - 0.28, np.maximum(a, b) - 0.9)


def _diamond(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (1.6 * np.abs(u) + np.abs(v) - 0.98) / np.hypot(1.6, 1.0)


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 0.9, 0.68 - np.hypot(u - 0.46, v - 0.12))


_OUTLINES: dict[str, _Outline] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "diamond": _diamond,
    "moon": _moon,
}
SHAPES: tuple[str, ...] = tuple(_OUTLINES)


def distance(
    shape: Int64[np.ndarray, " n"], u: Float32[np.ndarray, "n p"], v: Float32[np.ndarray, "n p"]
) -> Float32[np.ndarray, "n p"]:
    """Distances of p points each from n shapes, numbers of `SHAPES`; far away where a number is -1."""
    far = np.full(u.shape, 9.0, np.float32)
    for number, outline in enumerate(_OUTLINES.values()):
        rows = np.flatnonzero(shape == number)
        if len(rows):
            far[rows] = outline(u[rows], v[rows])
    return far
