"""Tasks that ask at single pixels of images: which of them, and the task that comes of it.

One pixel is drawn in each cell of a grid that divides the image, so that pixels are spread evenly without lying in the
same columns. Step `row * W + column` of a series is a pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks.base import Task

if TYPE_CHECKING:
    from jaxtyping import Int64, Num


def draw(n: int, size: int, grid: int, rng: np.random.Generator) -> Int64[np.ndarray, "N M"]:
    """For each of n images of `size` pixels a side, `grid * grid` pixels in order; `SpecError` for grids below 1."""
    if not 1 <= grid <= size:
        raise SpecError(f"grid is {grid}; give from 1 to {size} cells a side, with one pixel of each asked about")
    edges = np.arange(grid + 1) * size // grid
    low, width = edges[:-1], np.diff(edges)
    at = rng.random((2, n, grid, grid))
    rows = low[:, None] + (at[0] * width[:, None]).astype(np.int64)
    columns = low + (at[1] * width).astype(np.int64)
    return np.sort((rows * size + columns).reshape(n, -1), axis=1)


def ask(
    name: str,
    kind: Literal["classification", "regression"],
    metric: str,
    panels: tuple[Panel, Panel],
    truths: tuple[Num[np.ndarray, "N H W"], Num[np.ndarray, "N H W"]],
    labels: tuple[str, ...],
    *,
    grid: int,
    seed: int,
    **rest: Any,
) -> Task:
    """A task out of training and test images and one map each: classes, -1 for none, or values, NaN for none.

    `rest` are further fields of `Task`. Raises `DataError` where a split has no pixel with a label.
    """
    at: list[np.ndarray] = []
    y: list[np.ndarray] = []
    for is_test, (split, truth) in enumerate(zip(("training", "test"), truths, strict=True)):
        n, size = truth.shape[:2]
        steps = draw(n, size, grid, np.random.default_rng((seed, is_test)))
        found = np.take_along_axis(truth.reshape(n, -1), steps, 1)
        known = found >= 0 if kind == "classification" else ~np.isnan(found)
        if not known.any():
            raise DataError(f"task {name!r}: no pixel of the {split} images that is asked about has a label")
        at.append(steps)
        y.append(found.astype(np.int64) if kind == "classification" else found.astype(np.float64)[..., None])
    return Task(
        name, "dense", kind, metric, panels[0], panels[1], y[0], y[1], labels, steps_train=at[0], steps_test=at[1],
        **rest,
    )  # fmt: skip
