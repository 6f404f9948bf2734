"""What tuning brought and what it cost: the final layer before and after, against the best hidden layer before.

lift = (final after - final before) / (hidden before - final before): 0 where nothing came of it, 1 where the output
carries what the best hidden layer did, above 1 where it carries more than any layer did. All three are test scores;
the hidden layer is chosen by inner folds. The interval is a paired bootstrap over test series. Where nothing is hidden,
since the chosen layer is the final one or the interval of its gap reaches 0, there is no gap to take a share of, and
the lift is NaN: `final_after` then shows the price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.metrics import get_metric, mean_known
from tsprobe.stats import best_readout, choose, resample_counts, resampled_scores
from tsprobe.study.summary import Grid

if TYPE_CHECKING:
    from jaxtyping import Float

    from tsprobe.study.pair import Pair

COLUMNS = (
    "encoder", "recipe", "control", "family", "task", "metric", "final_before", "hidden_before", "final_after", "cut",
    "lift", "lift_low", "lift_high",
)  # fmt: skip


@dataclass(frozen=True)
class Before:
    """The cells of an untouched encoder on one task, and where its best hidden layer and its final one are."""

    pair: Pair
    grid: Grid
    chosen: tuple[int, int, int]
    final: tuple[int, int, int]

    @classmethod
    def of(cls, pair: Pair) -> Before:
        grid = Grid.of(pair.cells())
        inner = grid.values("inner").mean(-1)
        return cls(pair, grid, *choose(inner, grid.layers.index(pair.final)))

    @cached_property
    def samples(self) -> list[torch.Tensor]:
        """`_scores` of the final layer and of the chosen one; every control is compared with them."""
        return [_scores(self.pair, self.grid, place) for place in (self.final, self.chosen)]


def row(before: Before, after: Pair, cut: str | None) -> dict[str, Any]:
    """The entries of `lift.csv` from `family` on; `cut` is the layer at which the untouched encoder could be cut."""
    grid, task = Grid.of(after.cells()), before.pair.task
    end = grid.layers.index(after.final)
    place = end, *best_readout(grid.values("inner").mean(-1)[end])
    samples = [*before.samples, _scores(after, grid, place)]
    first, hidden, then = (float(s[0]) for s in samples)
    at = math.nan
    if cut is not None and cut in before.grid.layers:
        i = before.grid.layers.index(cut)
        at = _mean(before.grid, (i, *best_readout(before.grid.values("inner").mean(-1)[i])))
    return {
        "family": task.family, "task": task.name, "metric": task.metric, "final_before": first,
        "hidden_before": hidden, "final_after": then, "cut": at,
    } | _lift(samples, same=before.chosen == before.final)  # fmt: skip


def _mean(grid: Grid, place: tuple[int, int, int]) -> float:
    return float(grid.values("score")[place].mean())


def _scores(pair: Pair, grid: Grid, place: tuple[int, int, int]) -> Float[torch.Tensor, " Q"]:
    """The test score at a place, and behind it those of the bootstrap's resamples."""
    metric, rows = get_metric(pair.task.metric), pair.task.rows("test")
    counts = resample_counts(rows.n_series, pair.spec.resamples, seed=0)
    y, prediction = torch.from_numpy(rows.y), grid.predictions(*place)
    series = torch.from_numpy(rows.series) if pair.task.dense else None
    if metric.by_series:
        assert series is not None
        each = metric.each(y, prediction, series)[..., None]
        number = torch.arange(each.shape[1])
        drawn = resampled_scores(mean_known, number, each, counts[:, series.unique()])
    else:
        drawn = resampled_scores(metric, y, prediction, counts, clusters=series)
    return torch.cat([torch.tensor([_mean(grid, place)], dtype=drawn.dtype), drawn])


def _lift(samples: list[torch.Tensor], *, same: bool) -> dict[str, float]:
    first, hidden, then = samples
    gaps = (hidden - first)[1:]
    gaps = gaps[gaps.isfinite()]
    if same or not len(gaps) or float(gaps.quantile(0.025)) <= 0:
        return {"lift": math.nan, "lift_low": math.nan, "lift_high": math.nan}
    lifts = ((then - first) / (hidden - first)).numpy()
    drawn = lifts[1:][np.isfinite(lifts[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (math.nan, math.nan)
    return {"lift": float(lifts[0]), "lift_low": float(low), "lift_high": float(high)}
