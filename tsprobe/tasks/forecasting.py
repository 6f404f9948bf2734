"""Forecasting: from the steps up to an origin, the next H. Windows are cut from every series, the last for the test.

A row of the task is an origin in a series. What an encoder reads are the steps before it, divided by their MASE scale:
the mean absolute difference of values one season apart (Hyndman and Koehler 2006), over all the history before the
origin. Targets are the steps from the origin on, about the last known value and in the same unit. The mean absolute
error of the targets is then the MASE, and level and size of a series do not matter to the readout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsprobe.data.panel import Panel, as_panel
from tsprobe.errors import DataError, SpecError
from tsprobe.forecast_metrics import LEVELS
from tsprobe.tasks.base import Task

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

BLOCKS = 5  # of the training rows of a single series, with a gap between: its folds are made of them


class Past(NamedTuple):
    """What is known at an origin: steps in units of the scale, and their standard deviation, `unit`.

    `constant` says that no value differs from that of a season before.
    """

    steps: Float32[np.ndarray, "1 S"]
    last: float
    scale: float
    unit: float
    constant: bool

    def scaled(self, values: Float64[np.ndarray, " H"]) -> Float64[np.ndarray, " H"]:
        return (values - self.last) / self.scale

    def unscaled(self, values: Float64[np.ndarray, "*batch H"]) -> Float64[np.ndarray, "*batch H"]:
        return values * self.scale + self.last


def look_back(history: Float64[np.ndarray, " S"], season: int, context: int | None = None) -> Past:
    """The last `context` steps of a history in units of its MASE scale, with that scale and the last known value.

    Differences with a missing value are left out. A history that is no longer than a season takes the differences of
    neighbours instead, and so does one whose seasonal differences are all 0; where these are 0 too, the scale is the
    size of the last value, or 1 for 0. Raises `DataError` where no value is known, or one is beyond float32 in units of
    the scale.
    """
    recent = history if context is None else history[-context:]
    known = history[np.isfinite(history)]
    if not np.isfinite(recent).any():
        raise DataError("no value is known before the origin")
    last, scale, constant = float(known[-1]), 0.0, False
    for lag in dict.fromkeys((season, 1)):
        steps = np.abs(history[lag:] - history[:-lag])
        steps = steps[np.isfinite(steps)]
        if steps.size:
            scale = float(steps.mean())
            if scale > 0:
                break
            constant = True
    scale = scale or abs(last) or 1.0
    with np.errstate(over="ignore"):
        scaled = (recent / scale).astype(np.float32)
    if np.isinf(scaled).any():
        raise DataError(f"a value is beyond float32 in units of the MASE scale, {scale:.3g}")
    return Past(scaled[None], last, scale, float(np.nanstd(scaled, dtype=np.float64)), constant)


def repeat_season(history: Float64[np.ndarray, " S"], season: int, horizon: int) -> Float64[np.ndarray, " H"]:
    """The seasonal naive forecast: the last season again; the last known value for what is missing in it."""
    last = history[np.isfinite(history)][-1]
    cycle = history[-season:] if len(history) >= season else np.full(season, last)
    return np.resize(np.where(np.isfinite(cycle), cycle, last), horizon)


@dataclass(frozen=True, eq=False)
class ForecastTask(Task):
    """A forecasting task: `labels` are the H steps, targets float64 `[N, H]`, NaN where the future is not known.

    `naive_train` and `naive_test` are the seasonal naive forecasts of the rows, as the targets are; `units_train [N]`
    and `units_test` the standard deviations of what an encoder reads, in units of the scale too. `constant` counts the
    histories without a seasonal difference, whose scale is another; `left_out` the series that are too short for a test
    window.
    """

    season: int = 1
    context: int | None = None
    naive_train: np.ndarray | None = None
    naive_test: np.ndarray | None = None
    units_train: np.ndarray | None = None
    units_test: np.ndarray | None = None
    constant: int = 0
    left_out: int = 0

    @property
    def horizon(self) -> int:
        return len(self.labels)

    @property
    def guess(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The seasonal naive forecasts, every quantile at the one value."""
        if self.naive_train is None or self.naive_test is None:
            return None
        return np.repeat(self.naive_train, len(LEVELS), 1), np.repeat(self.naive_test, len(LEVELS), 1)

    @property
    def units(self) -> tuple[np.ndarray, np.ndarray] | None:
        return None if self.units_train is None or self.units_test is None else (self.units_train, self.units_test)

    @property
    def description(self) -> str:
        lengths = np.concatenate([self.train.lengths, self.test.lengths])
        return (
            f"{self.name}: forecast, {self.train.n} training and {self.test.n} test windows after {lengths.min()}-"
            f"{lengths.max()} steps, horizon {self.horizon}, season {self.season}, metric {self.metric}; "
            f"{self.constant} constant histories, {self.left_out} series left out as too short"
        )


def Forecasting(
    name: str,
    series: Any,
    *,
    horizon: int,
    season: int,
    context: int | None = None,
    stride: int | None = None,
    windows: int | None = None,
    test_windows: int = 1,
    shortest: int | None = None,
    metric: str = "neg_mase",
    source: str = "user",
    licence: str = "not declared",
) -> ForecastTask:
    """A task that asks for the next `horizon` steps of univariate series; `season` is in steps, 1 for none.

    `series` are arrays `[S_i]` of any lengths, or what `as_panel` takes; NaN marks a missing value. Windows lie
    `stride` steps apart (default: a horizon): the last `test_windows` of each series are test rows, those before, as
    far as their targets end where the first test target begins, training rows, at most `windows` a series. A window
    reads all the history, or the last `context` steps of it. One with less than `shortest` steps of history (default:
    8, or a season and a step) is not made, nor one whose future is all missing.

    Folds keep a series together. The rows of a single series are in order of time, in five blocks whose targets do not
    overlap. Test windows that overlap are not independent: intervals are then too narrow.

    Raises `SpecError` for settings that make no sense, `DataError` for series of several channels, and where no series
    is long enough for a test window, or none for a training window before it.
    """
    stride = horizon if stride is None else stride
    shortest = max(season + 1, 8) if shortest is None else shortest
    settings = {"horizon": horizon, "season": season, "stride": stride, "test_windows": test_windows}
    settings |= {"shortest": shortest, "windows": 1 if windows is None else windows}
    for key, value in (settings | {"context": 1 if context is None else context}).items():
        if value < 1:
            raise SpecError(f"task {name!r}: {key}={value}; it must be at least 1")
    histories = _univariate(name, series)
    rows: tuple[list[_Row], list[_Row]] = [], []
    left_out = 0
    for i, values in enumerate(histories):
        first = len(values) - horizon - (test_windows - 1) * stride  # of the test origins
        left_out += len(values) - horizon < shortest
        for split, origins in enumerate(
            (
                range(first - horizon, shortest - 1, -stride)[:windows],
                range(len(values) - horizon, max(shortest, first) - 1, -stride),
            )
        ):
            made = (_row(name, i, values, origin, horizon, season, context) for origin in reversed(origins))
            rows[split].extend(row for row in made if row is not None)
    longest = max(map(len, histories))
    if not rows[1]:
        raise DataError(
            f"task {name!r}: a horizon of {horizon} steps after {shortest} of history needs series of "
            f"{horizon + shortest} steps; the longest has {longest}"
        )
    train, test = rows
    if len(histories) == 1:
        train = _blocks(train, horizon)
    if not train:
        raise DataError(
            f"task {name!r}: no training window before the test windows; that needs series of "
            f"{shortest + (test_windows - 1) * stride + 2 * horizon} steps, and the longest has {longest}"
        )
    return ForecastTask(
        name=name,
        family="forecasting",
        kind="forecast",
        metric=metric,
        train=_panel(train),
        test=_panel(test),
        y_train=_stack(train, "y"),
        y_test=_stack(test, "y"),
        labels=tuple(f"step {h}" for h in range(1, horizon + 1)),
        groups=np.array([row.group for row in train]),
        ordered=len(histories) == 1,
        source=source,
        licence=licence,
        season=season,
        context=context,
        naive_train=_stack(train, "naive"),
        naive_test=_stack(test, "naive"),
        units_train=np.array([row.past.unit for row in train]),
        units_test=np.array([row.past.unit for row in test]),
        constant=sum(row.past.constant for row in train + test),
        left_out=left_out,
    )


class _Row(NamedTuple):
    group: int
    origin: int
    past: Past
    y: np.ndarray
    naive: np.ndarray


def _row(
    name: str, i: int, values: np.ndarray, origin: int, horizon: int, season: int, context: int | None
) -> _Row | None:
    """The row of an origin; None where nothing is known before or after it."""
    history, future = values[:origin], values[origin : origin + horizon]
    if np.isnan(future).all() or np.isnan(history if context is None else history[-context:]).all():
        return None
    try:
        past = look_back(history, season, context)
    except DataError as error:
        raise DataError(f"task {name!r}, series {i}, origin {origin}: {error}") from error
    return _Row(i, origin, past, past.scaled(future), past.scaled(repeat_season(history, season, horizon)))


def _blocks(rows: list[_Row], horizon: int) -> list[_Row]:
    """Rows in order of time, grouped in blocks; those are dropped whose targets overlap with the block before."""
    kept: list[_Row] = []
    for r, row in enumerate(rows):
        block = r * BLOCKS // len(rows)
        if kept and kept[-1].group != block and row.origin < kept[-1].origin + horizon:
            continue
        kept.append(row._replace(group=block))
    return kept


def _panel(rows: Sequence[_Row]) -> Panel:
    return Panel(tuple(row.past.steps for row in rows))


def _stack(rows: Sequence[_Row], part: str) -> Float64[np.ndarray, "N H"]:
    return np.stack([getattr(row, part) for row in rows])


def _univariate(name: str, series: Any) -> list[Float64[np.ndarray, " S"]]:
    """Series in float64, NaN for whatever is not finite; numbers keep their precision, which a panel would halve."""
    if isinstance(series, np.ndarray) and series.ndim == 1 and series.dtype != object:
        series = [series]
    if isinstance(series, np.ndarray | list | tuple) and len(series) and not isinstance(series[0], tuple):
        try:
            values = [np.asarray(s, np.float64) for s in series]
        except (TypeError, ValueError) as error:
            raise DataError(f"task {name!r}: series are not numbers ({error})") from error
        values = [s[0] if s.ndim == 2 and len(s) == 1 else s for s in values]
    else:
        panel = as_panel(series)
        values = [s[0].astype(np.float64) if panel.channels == 1 else s for s in panel.series]
    for i, s in enumerate(values):
        if s.ndim != 1 or not s.size:
            raise DataError(f"task {name!r}: series {i} has shape {s.shape}; forecasts are of one channel, [S]")
    return [np.where(np.isfinite(s), s, np.nan) for s in values]
