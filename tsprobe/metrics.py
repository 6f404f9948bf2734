"""Scores of predictions, all oriented so that higher is better, on the whole sample or on many bootstrap resamples.

Every metric is called as `metric(y, prediction, weights=None)` with predictions `[..., N, K]`: leading axes (layers,
strengths, encoders) are carried along and never averaged. `weights [R, N]` says how often each sample occurs in each
of R resamples; the result `[R, ...]` equals the metric of the resampled data, without making copies of it. A score
that a resample leaves undefined (no label with both classes, no target that varies) is NaN. Arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe import dense_metrics
from tsprobe import detection_metrics as detection
from tsprobe import forecast_metrics as forecast
from tsprobe import language_metrics as language
from tsprobe.errors import DataError, SpecError, UnknownNameError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num

_BLOCK = 32  # resamples whose cumulative weights are held at once
_BINS = 15  # of the calibration error
_ROUNDING = 1e-4  # by which probabilities in float32, with the tie-break of knn, may miss 0, 1 and a sum of 1


@dataclass(frozen=True)
class Metric:
    """A score with its name, the kinds of target that it is defined for, and what a blind guess gets.

    `by_series` ones look at the steps of one series after the other, and are averaged over the series; or, where there
    is `pooled`, `function(y, prediction, series)` notes of each series what `pooled` makes a score of all of.
    """

    name: str
    function: Callable[..., Tensor]
    kinds: tuple[str, ...]
    chance: str
    by_series: bool = False
    pooled: Callable[..., Tensor] | None = None

    def __call__(
        self,
        y: Num[Tensor, "N ..."],
        prediction: Float[Tensor, "*batch N K"],
        weights: Num[Tensor, "R N"] | None = None,
        series: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, "*R_batch"]:
        """The score: shape `[...]`, or `[R, ...]` with weights. `series` says whose steps the samples are.

        Raises DataError when the shapes do not fit, a prediction is NaN or a weight is negative.
        """
        if not self.by_series:
            return self.function(y, prediction, weights)
        if weights is not None:
            raise DataError(f"{self.name} is a score of whole series: weigh its notes of each series")
        if self.pooled is None:
            return self.each(y, prediction, series).nanmean(-1)
        return self.pooled(torch.empty(0), self.notes(y, prediction, series))

    def notes(
        self, y: Num[Tensor, "N ..."], prediction: Float[Tensor, "*batch N K"], series: Int[Tensor, " N"] | None
    ) -> Float[Tensor, "*batch n_series V"]:
        """What `over_series` needs to know of each series, in the order of their numbers. For `by_series` metrics.

        Raises DataError as `each` does.
        """
        if self.pooled is None:
            return self.each(y, prediction, series)[..., None]
        numbers = self._series(y, series)
        _, p = _check(y, prediction, None, classes=y.ndim == 1)
        found = self.function(y, p, numbers)
        return found.view(*prediction.shape[:-2], *found.shape[1:])

    @property
    def over_series(self) -> Callable[..., Tensor]:
        """The score out of `notes`, called as a metric of rows is: `over_series(numbers of series, notes, weights)`."""
        return mean_known if self.pooled is None else self.pooled

    def each(
        self, y: Num[Tensor, "N ..."], prediction: Float[Tensor, "*batch N K"], series: Int[Tensor, " N"] | None
    ) -> Float[Tensor, "*batch n_series"]:
        """The score of each series, in the order of their numbers; NaN where it has none. For `by_series` metrics.

        The steps of a series must be in order of time. Raises DataError as calling does, and without `series`.
        """
        numbers = self._series(y, series)
        _, p = _check(y, prediction, None, classes=y.ndim == 1)
        steps = [(numbers == number).nonzero()[:, 0] for number in numbers.unique()]
        found = torch.stack([self.function(y[rows], p[:, rows]) for rows in steps], 1)
        return found.reshape(*prediction.shape[:-2], -1)

    def _series(self, y: Tensor, series: Int[Tensor, " N"] | None) -> Int[Tensor, " N"]:
        if series is None or series.shape != y.shape[:1]:
            raise DataError(f"{self.name} is a score of whole series: it needs to be told the series of each step")
        return series


def mean_known(y: Tensor, prediction: Float[Tensor, "*batch N 1"], weights: Tensor | None = None) -> Tensor:
    """Mean of values that are predictions themselves, of scores of series: those that are NaN are left out."""
    values = prediction[..., 0].double()
    w = torch.ones(1, len(y), dtype=torch.float64) if weights is None else weights.double()
    known = ~values.isnan()
    flat = torch.where(known, values, 0).reshape(-1, len(y))
    score = (w @ flat.T) / (w @ known.double().reshape(-1, len(y)).T)
    return _shape(score, prediction, weights)


def accuracy(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
    """Share of samples whose highest class score is at their class. `y [N]` class indices, `prediction [..., N, C]`."""
    w, p = _check(y, prediction, weights, classes=True)
    hits = (p.argmax(-1) == y).double()  # [P, N]
    return _shape(w @ hits.T / w.sum(1, keepdim=True), prediction, weights)


def balanced_accuracy(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the classes that occur of the share found in each. `y [N]` indices, `prediction [..., N, C]`."""
    w, p = _check(y, prediction, weights, classes=True)
    hits = (p.argmax(-1) == y).double()  # [P, N]
    found = w.new_zeros(len(w), len(hits))
    present = w.new_zeros(len(w), 1)
    for label in y.unique():
        rows = y == label
        size = w[:, rows].sum(1, keepdim=True)
        found += torch.where(size > 0, w[:, rows] @ hits[:, rows].T / size, 0)
        present += size > 0
    return _shape(found / present, prediction, weights)


def neg_ece(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
    """Minus the expected calibration error: confidence less accuracy, in size, bin by bin (Guo et al. 2017, §2).

    The confidence is the highest probability of a sample, the bins are 15 of equal width, (0, 1/15], (1/15, 2/15], ...
    `y [N]` class indices, `prediction [..., N, C]` probabilities. To predict the frequencies of the classes for every
    sample is well calibrated, and says nothing: read this score beside an accuracy.

    Raises SpecError for scores that are no probabilities, such as those of ridge: they are not made into some.
    """
    w, p = _check(y, prediction, weights, classes=True)
    off = torch.maximum((p.sum(-1) - 1).abs(), -p.amin(-1)).max()
    if off > _ROUNDING:
        raise SpecError(
            f"neg_ece is for probabilities of classes, and these scores (from {float(p.min()):.3g} to "
            f"{float(p.max()):.3g}) are none: use the probe logistic, knn or correspondence"
        )
    confidence, guess = p.max(-1)  # [P, N]
    excess = confidence - (guess == y).double()
    edges = torch.arange(1, _BINS, dtype=torch.float64, device=p.device) / _BINS
    number = torch.bucketize(confidence, edges)
    total = w.new_zeros(len(w), len(p))
    for k in range(_BINS):
        total += (w @ torch.where(number == k, excess, 0).T).abs()
    return _shape(-total / w.sum(1, keepdim=True), prediction, weights)


def auroc(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over labels of the area under the ROC curve, with ties counted one half.

    `y [N, K]` in {0, 1}, NaN where unknown; `prediction [..., N, K]`. Labels without both classes are left out.
    The area is the Mann-Whitney statistic over pairs: one sort of the negatives, then cumulative weights.
    """
    w, p = _check(y, prediction, weights)
    total = w.new_zeros(len(w), len(p))
    count = w.new_zeros(len(w), 1)
    for k in range(y.shape[1]):
        positive, negative = y[:, k] == 1, y[:, k] == 0
        w_pos, w_neg = w[:, positive], w[:, negative]
        pairs = (w_pos.sum(1) * w_neg.sum(1))[:, None]
        scores, order = p[:, negative, k].sort(-1)
        above = p[:, positive, k].contiguous()
        below = torch.searchsorted(scores, above)  # [P, positives]: how many negatives score less
        upto = torch.searchsorted(scores, above, right=True)
        if weights is None:
            won = (below + upto).sum(-1)[None].double() / 2
        else:
            won = torch.cat(
                [
                    _pairs_won(a.T, b.T, order, below, upto)
                    for a, b in zip(w_pos.split(_BLOCK), w_neg.split(_BLOCK), strict=True)
                ]
            )
        total += torch.where(pairs > 0, won / pairs, 0)
        count += pairs > 0
    return _shape(total / count, prediction, weights)


def _pairs_won(w_pos: Tensor, w_neg: Tensor, order: Tensor, below: Tensor, upto: Tensor) -> Float[Tensor, "R P"]:
    """Weight of the pairs ranked rightly, ties half: `w_pos [positives, R]`, `w_neg [negatives, R]`."""
    w_pos, w_neg = w_pos.contiguous(), w_neg.contiguous()  # whole rows are gathered
    won = []
    for o, b, u in zip(order, below, upto, strict=True):
        lower = torch.nn.functional.pad(w_neg[o].cumsum(0), (0, 0, 1, 0))
        won.append((w_pos * (lower[b] + lower[u])).sum(0) / 2)
    return torch.stack(won, 1)


def r2(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over targets of the coefficient of determination. `y [N, K]`, NaN where masked; `prediction [..., N, K]`.

    A target with fewer than two known values, or with equal ones, is left out. Targets are brought to unit range
    first, so that no scale is too small or too large.
    """
    w, p = _check(y, prediction, weights)
    known = ~y.isnan()
    y = y.double()
    low = torch.where(known, y, torch.inf).amin(0)
    high = torch.where(known, y, -torch.inf).amax(0)
    middle = low / 2 + high / 2
    half = torch.where(high > low, high / 2 - low / 2, torch.nan)  # NaN makes a constant target unusable below
    z = torch.where(known, (y - middle) / half, 0)
    residual = _weighted_sum(w, torch.where(known, ((p - middle) / half - z).square(), 0))  # [R, P, K]
    spread = _spread(w, z, known)[:, None]
    usable = spread > 0
    score = torch.where(usable, 1 - residual / spread, 0)
    return _shape(score.sum(-1) / usable.sum(-1), prediction, weights)


def _spread(w: Tensor, z: Tensor, known: Tensor) -> Tensor:
    """Weighted sum of squares about the weighted mean `[R, K]`, exactly 0 where all values drawn are equal."""
    size, first, second = w @ known.double(), w @ z, w @ z.square()
    spread = second - torch.where(size > 0, first.square() / size, 0)
    # The difference of two near numbers is noise; those few are summed anew about their mean.
    for r, k in (spread <= 1e-9 * second).nonzero().tolist():
        drawn = (w[r] > 0) & known[:, k]
        values, counts = z[drawn, k], w[r, drawn]
        equal = len(values) == 0 or bool(values.min() == values.max())
        spread[r, k] = 0 if equal else (counts * (values - (counts @ values) / counts.sum()).square()).sum()
    return spread


def neg_rmse(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
    """Minus the root mean squared error, averaged over targets. `y [N, K]`, NaN where masked."""
    w, p = _check(y, prediction, weights)
    known = ~y.isnan()
    size = (w @ known.double())[:, None]  # [R, 1, K]
    squares = _weighted_sum(w, torch.where(known, (p - y).square(), 0))
    rmse = torch.where(size > 0, (squares / size).sqrt(), 0)
    return _shape(-rmse.sum(-1) / (size > 0).sum(-1), prediction, weights)


def _weighted_sum(w: Tensor, values: Tensor) -> Tensor:
    """`w [R, N]`, `values [P, N, K]` to `[R, P, K]` by one matrix product."""
    p, n, k = values.shape
    return (w @ values.transpose(0, 1).reshape(n, p * k)).view(len(w), p, k)


def _check(
    y: Tensor, prediction: Tensor, weights: Tensor | None, classes: bool = False
) -> tuple[Float[Tensor, "R N"], Float[Tensor, "P N K"]]:
    n = len(y)
    wanted = f"[..., {n}, classes]" if classes else f"[..., {n}, {y.shape[-1]}]"
    if y.ndim != (1 if classes else 2) or (classes and y.is_floating_point()):
        due = "class indices [N]" if classes else "[N, K]"
        raise DataError(f"targets of shape {list(y.shape)} and {y.dtype} where {due} are due")
    if prediction.ndim < 2 or prediction.shape[-2] != n or not (classes or prediction.shape[-1] == y.shape[-1]):
        raise DataError(f"predictions of shape {list(prediction.shape)} where {wanted} is due")
    if n == 0:
        raise DataError("no samples to score")
    if prediction.isnan().any():
        raise DataError("predictions hold NaN; only targets may be masked")
    return _counts(weights, n, y.device), prediction.double().reshape(-1, n, prediction.shape[-1])


def _counts(weights: Tensor | None, n: int, device: torch.device) -> Float[Tensor, "R N"]:
    if weights is None:
        return torch.ones(1, n, dtype=torch.float64, device=device)
    if weights.ndim != 2 or weights.shape[1] != n or bool((weights < 0).any()):
        raise DataError(f"weights of shape {list(weights.shape)} where non-negative counts [R, {n}] are due")
    return weights.double()


def _shape(score: Float[Tensor, "R P"], prediction: Tensor, weights: Tensor | None) -> Tensor:
    lead = prediction.shape[:-2]
    return score.view(lead) if weights is None else score.view(len(score), *lead)


def _checked(function: Callable[..., Tensor], *, classes: bool) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A metric out of a function of y, checked predictions `[P, N, K]` and weights `[R, N]` that gives `[R, P]`."""

    def metric(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
        w, p = _check(y, prediction, weights, classes)
        return _shape(function(y, p, w), prediction, weights)

    return metric


def _of_quantiles(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The same of a function that takes forecasts as `[P, N, H, Q]`; they come as `[..., N, H Q]`, step after step."""

    def metric(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
        if y.ndim != 2 or len(y) == 0:
            raise DataError(f"targets of shape {list(y.shape)} where [N, H] are due")
        (n, h), q = y.shape, len(forecast.LEVELS)
        if prediction.ndim < 2 or prediction.shape[-2:] != (n, h * q):
            due = f"[..., {n}, {h} steps x {q} levels]"
            raise DataError(f"forecasts of shape {list(prediction.shape)} where {due} is due")
        if prediction.isnan().any():
            raise DataError("forecasts hold NaN; only targets may be masked")
        w = _counts(weights, n, y.device)
        return _shape(function(y, prediction.reshape(-1, n, h, q), w), prediction, weights)

    return metric


def _of_captions(y: Tensor, prediction: Tensor, weights: Tensor | None = None) -> Tensor:
    """CIDEr of captions `[..., N, W]`, rows of numbers of words, of references `y [N, K]`."""
    if y.ndim != 2 or len(y) == 0 or not bool((y[:, :1] > 0).all()):
        raise DataError(f"targets of shape {list(y.shape)} where references [N, K] by numbers of words are due")
    if prediction.ndim < 2 or prediction.shape[-2] != len(y) or prediction.isnan().any():
        raise DataError(f"captions of shape {list(prediction.shape)} where numbers of words [..., {len(y)}, W] are due")
    p = prediction.reshape(-1, *prediction.shape[-2:])
    return _shape(language.cider(y, p, _counts(weights, len(y), y.device)), prediction, weights)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, ("classification", "choice"), "share of the most frequent class"),
        Metric("balanced_accuracy", balanced_accuracy, ("classification",), "1 / number of classes"),
        Metric("neg_ece", neg_ece, ("classification",), "0 where classes are as frequent in training as in the test"),
        Metric("auroc", auroc, ("multilabel",), "0.5"),
        Metric("r2", r2, ("regression", "multilabel"), "0, for the mean of the targets"),
        Metric("neg_rmse", neg_rmse, ("regression", "multilabel"), "minus the standard deviation of the targets"),
        Metric(
            "macro_f1",
            _checked(dense_metrics.macro_f1, classes=True),
            ("classification",),
            "below 1 / number of classes",
        ),
        Metric(
            "neg_circular_error",
            _checked(dense_metrics.neg_circular_error, classes=False),
            ("regression",),
            "minus pi / 2, for a guess",
        ),
        Metric("vus_pr", dense_metrics.vus_pr, ("multilabel",), "about the share of anomalous steps", by_series=True),
        Metric("jaccard", dense_metrics.jaccard, ("classification",), "below 1 / number of classes", by_series=True),
        Metric("covering", dense_metrics.covering, ("classification",), "that of one run for all", by_series=True),
        Metric("change_f1", dense_metrics.change_f1, ("classification",), "0 where no change is found", by_series=True),
        Metric("ap", detection.noted, ("detection",), "about 0", by_series=True, pooled=detection.average_precision),
        Metric(
            "exact_match", _checked(language.exact_match, classes=True), ("answer",), "that of the most frequent answer"
        ),
        Metric(
            "interval_iou", _checked(language.interval_iou, classes=False), ("grounding",), "that of one span for all"
        ),
        Metric("p_at_50", _checked(language.box_found, classes=False), ("box",), "that of one box for all"),
        Metric("cider", _of_captions, ("caption",), "that of one caption for all"),
        Metric("neg_mase", _of_quantiles(forecast.neg_mase), ("forecast",), "that of the seasonal naive forecast"),
        Metric("neg_sql", _of_quantiles(forecast.neg_sql), ("forecast",), "that of the seasonal naive forecast"),
        Metric("neg_wql", _of_quantiles(forecast.neg_wql), ("forecast",), "that of the seasonal naive forecast"),
    )
}


def get_metric(name: str) -> Metric:
    """The metric of that name; raises UnknownNameError, which suggests near ones."""
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return METRICS[name]
