"""A task: series, the question asked of them, the metric, and the folds of its training rows.

`Task` is what every source of data makes; `Classification`, `MultiLabel` and `Regression` make one out of the user's
own arrays. Training and test rows are fixed here, so that a layer can be chosen on the one and judged on the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from tsprobe.data.panel import Panel, as_panel
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks import folds, options
from tsprobe.tasks.rows import Rows

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float64, Int64

    from tsprobe.data.text import Asked

Kind = Literal[
    "classification", "multilabel", "regression", "detection", "forecast", "choice", "answer", "grounding", "box",
    "caption",
]  # fmt: skip
_INDEXED = ("classification", "choice", "answer")  # kinds whose targets are numbers of a class, choice or text


@dataclass(frozen=True)
class TaskInfo:
    """What a list of tasks says about one, without loading it.

    `length` is the shortest and the longest series; `n_classes` counts the targets where the task has no classes;
    `here` says that its data is on this machine.
    """

    name: str
    kind: Kind
    metric: str
    n_train: int
    n_test: int
    channels: int
    length: tuple[int, int]
    n_classes: int
    source: str
    licence: str
    here: bool
    family: str = "classification"


@dataclass(frozen=True, eq=False)
class Task:
    """Data, splits, target and metric.

    Targets are int64 class indices `[N]` for a classification, float64 `[N, K]` of 0 and 1 for a multilabel task, and
    float64 `[N, K]` for a regression or a forecast of K steps; NaN masks a target of a row in all but the first.
    `labels` names the classes or the K targets. Training rows of one `groups` value stay in one fold; `ordered` says
    that they are in time order.

    A task of the dense family asks at M steps of every series, `steps_train [N, M]` and `steps_test`. Its targets are
    `[N, M]` classes, -1 where a step has none, or `[N, M, K]`; `causal` keeps readings from covering later steps.

    Raises `DataError` when the parts do not belong together.
    """

    name: str
    family: str
    kind: Kind
    metric: str
    train: Panel
    test: Panel
    y_train: np.ndarray
    y_test: np.ndarray
    labels: tuple[str, ...]
    groups: np.ndarray | None = None
    ordered: bool = False
    source: str = ""
    licence: str = "not declared"
    steps_train: np.ndarray | None = None
    steps_test: np.ndarray | None = None
    causal: bool = False
    shots: tuple[int, int] | None = None  # training series of each class, and the seed of their draw out of more

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise DataError("a task needs a name that is not empty")
        if self.kind not in get_args(Kind):
            raise DataError(f"task {self.name!r}: kind {self.kind!r} is none of {', '.join(get_args(Kind))}")
        if self.train.channels != self.test.channels:
            raise DataError(
                f"task {self.name!r}: training series have {self.train.channels} channels, test series "
                f"{self.test.channels}; both need the same"
            )
        if (self.steps_train is None) != (self.steps_test is None):
            raise DataError(f"task {self.name!r}: steps for one split only; a dense task asks at steps of both")
        for split, panel, y in (("training", self.train, self.y_train), ("test", self.test, self.y_test)):
            if len(y) != panel.n:
                raise DataError(f"task {self.name!r}: {panel.n} {split} series but {len(y)} targets; give one each")
            steps = self.steps_train if split == "training" else self.steps_test
            shape = y.shape[:1] if steps is None else steps.shape
            if self.kind not in (*_INDEXED, "caption") and y.shape != (*shape, len(self.labels)):
                raise DataError(f"task {self.name!r}: {split} targets {y.shape}, not {[*shape, len(self.labels)]}")
            if self.kind in _INDEXED and (y.shape != shape or y.dtype != np.int64):
                what = "[N]" if steps is None else f"of the steps, {list(shape)}"
                raise DataError(f"task {self.name!r}: {split} targets must be int64 class indices {what}")
        if self.groups is not None:
            self._check_groups(self.groups)

    def _check_groups(self, groups: np.ndarray) -> None:
        if groups.shape != (self.train.n,):
            raise DataError(f"task {self.name!r}: groups {groups.shape} for {self.train.n} training series")
        changes = int((groups[1:] != groups[:-1]).sum())
        if self.ordered and changes != len(np.unique(groups)) - 1:
            raise DataError(f"task {self.name!r}: ordered rows of one group must be contiguous; sort or drop groups")

    @property
    def dense(self) -> bool:
        """Whether it asks at steps."""
        return self.steps_train is not None

    def rows(self, split: str) -> Rows:
        """What is asked of the `train` or the `test` series: one row a series, or one for each step with a target."""
        y, steps = getattr(self, f"y_{split}"), getattr(self, f"steps_{split}")
        return Rows.whole(y) if steps is None else Rows.at_steps(y)

    @property
    def guess(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Predictions of the training and of the test rows for chance level; None: what is best without features."""
        return None

    @property
    def units(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Of the training and of the test rows, for `Target.units` of a forecast."""
        return None

    @property
    def asked(self) -> Asked | None:
        """The questions in words about the training and the test series, of a language task."""
        return None

    @property
    def n_classes(self) -> int:
        """Number of classes; for the other kinds, the number of targets K."""
        return len(self.labels)

    def few_shot(self, shots: int, seed: int = 0) -> Self:
        """The task with so many training series of each class; see `tsprobe.tasks.options`."""
        return options.few_shot(self, shots, seed)

    def scored_by(self, metric: str) -> Self:
        """The task with another metric, one that is defined for its kind."""
        return options.scored_by(self, metric)

    @property
    def description(self) -> str:
        """One line on sizes and target."""
        lengths = np.concatenate([self.train.lengths, self.test.lengths])
        low, high = lengths.min(), lengths.max()
        what = "classes" if self.kind == "classification" else "targets"
        dense = "" if self.steps_test is None else f", {self.steps_test.shape[1]} steps of each asked about"
        drawn = "" if self.shots is None else f" ({self.shots[0]} a class, drawn with seed {self.shots[1]})"
        return (
            f"{self.name}: {self.kind}, {self.train.n} train{drawn} and {self.test.n} test series of "
            f"{self.train.channels} x {low if low == high else f'{low}-{high}'}{dense}, "
            f"{self.n_classes} {what}, metric {self.metric}"
        )

    def fingerprint(self) -> str:
        """SHA-256 over series, targets, target names, metric, groups and order (hexadecimal; computed once)."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        parts = (self.kind, self.metric, self.labels, self.ordered, self.train.fingerprint(), self.test.fingerprint())
        digest = hashlib.sha256(repr(parts).encode())
        for y in (self.y_train, self.y_test):
            digest.update(f"{y.shape}{y.dtype}".encode())
            digest.update(np.ascontiguousarray(y).tobytes())
        if self.steps_train is not None and self.steps_test is not None:
            digest.update(f"causal {self.causal}".encode())
            digest.update(self.steps_train.tobytes() + self.steps_test.tobytes())
        if self.shots is not None:
            digest.update(f"shots {self.shots}".encode())
        for guess in self.guess or ():
            digest.update(np.ascontiguousarray(guess).tobytes())
        if self.groups is not None:
            digest.update(repr(np.unique(self.groups, return_inverse=True)[1].tolist()).encode())
        return digest.hexdigest()

    def folds(self, n_folds: int, seed: int) -> Int64[np.ndarray, " N_train"]:
        """Fold number of each training series, the same for the same arguments; every fold has a row.

        Contiguous blocks when the rows are ordered; otherwise whole groups where there are groups; otherwise dealt
        evenly at random, class by class in a classification, so that the counts of a class differ by at most one
        between folds. There are fewer folds than asked where there are fewer rows (or groups, or shots) than that.

        Raises `SpecError` for fewer than 2 folds, `DataError` for fewer than 2 rows (groups) with a target.
        """
        if n_folds < 2:
            raise SpecError(f"n_folds is {n_folds}; cross-validation needs at least 2 folds")
        usable = np.zeros(self.train.n, bool)
        rows = self.rows("train")
        usable[rows.series[rows.known]] = True
        units = int(usable.sum()) if self.groups is None else len(np.unique(self.groups[usable]))
        if units < 2:
            what = "training rows with a target" if self.groups is None else "groups with a target"
            raise DataError(f"task {self.name!r} has {units} {what}; cross-validation needs at least 2")
        n_folds = min(n_folds, units, units if self.shots is None else self.shots[0])
        if self.ordered:
            return folds.blocks(self.train.n, n_folds, self.groups)
        rng = np.random.default_rng(seed)
        if self.groups is not None:
            return folds.grouped(self.groups, self._counts(usable), n_folds, rng)
        classes = self.y_train if self.kind == "classification" and not self.dense else ~usable
        order = rng.permutation(self.train.n)
        order = order[np.argsort(classes[order], kind="stable")]
        fold = np.empty(self.train.n, np.int64)
        fold[order] = np.arange(self.train.n) % n_folds
        return fold

    def _counts(self, usable: np.ndarray) -> Float64[np.ndarray, "N C"]:
        """What group-wise folds have to balance: the classes, or the rows with a target."""
        if self.kind != "classification":
            return usable[:, None].astype(float)
        y = self.y_train.reshape(self.train.n, -1)
        return np.stack([(y == c).sum(1) for c in range(self.n_classes)], 1).astype(float)


def Classification(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    metric: str = "accuracy",
    groups: Any = None,
    ordered: bool = False,
    source: str = "user",
    licence: str = "not declared",
) -> Task:
    """A task of one class a series; `train` and `test` are pairs (series, labels).

    Series are anything that `as_panel` takes; labels `[N]` may be of any type and become indices into the sorted
    classes of the training set. `groups` `[N_train]` keeps rows of one subject in one fold.

    Raises `DataError`: lengths or channels do not match, a label is missing, fewer than two classes in training, a test
    label that training does not have.
    """
    x_train, raw_train = series_and(name, train, "train")
    x_test, raw_test = series_and(name, test, "test")
    values, y_train = _classes(name, _label_vector(name, raw_train, "training"))
    index = {value: i for i, value in enumerate(values)}
    test_values = _label_vector(name, raw_test, "test").tolist()
    unseen = sorted({str(v) for v in test_values if v not in index})
    if unseen:
        raise DataError(f"task {name!r}: test labels {', '.join(unseen[:5])} do not occur in training; drop those rows")
    y_test = np.array([index[v] for v in test_values], dtype=np.int64)
    return Task(
        name, "classification", "classification", metric, x_train, x_test, y_train, y_test,
        tuple(map(str, values)), _groups(groups), ordered, source, licence,
    )  # fmt: skip


def MultiLabel(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    labels: Sequence[str] | None = None,
    metric: str = "auroc",
    groups: Any = None,
    ordered: bool = False,
    source: str = "user",
) -> Task:
    """A task of K yes-or-no questions a series; targets `[N, K]` of 0 and 1, NaN where the answer is not known.

    Raises `DataError` as `Classification` does, and for targets that are not 0, 1 or NaN.
    """
    task = _vector_task(name, "multilabel", metric, (train, test), labels, (groups, ordered, source))
    for split, y in (("training", task.y_train), ("test", task.y_test)):
        wrong = y[~np.isnan(y) & (y != 0) & (y != 1)]
        if wrong.size:
            raise DataError(f"task {name!r}: {split} target {wrong[0]:g} is neither 0 nor 1 (NaN where not known)")
    if not any(len(np.unique(column[~np.isnan(column)])) > 1 for column in task.y_train.T):
        raise DataError(f"task {name!r}: every label is the same in all training rows, so there is nothing to learn")
    return task


def Regression(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    labels: Sequence[str] | None = None,
    metric: str = "r2",
    groups: Any = None,
    ordered: bool = False,
    source: str = "user",
) -> Task:
    """A task of K real targets a series, `[N]` or `[N, K]`; NaN masks a target of a row.

    Raises `DataError` as `Classification` does, for infinite targets, and for a target that no training row has.
    """
    task = _vector_task(name, "regression", metric, (train, test), labels, (groups, ordered, source))
    for split, y in (("training", task.y_train), ("test", task.y_test)):
        if np.isinf(y).any():
            raise DataError(f"task {name!r}: infinite {split} target; give finite values, NaN where there is none")
        empty = [label for label, column in zip(task.labels, y.T, strict=True) if np.isnan(column).all()]
        if empty:
            raise DataError(f"task {name!r}: no {split} row has the target {empty[0]!r}; drop it")
    return task


def _vector_task(
    name: str,
    kind: Kind,
    metric: str,
    splits: tuple[Any, Any],
    labels: Sequence[str] | None,
    rest: tuple[Any, bool, str],
) -> Task:
    """The common part of tasks with float targets `[N, K]`."""
    x_train, raw_train = series_and(name, splits[0], "train")
    x_test, raw_test = series_and(name, splits[1], "test")
    y_train, y_test = _targets(name, raw_train, "training"), _targets(name, raw_test, "test")
    if y_train.shape[1] != y_test.shape[1] or y_train.shape[1] == 0:
        raise DataError(f"task {name!r}: {y_train.shape[1]} training targets a row and {y_test.shape[1]} test targets")
    if labels is None:
        columns = getattr(raw_train, "columns", None)
        labels = [f"target {k}" for k in range(y_train.shape[1])] if columns is None else list(columns)
    if len(labels) != y_train.shape[1]:
        raise DataError(f"task {name!r}: {len(labels)} label names for {y_train.shape[1]} targets; give one each")
    groups, ordered, source = rest
    names = tuple(map(str, labels))
    return Task(
        name, "classification", kind, metric, x_train, x_test, y_train, y_test, names, _groups(groups), ordered, source
    )


def series_and(name: str, pair: Any, split: str, what: str = "targets") -> tuple[Panel, Any]:
    """The panel in a pair (series, what is asked of them), and the rest. Raises `DataError` for anything else."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise DataError(f"task {name!r}: {split}= must be a pair (series, {what})")
    try:
        return as_panel(pair[0]), pair[1]
    except DataError as error:
        raise DataError(f"task {name!r}, {split}: {error}") from error


def _array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def _groups(groups: Any) -> np.ndarray | None:
    return None if groups is None else _array(groups)


def _label_vector(name: str, raw: Any, split: str) -> np.ndarray:
    """Labels `[N]` as the user gave them. Raises `DataError` for another rank, or a label that is missing."""
    import pandas as pd

    y = _array(raw)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(f"task {name!r}: {split} labels have shape {y.shape}; give [N], or use MultiLabel for [N, K]")
    missing = np.flatnonzero(pd.isna(y))
    if missing.size:
        raise DataError(f"task {name!r}: {split} label {missing[0]} is missing; drop that series or give its class")
    return y


def _classes(name: str, y: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The sorted classes and the index of each label; labels that do not compare are sorted by type, then as text."""
    try:
        values = sorted(set(y.tolist()))
    except TypeError:
        values = sorted(set(y.tolist()), key=lambda v: (type(v).__name__, str(v)))
    if len(values) < 2:
        raise DataError(f"task {name!r}: only one class ({values[0]}) in training; a classification needs at least two")
    index = {value: i for i, value in enumerate(values)}
    return values, np.array([index[v] for v in y.tolist()], dtype=np.int64)


def _targets(name: str, raw: Any, split: str) -> np.ndarray:
    y = _array(raw)
    try:
        y = y.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"task {name!r}: {split} targets are not numbers ({y.dtype}); give floats") from error
    if y.ndim not in (1, 2):
        raise DataError(f"task {name!r}: {split} targets have shape {y.shape}; give [N] or [N, K]")
    return y if y.ndim == 2 else y[:, None]
