"""The rows that a probe sees of a panel: a series each, or a step of a series each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64, Shaped


@dataclass(frozen=True, eq=False)
class Rows:
    """Targets `y [n, ...]` of n rows, the `series [n]` of each, and its place among the readings of a panel, `at [n]`.

    A panel of N series is read M times each, in the order of the series; M is 1 where whole series are asked about.
    Rows without any target are left out of a dense task. Rows of a series stand together, in order of time.
    """

    y: Shaped[np.ndarray, "n ..."]
    series: Int64[np.ndarray, " n"]
    at: Int64[np.ndarray, " n"]
    n_series: int
    n_read: int

    @classmethod
    def whole(cls, y: np.ndarray) -> Rows:
        """One row a series."""
        index = np.arange(len(y))
        return cls(y, index, index, len(y), len(y))

    @classmethod
    def at_steps(cls, y: np.ndarray) -> Rows:
        """`y [N, M]` classes, -1 where there is none, or `[N, M, K]` values, NaN where there is none."""
        known = y >= 0 if y.ndim == 2 else ~np.isnan(y).all(axis=2)
        series, step = np.nonzero(known)
        return cls(y[series, step], series, series * y.shape[1] + step, len(y), y.shape[0] * y.shape[1])

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Which rows have a target."""
        return np.ones(len(self.y), bool) if self.y.ndim == 1 else ~np.isnan(self.y).all(axis=1)

    @cached_property
    def _row_of(self) -> Int64[np.ndarray, " n_read"]:
        """Row of each reading, -1 where it has no target."""
        rows = np.full(self.n_read, -1)
        rows[self.at] = np.arange(len(self.at))
        return rows

    def of_series(
        self, index: Int64[np.ndarray, " b"], x: Shaped[np.ndarray, "G b MD"]
    ) -> tuple[Int64[np.ndarray, " r"], Shaped[np.ndarray, "G r D"]]:
        """The rows of some series, and of their features `[G, b, M D]` those of each row."""
        readings = self.n_read // self.n_series
        rows = self._row_of[(index[:, None] * readings + np.arange(readings)).ravel()]
        each = x.reshape(len(x), len(rows), -1)
        return (rows, each) if (rows >= 0).all() else (rows[rows >= 0], each[:, rows >= 0])

    def take(self, x: Shaped[np.ndarray, "G N MD"]) -> Shaped[np.ndarray, "G n D"]:
        """Of features `[G, N, M D]` the rows `[G, n, D]`."""
        each = x.reshape(len(x), self.n_read, -1)
        return each if len(self.at) == self.n_read else each[:, self.at]
