"""Intervals of means and medians over encoders and tasks: a hierarchical bootstrap.

Each resample draws the encoders with replacement; crossed with these, the tasks, each family's from that family
(families of fewer than three tasks are drawn together); and within each task that it draws, the seeds under which the
task's series were generated. The test series within a task are not drawn again: their share of the noise is in the
differences between tasks. Few tasks make percentile intervals too narrow, which are therefore expanded to what
Student's t would have (Hesterberg 2015, section 4.3); of fewer than three tasks there is none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

LEAST = 3  # tasks behind an interval

Statistic = Literal["mean", "median"]


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; NaN where nothing can be said."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))

    def row(self, name: str) -> dict[str, float]:
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True)
class Grid:
    """Values on encoders x tasks x variants (`[E, B, V]`, NaN where there is none); `families [B]` of the tasks."""

    values: Float[np.ndarray, "E B V"]
    families: tuple[str, ...]

    @classmethod
    def of(
        cls, table: pd.DataFrame, column: str, encoders: Sequence[str] | None = None, tasks: pd.DataFrame | None = None
    ) -> Grid:
        """Of rows with encoder, family, base and variant. Grids of the same `tasks` are resampled alike, in pairs."""
        named = (table if tasks is None else tasks)[["family", "base", "variant"]].drop_duplicates()
        named = named.sort_values(["family", "base", "variant"])
        bases = {key: i for i, key in enumerate(dict.fromkeys(zip(named["family"], named["base"], strict=True)))}
        variants = {v: i for i, v in enumerate(sorted(named["variant"].unique()))}
        names = {e: i for i, e in enumerate(encoders if encoders is not None else sorted(table["encoder"].unique()))}
        values = np.full((len(names), len(bases), len(variants)), np.nan)
        for row in table.itertuples():
            if row.encoder in names and (row.family, row.base) in bases:
                values[names[row.encoder], bases[row.family, row.base], variants[row.variant]] = getattr(row, column)
        return cls(values, tuple(family for family, _ in bases))

    @property
    def measured(self) -> tuple[int, int]:
        """Encoders and tasks of which there is any value."""
        there = ~np.isnan(self.values)
        return int(there.any((1, 2)).sum()), int(there.any((0, 2)).sum())

    def resampled(self, resamples: int, seed: int, statistic: Statistic = "mean") -> Float[np.ndarray, " R1"]:
        """The statistic itself, and behind it that of each resample."""
        e, b, v = self.values.shape
        whole = _over(self._variants(self.values[None])[None], statistic)  # [1]
        if not e * b * v:
            return np.full(resamples + 1, np.nan)
        rng = np.random.default_rng([seed, b, v])  # one for tasks, so that grids of the same tasks are paired
        encoders = np.random.default_rng([seed, 1, e]).integers(0, e, (resamples, e))
        bases = self._drawn_tasks(rng, resamples)
        picks = rng.random((resamples, b, v))
        found = [whole]
        for at in np.array_split(np.arange(resamples), max(1, resamples * e * b * v // 2_000_000)):
            cells = self.values[encoders[at][:, :, None], bases[at][:, None, :]]  # [r, E, B, V]
            found.append(_over(self._variants(cells, picks[at][:, None]), statistic))
        return np.concatenate([f.ravel() for f in found])

    def _drawn_tasks(self, rng: np.random.Generator, resamples: int) -> np.ndarray:
        family = np.array(self.families)
        small = np.array([np.sum(family == name) < LEAST for name in family])
        family[small] = ""  # drawn together: a family of one task would always give itself
        drawn = np.empty((resamples, len(family)), int)
        for name in dict.fromkeys(family.tolist()):
            own = np.flatnonzero(family == name)
            pool = own if len(own) >= LEAST else np.arange(len(family))
            drawn[:, own] = pool[rng.integers(0, len(pool), (resamples, len(own)))]
        return drawn

    def _variants(self, cells: np.ndarray, picks: np.ndarray | None = None) -> np.ndarray:
        """The mean over the variants there are, or over as many that are drawn from these."""
        if picks is not None and cells.shape[-1] > 1:
            order = np.argsort(np.isnan(cells), axis=-1, kind="stable")  # those that there are first
            n = (~np.isnan(cells)).sum(-1, keepdims=True)
            at = np.minimum((picks * np.maximum(n, 1)).astype(int), np.maximum(n - 1, 0))
            drawn = np.take_along_axis(np.take_along_axis(cells, order, -1), np.broadcast_to(at, cells.shape), -1)
            cells = np.where(np.arange(cells.shape[-1]) < n, drawn, np.nan)
        return _quiet(np.nanmean, cells, -1)

    def estimate(self, resamples: int, seed: int, level: float, statistic: Statistic = "mean") -> Estimate:
        return interval(self.resampled(resamples, seed, statistic), self.clusters, level)

    @property
    def clusters(self) -> int:
        """Of what there are fewer: tasks, or encoders where there are several; 0 for fewer tasks than `LEAST`."""
        encoders, tasks = self.measured
        if tasks < LEAST:
            return 0
        return tasks if encoders < 2 else min(encoders, tasks)


def _over(cells: np.ndarray, statistic: Statistic) -> np.ndarray:
    """`[r, ..., E, B]` to `[r]`."""
    flat = cells.reshape(len(cells), -1)
    return _quiet(np.nanmean if statistic == "mean" else np.nanmedian, flat, -1)


def _quiet(function: Callable[..., np.ndarray], values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but NaN, the mean is NaN
        return function(values, axis=axis)


def interval(samples: Float[np.ndarray, " R1"], clusters: int, level: float) -> Estimate:
    """The first sample with the expanded percentile interval of the others, for so many tasks (or encoders)."""
    drawn = samples[1:][np.isfinite(samples[1:])]
    if clusters < 2 or not len(drawn):
        return Estimate(float(samples[0]), math.nan, math.nan)
    wide = math.sqrt(clusters / (clusters - 1)) * stats.t.ppf(1 - level / 2, clusters - 1)
    tail = float(stats.norm.cdf(-wide))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(float(samples[0]), float(low), float(high))
