"""What tuning brought and what it cost: the final layer before and after, against the best hidden layer before.

lift = (final after - final before) / (hidden before - final before): 0 where nothing came of it, 1 where the output
carries what the best hidden layer did, above 1 where it carries more than any layer did. All three are test scores;
the hidden layer is chosen by inner folds. The interval is a paired bootstrap over test series. Where nothing is hidden,
since the chosen layer is the final one or the interval of its gap reaches 0, there is no gap to take a share of, and
the lift is NaN: `final_after` then shows the price.

Of several tunings, one for each seed, `final_after` is the mean, and the bootstrap is hierarchical: each resample draws
as many seeds as there are, with replacement, and the test series, the same ones for every seed that is drawn, since all
were tested on them. The seeds that a resample draws are the same for all tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.metrics import get_metric
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
        """`_scores` of the final layer and of the chosen one; all that came after is compared with them."""
        return [_scores(self.pair, self.grid, place) for place in (self.final, self.chosen)]


@dataclass(frozen=True)
class After:
    """An encoder on the same task with what was done to it; the readout of its final layer is chosen by inner folds."""

    pair: Pair
    grid: Grid
    final: tuple[int, int, int]

    @classmethod
    def of(cls, pair: Pair) -> After:
        grid = Grid.of(pair.cells())
        end = grid.layers.index(pair.final)
        return cls(pair, grid, (end, *best_readout(grid.values("inner").mean(-1)[end])))

    @cached_property
    def samples(self) -> torch.Tensor:
        return _scores(self.pair, self.grid, self.final)


@dataclass(frozen=True)
class Compared:
    """One task before and after. `entries` are those of `lift.csv` from `family` on.

    `change` is the score of the final layer after, less that before, and behind it that of each resample.
    """

    entries: dict[str, Any]
    change: Float[torch.Tensor, " Q"]
    before: Before
    afters: tuple[After, ...]

    @classmethod
    def of(cls, before: Before, afters: Sequence[After], cut: str | None) -> Compared:
        """`afters` are of one tuning or of several seeds; `cut` is where the untouched one could be cut."""
        task = before.pair.task
        first, hidden = before.samples
        then = over_seeds([after.samples for after in afters])
        at = math.nan
        if cut is not None and cut in before.grid.layers:
            i = before.grid.layers.index(cut)
            at = _mean(before.grid, (i, *best_readout(before.grid.values("inner").mean(-1)[i])))
        entries = {
            "family": task.family, "task": task.name, "metric": task.metric, "final_before": float(first[0]),
            "hidden_before": float(hidden[0]), "final_after": float(then[0]), "cut": at,
        } | _lift([first, hidden, then], same=before.chosen == before.final)  # fmt: skip
        return cls(entries, then - first, before, tuple(afters))


def over_seeds(samples: Sequence[Float[torch.Tensor, " Q"]]) -> Float[torch.Tensor, " Q"]:
    """The mean over seeds of their scores, and for each resample the mean over the seeds that it draws."""
    if len(samples) == 1:
        return samples[0]
    every = torch.stack(list(samples))  # [seeds, Q]
    rng = np.random.default_rng([1, len(every)])
    drawn = torch.from_numpy(rng.integers(0, len(every), (len(every), every.shape[1] - 1)))
    return torch.cat([every[:, :1].mean(0), every[:, 1:].gather(0, drawn).mean(0)])


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
        each = metric.notes(y, prediction, series)
        number = torch.arange(each.shape[1])
        drawn = resampled_scores(metric.over_series, number, each, counts[:, series.unique()])
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
