"""Large pictures cut into square tiles that do not overlap, and what is cut with them: boxes, maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.errors import DataError
from vision.tasks import detection, files

if TYPE_CHECKING:
    from jaxtyping import Float64, Shaped, UInt8

_LEAST = 0.5  # of a box, that lies in the tile


@dataclass(frozen=True)
class Tile:
    """A square of `side` pixels from its upper left corner; `row` and `column` count tiles, of `columns` in all."""

    top: int
    left: int
    side: int
    row: int
    column: int
    columns: int

    @property
    def behind(self) -> bool:
        """Whether it lies in the right third of the tiles: what a picture split in two has for its test."""
        return self.column >= self.columns - max(1, self.columns // 3)

    def of_picture(self, picture: UInt8[np.ndarray, "3 h w"], size: int) -> UInt8[np.ndarray, "3 H W"]:
        """What of a picture lies in the tile, at `size` pixels a side."""
        return files.enlarge(picture[:, self.top : self.top + self.side, self.left : self.left + self.side], size)

    def of_map(self, values: Shaped[np.ndarray, "h w"], size: int) -> Shaped[np.ndarray, "H W"]:
        return files.shrink(values[self.top : self.top + self.side, self.left : self.left + self.side], size)

    def of_objects(self, found: detection.Objects, width: int, height: int) -> detection.Objects:
        """Objects of a picture of these sides in shares of the tile: what is seen of those that lie in it at least by
        half of their box. Crowds are cut and kept, since they mark a place."""
        classes, boxes = self._cut(found.classes, found.boxes, width, height, _LEAST)
        return detection.Objects.of(classes, boxes, *self._cut(found.crowd_classes, found.crowds, width, height, 0.0))

    def _cut(
        self, classes: np.ndarray, boxes: np.ndarray, width: int, height: int, least: float
    ) -> tuple[np.ndarray, Float64[np.ndarray, "G 4"]]:
        whole = boxes * [width, height, width, height] - [self.left, self.top, self.left, self.top]
        cut = whole.clip(0, self.side)
        area, seen = ((b[:, 2:] - b[:, :2]).prod(1) for b in (whole, cut))
        kept = (seen > 0) & (seen >= least * area)
        return classes[kept], cut[kept] / self.side


def tiles(name: str, what: object, width: int, height: int, side: int) -> list[Tile]:
    """As many tiles of `side` pixels as fit, row by row; what is left over lies between them.

    Raises `DataError` for a picture that is smaller than a tile.
    """
    rows, columns = height // side, width // side
    if not rows or not columns:
        raise DataError(f"task {name!r}: {what} has {width} x {height} pixels, less than a tile of {side}")
    top, left = _starts(height, rows, side), _starts(width, columns, side)
    return [Tile(y, x, side, i, j, columns) for i, y in enumerate(top) for j, x in enumerate(left)]


def _starts(length: int, count: int, side: int) -> list[int]:
    spare = length - count * side
    return [i * side + spare * i // max(1, count - 1) for i in range(count)]
