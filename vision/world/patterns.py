"""Patterns of objects, floors and walls: numbers between 0 and 1 at points of the plane, with soft edges.

Coordinates count periods of the pattern. `blotches` has no period; its grain is about one unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

TEXTURES = ("plain", "striped", "checked", "dotted", "speckled")
_TURN = np.float32(2 * np.pi)


def waves(a: np.ndarray, sharp: float = 2.5) -> np.ndarray:
    """Stripes across the axis a."""
    return np.clip(0.5 + sharp * np.sin(_TURN * a), 0, 1)


def checks(a: np.ndarray, b: np.ndarray, sharp: float = 2.5) -> np.ndarray:
    return np.clip(0.5 + sharp * np.sin(_TURN * a) * np.sin(_TURN * b), 0, 1)


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 6 * (0.33 - np.hypot(a - np.round(a), b - np.round(b))), 0, 1)


def cells(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A number for each cell of the unit grid, even between 0 and 1 and unlike its neighbours' (a sine hash)."""
    x = np.sin(np.floor(a) * np.float32(12.9898) + np.floor(b) * np.float32(78.233)) * np.float32(437.5453)
    return x - np.floor(x)


def blotches(a: np.ndarray, b: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Smooth and irregular: sines of warped coordinates."""
    x = np.sin(3.1 * a + 1.7 * np.sin(2.3 * b + phase) + phase)
    return 0.5 + 0.25 * (x + np.sin(3.7 * b + 1.9 * np.sin(1.9 * a - phase)))


def texture(
    kind: Int64[np.ndarray, " n"], a: Float32[np.ndarray, "n p"], b: Float32[np.ndarray, "n p"]
) -> Float32[np.ndarray, "n p"]:
    """How much of the second tone each point has, by kinds of `TEXTURES`; a and b count periods."""
    mix = np.zeros(a.shape, np.float32)
    makers = {
        1: lambda a, b: waves(a),
        2: lambda a, b: checks(a / 2, b / 2, 4.0),
        3: dots,
        4: lambda a, b: cells(3 * a, 3 * b) > 0.6,
    }
    for number, make in makers.items():
        rows = np.flatnonzero(kind == number)
        if len(rows):
            mix[rows] = make(a[rows], b[rows])
    return mix
