"""What all probes share: targets, the readout they give, checks of the input, and the choice of the strength.

A probe sees G groups (layers x poolings) of features of equal width, `x [G, N, D]`, and treats each as a problem of
its own. The strength is chosen for each group on the training rows alone: every row is predicted by the fit on the
folds that it is not in, the pooled predictions are scored, the best strength is fitted again on all training rows.
Features are standardised on the rows of each fit. Arithmetic is float64, on the device of `x`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from tsprobe.errors import DataError, SpecError
from tsprobe.metrics import Metric
from tsprobe.probes.cores import on_cores

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from tsprobe.data.text import Asked

CHUNK_BYTES = 2**29  # groups are worked on in chunks whose largest arrays stay below this
_COMMON: ContextVar[bool] = ContextVar("common_scale", default=False)
_NOISE = 1e-6  # a column whose deviation is below this share of its size is float32 rounding of a constant


@dataclass(frozen=True)
class Steps:
    """Which steps the rows of a dense task are: pairs of the training rows `[N]` and of the test rows `[M]`.

    `series` are the numbers of the series, `time` the steps within them. `causal` says that nothing later may be read.
    """

    series: tuple[Tensor, Tensor]
    time: tuple[Tensor, Tensor]
    causal: bool = False


@dataclass(frozen=True)
class Target:
    """What a probe learns.

    `y` is `[N]` int64 class indices (classification), `[N, K]` 0/1 with NaN where unknown (multilabel), `[N, K]`
    values with NaN where masked (regression, detection) or `[N, H]` next steps likewise (forecast, predicted in H Q
    columns). `n_classes` is for classification: classes beyond those in `y` get a column of low scores; None counts
    the classes of `y`. `units` are for a forecast: of each training row `[N]` and of each test row `[M]` the size of
    what an encoder, which brings its input to one size, took for 1.
    """

    kind: Literal[
        "classification", "multilabel", "regression", "detection", "forecast", "choice", "answer", "grounding", "box",
        "caption",
    ]  # fmt: skip
    y: Tensor
    n_classes: int | None = None
    units: tuple[Tensor, Tensor] | None = None
    series: Tensor | None = None  # [N], of a dense task: whose steps the rows are
    asked: Asked | None = None  # of a language task: its questions
    tokens: int = 1  # P, of whole series: features are those of P tokens side by side
    steps: Steps | None = None  # of a dense task

    @property
    def width(self) -> int:
        """K, the columns of a prediction: classes, labels or target values."""
        if self.kind != "classification":
            return self.y.shape[1]
        return int(self.y.max()) + 1 if self.n_classes is None else self.n_classes


@dataclass(frozen=True)
class Readout:
    """What a probe found: the score of each strength, the one chosen, and predictions for the test samples.

    `inner [G, A]` scores the pooled out-of-fold predictions on the training set. `chosen [G]` indexes `strengths`;
    ties go to the most regularised (ridge: largest, logistic: smallest C, knn: largest k). `prediction [G, M, K]`
    comes from the refit on all training rows: class scores, label scores or target values. `gradient_norm [G]`, for
    iterative probes, is the largest final gradient norm over folds and strengths, relative to that of the fit with
    no features.
    """

    strengths: tuple[float, ...]
    inner: Float[Tensor, "G A"]
    chosen: Int[Tensor, " G"]
    prediction: Float[Tensor, "G M K"]
    gradient_norm: Float[Tensor, " G"] | None = None


class Probe(Protocol):
    """The signature of every `fit_predict`."""

    def __call__(
        self,
        x: Float[Tensor, "G N D"],
        target: Target,
        x_test: Float[Tensor, "G M D"],
        folds: Int[Tensor, " N"],
        metric: Metric,
        *,
        strengths: Sequence[float] | None = None,
    ) -> Readout: ...


@dataclass(frozen=True)
class Question:
    """Checked targets and folds. `y [N, K]` is float64, one-hot for classes; `known` is False where it is masked."""

    target: Target
    y: Float[Tensor, "N K"]
    known: Bool[Tensor, "N K"]
    folds: Int[Tensor, " N"]
    n_folds: int

    @property
    def fallback(self) -> Float[Tensor, " K"]:
        """Mean of the known values: the prediction where a fit sees no value of a target at all."""
        return self.mean_known(torch.ones_like(self.folds, dtype=torch.bool))

    def mean_known(self, rows: Bool[Tensor, " N"], otherwise: Tensor | None = None) -> Float[Tensor, " K"]:
        """Mean of the known values among `rows`, `otherwise` where there is none."""
        count = self.known[rows].sum(0)
        mean = self.y[rows].sum(0) / count.clamp(min=1)
        return mean if otherwise is None else torch.where(count > 0, mean, otherwise)

    def training_rows(self) -> Iterator[Bool[Tensor, " N"]]:
        """The rows that each fold's fit is trained on."""
        for fold in range(self.n_folds):
            yield self.folds != fold


@dataclass(frozen=True)
class Problem(Question):
    """Checked input of a probe: a question, and the features to answer it with."""

    x: Float[Tensor, "G N D"]
    x_test: Float[Tensor, "G M D"]


def check(x: Tensor, target: Target, x_test: Tensor, folds: Tensor, metric: Metric) -> Problem:
    """Refuse what no probe can work on (DataError; SpecError for an unfitting metric), and code the targets."""
    check_metric(target, metric)
    check_features(x, x_test)
    question = check_question(target, folds, x.shape[1], x.device)
    return Problem(**vars(question), x=x, x_test=x_test.to(x.device))


def check_features(x: Tensor, x_test: Tensor) -> None:
    """Raise DataError for features that do not fit together, are empty or not finite."""
    if x.ndim != 3 or x_test.ndim != 3 or (x.shape[0], x.shape[2]) != (x_test.shape[0], x_test.shape[2]):
        raise DataError(f"features {list(x.shape)} and {list(x_test.shape)} where [G, N, D] and [G, M, D] are due")
    for name, features in (("training", x), ("test", x_test)):
        if features.numel() == 0:
            raise DataError(f"{name} features are empty: shape {list(features.shape)}")
        if not torch.stack(features.aminmax()).isfinite().all():  # one read; NaN is passed on
            raise DataError(f"{name} features hold NaN or infinite values")


def check_metric(target: Target, metric: Metric) -> None:
    """Raise SpecError for a metric that is not defined for such targets."""
    if target.kind not in metric.kinds:
        raise SpecError(f"metric {metric.name!r} is for {' or '.join(metric.kinds)} targets, not for {target.kind}")


def check_question(target: Target, folds: Tensor, n: int, device: torch.device | str = "cpu") -> Question:
    """Refuse targets and folds of n rows that no probe can work on (DataError), and code the targets."""
    folds, n_folds = check_folds(folds, n, device)
    y, known = _code(target, n)
    return Question(target, y.to(device), known.to(device), folds, n_folds)


def check_folds(folds: Tensor, n: int, device: torch.device | str = "cpu") -> tuple[Int[Tensor, " n"], int]:
    """Fold ids of n rows as 0, 1, ..., and their number; raises DataError for fewer than two folds."""
    if folds.shape != (n,) or folds.is_floating_point():
        raise DataError(f"fold ids of shape {list(folds.shape)} and {folds.dtype} where integers [{n}] are due")
    names, folds = folds.to(device).unique(return_inverse=True)
    if len(names) < 2:
        raise DataError("all training rows are in one fold; at least two folds are due")
    return folds, len(names)


def _code(target: Target, n: int) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
    y = target.y
    if target.kind == "classification":
        if y.shape != (n,) or y.is_floating_point():
            raise DataError(f"classes of shape {list(y.shape)} and {y.dtype} where integers [{n}] are due")
        if len(y.unique()) < 2:
            raise DataError("fewer than two classes among the training rows")
        if y.min() < 0 or y.max() >= target.width:
            raise DataError(f"class indices {int(y.min())} to {int(y.max())} outside 0 to {target.width - 1}")
        coded = torch.nn.functional.one_hot(y.long(), target.width).double()
        return coded, torch.ones_like(coded, dtype=torch.bool)
    if y.ndim != 2 or len(y) != n or y.shape[1] == 0:
        raise DataError(f"{target.kind} targets of shape {list(y.shape)} where [{n}, K] is due")
    if y.isinf().any():
        raise DataError(f"{target.kind} targets hold infinite values; NaN marks what is unknown")
    known = ~y.isnan()
    empty = (~known.any(0)).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"target columns {empty} have no known value among the training rows")
    coded = torch.where(known, y, 0).double()
    if target.kind == "multilabel":
        if not ((coded == 0) | (coded == 1)).all():
            raise DataError("multilabel targets hold values other than 0, 1 and NaN")
        if not ((known & (coded == 1)).any(0) & (known & (coded == 0)).any(0)).any():
            raise DataError("fewer than two classes among the training rows: no label occurs both as 0 and as 1")
    return coded, known


def check_strengths(strengths: Sequence[float] | None, default: Sequence[float]) -> tuple[float, ...]:
    """The grid as floats; raises SpecError when it is empty or holds anything but positive finite numbers."""
    grid = tuple(float(s) for s in (default if strengths is None else strengths))
    if not grid or not all(0 < s < float("inf") for s in grid):
        raise SpecError(f"strengths {grid} where positive finite numbers are due")
    return grid


@dataclass(frozen=True)
class Standardiser:
    """Column means and inverse deviations of training rows `[G, n, D]`; constant columns are mapped to 0."""

    mean: Float[Tensor, "G 1 D"]
    inverse: Float[Tensor, "G 1 D"]

    @classmethod
    def fit(cls, x: Float[Tensor, "G n D"]) -> Standardiser:
        mean = x.mean(1, keepdim=True)
        std = (x - mean).square().mean(1, keepdim=True).sqrt()
        return cls.of(mean, std, x.abs().amax(1, keepdim=True))

    @classmethod
    def of(
        cls, mean: Float[Tensor, "G 1 D"], std: Float[Tensor, "G 1 D"], size: Float[Tensor, "G 1 D"]
    ) -> Standardiser:
        """From the means, deviations and largest absolute values of the rows."""
        constant = std <= _NOISE * (mean.abs() + size)
        scale = std.square().mean(2, keepdim=True).sqrt() if _COMMON.get() else std
        return cls(mean, torch.where(constant, 0, 1 / scale))

    def __call__(self, x: Float[Tensor, "G m D"]) -> Float[Tensor, "G m D"]:
        return (x - self.mean) * self.inverse


@contextmanager
def common_scale() -> Iterator[None]:
    """Within, standardised features keep their sizes among each other: all are divided by one deviation of a fit.

    Strengths mean the same, since the mean variance of a feature is 1 either way.
    """
    token = _COMMON.set(True)
    try:
        yield
    finally:
        _COMMON.reset(token)


class Gram(NamedTuple):
    """Eigenvalues `[G, r]` and eigenvectors of the smaller of X'X (`primal`, `[G, D, r]`) and XX' (`[G, n, r]`)."""

    values: Tensor
    vectors: Tensor
    primal: bool


def gram_eigen(x: Float[Tensor, "G n D"]) -> Gram:
    """Eigendecomposition of the smaller Gram matrix; r = min(n, D), eigenvalues not below 0."""
    primal = x.shape[2] <= x.shape[1]
    values, vectors = torch.linalg.eigh(x.mT @ x if primal else x @ x.mT)
    return Gram(values.clamp(min=0), vectors, primal)


class Solved(NamedTuple):
    """Predictions out of fold on the training rows, at all strengths, and those of the refit on the test rows.

    The latter are given at all strengths, or as a function of the indices of the strength chosen for each group, where
    a refit at one strength costs less.
    """

    held_out: Float[Tensor, "G A N K"]
    test: Float[Tensor, "G A M K"] | Callable[[Int[Tensor, " G"]], Float[Tensor, "G M K"]]
    gradient_norm: Float[Tensor, " G"] | None = None


def readout(
    problem: Problem,
    metric: Metric,
    strengths: tuple[float, ...],
    solve: Callable[[Float[Tensor, "g N D"], Float[Tensor, "g M D"]], Solved],
    *,
    group_bytes: int,
    strongest_last: bool,
    double: bool = True,
    chunk_bytes: int | None = None,
) -> Readout:
    """Solve chunk by chunk of groups, score, and choose the strength of each group.

    `group_bytes` is the memory that `solve` takes for one group; `strongest_last` says that larger strengths
    regularise more, `double` that `solve` wants its features in float64, `chunk_bytes` that it is quicker in chunks
    smaller than memory asks for: these run side by side. Raises DataError when the metric is undefined on the training
    rows.
    """
    step = max(1, min(CHUNK_BYTES, chunk_bytes or CHUNK_BYTES) // group_bytes)

    def of(chunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        x, x_test = (part.double() for part in chunk) if double else chunk
        solved = solve(x, x_test)
        series = problem.target.series
        scores = metric(y, solved.held_out, **({} if series is None else {"series": series.to(y.device)}))  # [g, A]
        best = choose(scores, strengths, metric.name, strongest_last=strongest_last)
        test = solved.test
        test = test[torch.arange(len(best), device=best.device), best] if isinstance(test, Tensor) else test(best)
        return scores, best, test, solved.gradient_norm

    y = problem.target.y.to(problem.x.device)
    chunks = list(zip(problem.x.split(step), problem.x_test.split(step), strict=True))
    at_once = CHUNK_BYTES // (step * group_bytes) if chunk_bytes else 1
    inner, chosen, prediction, norms = zip(*on_cores(of, chunks, at_once), strict=True)
    gradient_norm = torch.cat([g for g in norms if g is not None]) if norms[0] is not None else None
    return Readout(strengths, torch.cat(inner), torch.cat(chosen), torch.cat(prediction), gradient_norm)


def choose(
    scores: Float[Tensor, "G A"], strengths: tuple[float, ...], metric: str, *, strongest_last: bool
) -> Int[Tensor, " G"]:
    """Index of the best strength of each group; ties go to the most regularised.

    `strongest_last` says that larger strengths regularise more. Raises DataError where the metric is undefined.
    """
    if scores.isnan().any():
        raise DataError(f"{metric} is undefined on the training rows: no target varies among them")
    order = sorted(range(len(strengths)), key=lambda a: -strengths[a] if strongest_last else strengths[a])
    by_regularisation = torch.tensor(order, device=scores.device)
    return by_regularisation[scores[:, by_regularisation].argmax(1)]  # argmax takes the first among equals


Fit = Callable[[Tensor, Tensor, Tensor], Tensor]


def solve_by_fold(problem: Problem, fit: Fit, x: Float[Tensor, "g N D"], x_test: Float[Tensor, "g M D"]) -> Solved:
    """Run `fit(x, x_new, rows) -> [g, A, m, K]` for every fold, and on all rows for the test samples."""
    held_out: Tensor | None = None
    for rows in problem.training_rows():
        part = fit(x, x[:, ~rows], rows)
        if held_out is None:
            held_out = part.new_empty(*part.shape[:2], x.shape[1], part.shape[3])
        held_out[:, :, ~rows] = part
    assert held_out is not None  # check() wants two folds
    return Solved(held_out, fit(x, x_test, torch.ones_like(problem.folds, dtype=torch.bool)))


def minibatches(n: int, size: int, generator: torch.Generator) -> Iterator[Int[Tensor, " size"]]:
    """Numbers below n in random order, again and again; what is left of them at the end is left out."""
    while True:
        yield from torch.randperm(n, generator=generator)[: n // size * size].split(size)
