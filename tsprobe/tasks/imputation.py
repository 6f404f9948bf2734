"""Imputation: the values of steps that are missing in what the encoder reads, `imputation/NAME` and `dense/imputation`.

Of each series, blocks of 4 to 24 steps are hidden in all channels, a quarter of all steps or a little more
(`tsprobe.data.gaps`). The encoder reads NaN there: one that can mask missing values masks them, to all others the gap
is interpolated, as always. The readout is asked for the true values at `steps` of the hidden steps, evenly spaced.
Series and targets are in standard deviations about the mean of the steps that are left, each channel of each series
by itself, so that nothing hidden takes part in the scale and R² is not that of levels.

Chance level is the straight line between the neighbours of the gap, which is also what an encoder sees that cannot
mask (or the mean, in channels where that is nearer): what a layer reaches above it has come from the encoder. A token
that covers nothing but hidden steps is masked by encoders that mask; its steps are then read between the tokens on both
sides, like all steps between two tokens.

`imputation/NAME` takes the series of a UCR or UEA set in their official split, and leaves their labels aside;
`dense/imputation` the waves of `dense/state`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.data.gaps import MIN_LENGTH, hidden
from tsprobe.data.panel import Panel
from tsprobe.data.sources import bundled_folder
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks import archive, options
from tsprobe.tasks.base import Task, TaskInfo
from tsprobe.tasks.dense import STEPS, ask

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64

# of the sets that sktime ships: train, test, channels, shortest, longest
_LISTED = {
    "ArrowHead": (36, 175, 1, 251, 251),
    "BasicMotions": (40, 40, 6, 100, 100),
    "GunPoint": (50, 150, 1, 150, 150),
    "OSULeaf": (200, 242, 1, 427, 427),
}


@dataclass(frozen=True)
class _Settings:
    seed: int = 0
    steps: int = STEPS


@dataclass(frozen=True, eq=False)
class ImputationTask(Task):
    """An imputation: targets float64 `[N, M, C]` at M hidden steps, and beside them what the straight line says."""

    line_train: np.ndarray | None = None
    line_test: np.ndarray | None = None

    @property
    def guess(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The straight line over the gap, for the rows of the training and of the test series, `[n, C]`.

        In a channel whose training targets are nearer to their mean than to that line, it is this mean.
        """
        if self.line_train is None or self.line_test is None:
            return None
        train, test = (
            line.reshape(-1, self.n_classes)[self.rows(split).at]
            for split, line in (("train", self.line_train), ("test", self.line_test))
        )
        y = self.rows("train").y
        mean = np.nanmean(y, axis=0)
        straight = np.nanmean(np.square(y - train), axis=0) < np.nanmean(np.square(y - mean), axis=0)
        return np.where(straight, train, mean), np.where(straight, test, mean)


def list_tasks() -> list[TaskInfo]:
    """Some of the sets that sktime ships; any other with series of at least `MIN_LENGTH` steps can be asked for."""
    return [
        TaskInfo(
            name=f"imputation/{name}", kind="regression", metric="r2", n_train=n_train, n_test=n_test,
            channels=channels, length=(low, high), n_classes=channels,
            source="UCR archive, shipped in sktime, with gaps", licence=archive.LICENCE,
            here=bundled_folder(name) is not None, family="dense",
        )
        for name, (n_train, n_test, channels, low, high) in _LISTED.items()
    ]  # fmt: skip


def load_imputation(name: str) -> ImputationTask:
    """The set of a name, with gaps: `imputation/GunPoint?steps=16&seed=1`.

    Raises as the set's own task and `with_gaps` do, and `SpecError` for a setting that there is not.
    """
    base, _, query = name.partition("?")
    settings = options.read_settings(f"imputation/{name}", query, _Settings())
    task = archive.load_ucr(base)
    return with_gaps(
        f"imputation/{base}{options.written(settings, _Settings())}", (task.train, task.test),
        seed=settings.seed, steps=settings.steps, source=f"{task.source}, with gaps", licence=task.licence,
    )  # fmt: skip


def with_gaps(
    name: str, panels: tuple[Panel, Panel], *, seed: int = 0, steps: int = STEPS, **rest: Any
) -> ImputationTask:
    """The imputation of some training and test series, in which gaps are made; `rest` are further fields of `Task`.

    Raises `SpecError` for steps below 1, `DataError` for series too short for gaps.
    """
    if steps < 1:
        raise SpecError(f"task {name!r}: steps={steps}; give at least 1")
    short = min(int(panel.lengths.min()) for panel in panels)
    if short < MIN_LENGTH:
        raise DataError(f"task {name!r}: a series has {short} steps; gaps need at least {MIN_LENGTH}")
    seen, truths = [], []
    for is_test, panel in enumerate(panels):
        rng = np.random.default_rng((seed, is_test))
        series, truth = zip(*(_hide(rng, x) for x in panel.series), strict=True)
        seen.append(Panel(series))
        truths.append(truth)
    channels = seen[0].channels
    labels = tuple(f"channel {c}" for c in range(channels)) if channels > 1 else ("value",)
    task = ask(name, "regression", "r2", seen, truths, labels, steps=steps, **rest)
    assert task.steps_train is not None
    assert task.steps_test is not None
    return ImputationTask(
        **{field.name: getattr(task, field.name) for field in dataclasses.fields(task)},
        line_train=_lines(seen[0], task.steps_train),
        line_test=_lines(seen[1], task.steps_test),
    )


def _hide(
    rng: np.random.Generator, series: Float32[np.ndarray, "C S"]
) -> tuple[Float32[np.ndarray, "C S"], Float64[np.ndarray, "S C"]]:
    """A series with gaps, in standard deviations of what is left, and what is true in them, NaN elsewhere."""
    gap = hidden(rng, series.shape[1])
    x = np.where(np.isfinite(series), series, np.nan).astype(np.float64)
    for channel in x:
        known = channel[~gap & np.isfinite(channel)]
        if len(known):
            channel -= known.mean()
            channel /= known.std() or 1
    return np.where(gap, np.nan, x).astype(np.float32), np.where(gap, x, np.nan).T


def _lines(panel: Panel, at: Int64[np.ndarray, "N M"]) -> Float64[np.ndarray, "N M C"]:
    """Values on the line between the known neighbours of steps; 0, the mean, in a channel without known values."""
    values = np.zeros((*at.shape, panel.channels))
    for series, steps, line in zip(panel.series, at, values, strict=True):
        for c, channel in enumerate(series):
            known = np.flatnonzero(np.isfinite(channel))
            if len(known):
                line[:, c] = np.interp(steps, known, channel[known])
    return values
