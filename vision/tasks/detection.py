"""Tasks that ask for objects and boxes at places of pictures, as one-stage detectors do (FCOS, Tian et al. 2019).

Places are the middles of the cells of a grid. Each object has a place of its own, the one nearest to the middle of its
box, less total distance first where several want the same; every other place inside of boxes belongs to the smallest of
them. Targets of a place are a heat of each class, 1 at the object's own place and FCOS' centre-ness, below 1, at its
others; how far the four sides of the box are from the place, none where no object lies; and where the place is. A probe
that reads them, such as `ridge`, is the light head of a frozen encoder, and the metric `ap` decodes and ranks what it
reads (`tsprobe.detection_metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.detection_metrics import EXTRA
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks.base import Task

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64

SIDES = ("left", "top", "right", "bottom")
_BELOW = 0.99  # the most that a place is worth that is not the object's own


@dataclass(frozen=True, eq=False)
class Objects:
    """G objects of a picture, boxes in shares of its sides: left, top, right, bottom.

    What is found of the class of a crowd inside of its box is neither right nor wrong.
    """

    classes: Int64[np.ndarray, " G"]
    boxes: Float64[np.ndarray, "G 4"]
    crowd_classes: Int64[np.ndarray, " H"]
    crowds: Float64[np.ndarray, "H 4"]

    @classmethod
    def of(cls, classes: Any, boxes: Any, crowd_classes: Any = (), crowds: Any = ()) -> Objects:
        return cls(
            np.asarray(classes, np.int64).reshape(-1), np.asarray(boxes, np.float64).reshape(-1, 4),
            np.asarray(crowd_classes, np.int64).reshape(-1), np.asarray(crowds, np.float64).reshape(-1, 4),
        )  # fmt: skip


def ask(
    name: str,
    panels: tuple[Panel, Panel],
    objects: tuple[Sequence[Objects], Sequence[Objects]],
    classes: tuple[str, ...],
    *,
    size: int,
    grid: int,
    **rest: Any,
) -> Task:
    """A task out of training and test pictures of `size` pixels a side and the objects of each.

    `rest` are further fields of `Task`. Raises `SpecError` for a grid that does not fit; `DataError` for a box that is
    empty or outside its picture, a picture with more objects than places, and a split without any object.
    """
    if not 1 <= grid <= size:
        raise SpecError(f"task {name!r}: grid={grid}; give from 1 to {size} places a side")
    pixels = ((np.arange(grid) + 0.5) * size / grid).astype(np.int64)
    steps = (pixels[:, None] * size + pixels).ravel()
    middles = (pixels + 0.5) / size
    places = np.stack([np.tile(middles, grid), np.repeat(middles, grid)], 1)
    y = []
    for split, part in zip(("training", "test"), objects, strict=True):
        if not any(len(one.classes) for one in part):
            raise DataError(f"task {name!r}: no {split} picture shows an object, so there is nothing to detect")
        for i, one in enumerate(part):
            if wrong := _mistake(one, len(classes), len(places)):
                raise DataError(f"task {name!r}: {split} picture {i} {wrong}")
        y.append(np.stack([targets(one, places, len(classes)) for one in part]))
    asked = [np.tile(steps, (len(part), 1)) for part in objects]
    return Task(
        name, "dense", "detection", "ap", panels[0], panels[1], y[0], y[1], (*classes, *SIDES, "column", "row"),
        steps_train=asked[0], steps_test=asked[1], **rest,
    )  # fmt: skip


def _mistake(one: Objects, n_classes: int, n_places: int) -> str | None:
    if len(one.classes) > n_places:
        return f"has {len(one.classes)} objects and {n_places} places; give a finer grid"
    if len(one.classes) != len(one.boxes) or len(one.crowd_classes) != len(one.crowds):
        return "has not one box for each object"
    for classes, boxes in ((one.classes, one.boxes), (one.crowd_classes, one.crowds)):
        low, high = boxes[:, :2], boxes[:, 2:]
        right = ((low >= 0) & (low < high) & (high <= 1)).all(1)  # of NaN, nothing holds
        if not right.all():
            box = ", ".join(f"{side:.4g}" for side in boxes[right.argmin()])
            return f"has the box {box}, which is empty or not within 0 to 1"
        if ((classes < 0) | (classes >= n_classes)).any():
            return f"has an object of a class that is none of 0 to {n_classes - 1}"
    return None


def targets(one: Objects, places: Float64[np.ndarray, "M 2"], n_classes: int) -> Float64[np.ndarray, "M K"]:
    """Of the places of a picture; columns are those of `tsprobe.detection_metrics`."""
    from scipy.optimize import linear_sum_assignment

    y = np.zeros((len(places), n_classes + EXTRA))
    y[:, n_classes:-2], y[:, -2:] = np.nan, places
    owner = np.full(len(places), -1)
    if len(one.boxes):
        inside = _inside(one.boxes, places)
        area = (one.boxes[:, 2:] - one.boxes[:, :2]).prod(1)
        smallest = np.where(inside, area, np.inf).argmin(1)
        owner = np.where(inside.any(1), smallest, -1)
        middle = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2
        own, which = linear_sum_assignment(np.linalg.norm(places[:, None] - middle, axis=2))
        owner[own] = which
        at = np.flatnonzero(owner >= 0)
        box = one.boxes[owner[at]]
        sides = np.concatenate([places[at] - box[:, :2], box[:, 2:] - places[at]], 1)
        y[at, n_classes:-2] = sides
        y[at, one.classes[owner[at]]] = np.minimum(_centreness(sides), _BELOW)
        y[own, one.classes[which]] = 1
    for c, inside in zip(one.crowd_classes, _inside(one.crowds, places).T, strict=True):
        other = (owner < 0) | (one.classes[owner] != c) if len(one.classes) else np.ones(len(places), bool)
        y[inside & other, c] = np.nan
    return y


def _inside(boxes: Float64[np.ndarray, "G 4"], places: Float64[np.ndarray, "M 2"]) -> Bool[np.ndarray, "M G"]:
    """Which places `[M, G]` lie in which boxes."""
    at = places[:, None]
    return np.asarray(((boxes[:, :2] < at) & (at < boxes[:, 2:])).all(2))


def _centreness(sides: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, " n"]:
    """FCOS, equation 3; 0 outside of the box."""
    before, behind = np.clip(sides[:, :2], 0, None), np.clip(sides[:, 2:], 0, None)
    return np.sqrt((np.minimum(before, behind) / np.maximum(before, behind)).prod(1))
