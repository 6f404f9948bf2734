"""How sure we are: paired bootstrap over test samples, randomisation tests, Holm's correction, verdicts.

The layer is chosen before anything here looks at the test set, so that what is tested is not what was picked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Metric = Callable[..., "Tensor"]
"""`metric(y, prediction [..., N, K], weights [R, N] | None) -> [...]`, or `[R, ...]` with weights."""

_CHUNK = 2**22  # elements of swapped predictions, or of the weights of rows, held at once


@dataclass(frozen=True)
class Gap:
    """A difference of two scores on the same samples, its bootstrap interval and its one-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


def resample_counts(n: int, resamples: int, seed: int) -> Float[Tensor, "R N"]:
    """How often each of N samples is drawn in each of R bootstrap resamples."""
    rng = np.random.default_rng([seed, n])
    counts = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(resamples)])
    return torch.from_numpy(counts.astype(np.float64))


def score_interval(
    metric: Metric,
    y: Tensor,
    prediction: Float[Tensor, "Q N K"],
    counts: Float[Tensor, "R N"],
    coverage: float = 0.95,
    *,
    clusters: Int[Tensor, " N"] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean score over Q seeds.

    Where the rows come in `clusters`, those are drawn whole: `counts` are then `[R, clusters]`. NaN where there is but
    one sample (cluster) to draw from.
    """
    if counts.shape[1] < 2:
        return math.nan, math.nan
    return _percentiles(resampled_scores(metric, y, prediction, counts, clusters=clusters), coverage)


def resampled_scores(
    metric: Metric,
    y: Tensor,
    prediction: Float[Tensor, "Q N K"],
    counts: Float[Tensor, "R N"],
    *,
    clusters: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, " R"]:
    """The mean score over Q seeds of each resample of the rows, or of the clusters that they come in."""
    return _resampled(lambda w: metric(y, prediction, w).mean(-1), counts, clusters)


def _resampled(
    score: Callable[[Tensor], Tensor], counts: Float[Tensor, "R C"], clusters: Int[Tensor, " N"] | None
) -> Float[Tensor, " R"]:
    """The score under the weights of each resample, some resamples at a time where each has many rows."""
    if clusters is None:
        return score(counts)
    at_once = max(1, _CHUNK // len(clusters))
    return torch.cat([score(some[:, clusters]) for some in counts.split(at_once)])


def paired_gap(
    metric: Metric,
    y: Tensor,
    chosen: Float[Tensor, "Q N K"],
    final: Float[Tensor, "Q N K"],
    counts: Float[Tensor, "R N"],
    coverage: float = 0.95,
    *,
    clusters: Int[Tensor, " N"] | None = None,
    weighed: bool = False,
) -> Gap:
    """Score of `chosen` minus score of `final` on the same N test samples, averaged over Q seeds.

    The interval is a paired percentile bootstrap over samples: both scores see the same resample. The p-value is that
    of an approximate randomisation test (Noreen 1989; one-sided, against "no better"): under the null hypothesis the
    two predictions of a sample can be swapped, for all seeds together. Where the rows come in `clusters` (steps of the
    same series), a sample is a cluster: it is drawn and swapped whole, and `counts` are `[R, clusters]`. A single
    sample has no interval (NaN).

    With `weighed`, samples are swapped by weights of both predictions together, where a score of many weights costs
    less than that of many predictions. The values are the same.
    """

    def gap(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
        return (metric(y, a, weights) - metric(y, b, weights)).mean(-1)

    value = float(gap(chosen, final))
    resamples, n = counts.shape
    low = high = math.nan
    if n > 1:
        low, high = _percentiles(_resampled(lambda w: gap(chosen, final, w), counts, clusters), coverage)
    generator = torch.Generator().manual_seed(n)
    at_once = max(1, _CHUNK // (2 * chosen.shape[1] if weighed else chosen.numel()))
    tolerance = 1e-12 * max(1.0, abs(value))  # a swap that changes nothing must count as equal, not as smaller
    reached = 0
    for begin in range(0, resamples, at_once):
        size = min(at_once, resamples - begin)
        swap = torch.randint(0, 2, (size, 1, n, 1), generator=generator, dtype=torch.bool)
        if clusters is not None:
            swap = swap[:, :, clusters]
        if weighed:
            both = torch.cat([y, y]), torch.cat([chosen, final], 1)
            kept = torch.cat([~swap, swap], 2)[:, 0, :, 0].double()
            null = (metric(*both, kept) - metric(*both, 1 - kept)).mean(-1)
        else:
            null = gap(torch.where(swap, final, chosen), torch.where(swap, chosen, final))
        reached += int((null >= value - tolerance).sum())
    return Gap(value, low, high, (1 + reached) / (1 + resamples))


def _percentiles(values: Tensor, coverage: float) -> tuple[float, float]:
    tail = (1 - coverage) / 2
    known = values[~values.isnan()]  # a resample may lack a class, and then has no score
    if not len(known):
        return math.nan, math.nan
    low, high = torch.quantile(known, torch.tensor([tail, 1 - tail], dtype=known.dtype)).tolist()
    return low, high


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment (Holm 1979): reject where the adjusted value is at most the level."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def choose(inner: Float[np.ndarray, "L P Q"], final: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The chosen (layer, pooling, probe) and the best readout of the final layer, by scores of inner folds alone.

    `inner` is `[L, P, probes]`, averaged over seeds. Among equals the final layer wins, then the deeper one: a tie is
    no evidence that anything is hidden.
    """
    scores = np.where(np.isnan(inner), -np.inf, inner)
    best = scores.max()
    at_final = best_readout(scores[final])
    if scores[final].max() >= best:
        chosen = (final, *at_final)
    else:
        layer = int(np.flatnonzero(scores.max(axis=(1, 2)) >= best)[-1])
        chosen = (layer, *best_readout(scores[layer]))
    return chosen, (final, *at_final)


def best_readout(scores: Float[np.ndarray, "P Q"]) -> tuple[int, int]:
    """The first (pooling, probe) among the best."""
    pooling, probe = np.unravel_index(int(np.where(np.isnan(scores), -np.inf, scores).argmax()), scores.shape)
    return int(pooling), int(probe)


def verdict(gap: Gap, p_adjusted: float, *, same_layer: bool, level: float, margin: float) -> str:
    """`hidden`: an earlier layer is better, with an interval above 0 and an adjusted p at or under the level.

    `exposed`: the final layer was itself chosen, or no more than `margin` can be gained (the interval ends below it).
    `undecided`: neither is shown.
    """
    if same_layer:
        return "exposed"
    if gap.low > 0 and p_adjusted <= level:
        return "hidden"
    return "exposed" if gap.high < margin else "undecided"
