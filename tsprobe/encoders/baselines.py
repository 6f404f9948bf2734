"""Controls that are no encoders: features of the raw signal through sktime, and no features at all.

They are fitted on the training series, have one layer, `features`, and go through the same probes as everything else.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tsprobe.encoders.base import Facts
from tsprobe.errors import MissingPackageError, UnknownNameError
from tsprobe.types import Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYER = "features"
WINDOW = 64  # steps of the raw signal that a baseline sees of the surroundings of a step


class Steps(Protocol):
    """`at [N, M]` steps of N series, as `tsprobe.capture.Steps` has them."""

    @property
    def at(self) -> np.ndarray: ...

    @property
    def causal(self) -> bool: ...


class Baseline(ABC):
    """`features` takes training and test series, lists of `[C, S]` without missing values, to `[N, D]` each."""

    layers = (Layer(LAYER, None),)
    final = LAYER

    def __init__(self, name: str) -> None:
        self.name = f"baseline/{name}"
        self.facts = Facts(objective="none", pretrained_on="nothing")

    def of_windows(self) -> Baseline:
        """The baseline for windows around steps, of which there are many more than series."""
        return self

    @abstractmethod
    def features(self, train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]: ...

    def fingerprint(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()


class Chance(Baseline):
    """One constant feature: what a probe reaches that sees nothing, the training set's class shares or mean."""

    def features(self, train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((len(train), 1), np.float32), np.ones((len(test), 1), np.float32)


class MiniRocket(Baseline):
    """Proportions of positive values under random-dilation convolutions (Dempster et al. 2021), seed 0.

    There are 9,996 of a series, and 504 of a window around a step.
    """

    shortest = 9  # length of the kernels
    kernels = 10_000

    def of_windows(self) -> MiniRocket:
        small = MiniRocket(self.name.removeprefix("baseline/"))
        small.kernels = 504
        return small

    def features(self, train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        with _quiet_sktime(self.name):
            from sktime.transformations.panel.rocket import MiniRocketMultivariate, MiniRocketMultivariateVariable
        train, test = (_lengthen(part, self.shortest) for part in (train, test))
        lengths = {s.shape[1] for part in (train, test) for s in part}
        with _quiet_sktime(self.name):
            if len(lengths) == 1:
                rocket = MiniRocketMultivariate(self.kernels, random_state=0).fit(np.stack(train).astype(np.float64))
                pair = [rocket.transform(np.stack(part).astype(np.float64)) for part in (train, test)]
            else:
                rocket = MiniRocketMultivariateVariable(self.kernels, random_state=0, pad_value_short_series=0.0).fit(
                    _nested(train)
                )
                pair = [rocket.transform(_nested(part)) for part in (train, test)]
        return np.asarray(pair[0], np.float32), np.asarray(pair[1], np.float32)


class Catch22(Baseline):
    """22 canonical statistics of each channel (Lubba et al. 2019)."""

    def features(self, train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        with _quiet_sktime(self.name):
            from sktime.transformations.panel.catch22 import Catch22 as Transformer

            transformer = Transformer(replace_nans=True)
            pair = [np.asarray(transformer.fit_transform(_nested(part)), np.float32) for part in (train, test)]
        return pair[0], pair[1]


class Lags(Baseline):
    """The last 32 values of each channel, about the last, in standard deviations of the series.

    A shorter series keeps its first value before its beginning. In the units of a forecast, a ridge on them is an
    autoregression, one of its own for each step ahead.
    """

    steps = 32

    def features(self, train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self._lags(train), self._lags(test)

    def _lags(self, series: Sequence[np.ndarray]) -> np.ndarray:
        rows = []
        for values in series:
            recent = np.pad(values, ((0, 0), (self.steps, 0)), mode="edge")[:, -self.steps :].astype(np.float64)
            spread = values.std(dtype=np.float64)
            rows.append((recent[:, :-1] - recent[:, -1:]).ravel() / (spread if spread > 0 else 1))
        return np.stack(rows).astype(np.float32)


def windows(series: Sequence[np.ndarray], steps: Steps) -> list[np.ndarray]:
    """Of each series, for each step asked about, the `WINDOW` steps around it (in a causal task, up to it) `[C, W]`.

    Beyond its ends a series keeps its first and its last value.
    """
    before = WINDOW - 1 if steps.causal else WINDOW // 2
    found = []
    for values, at in zip(series, steps.at, strict=True):
        padded = np.pad(values, ((0, 0), (before, WINDOW)), mode="edge")
        found += [padded[:, step : step + WINDOW] for step in at.tolist()]
    return found


def _lengthen(series: Sequence[np.ndarray], shortest: int) -> list[np.ndarray]:
    """Series shorter than the kernels keep their last value."""
    return [np.pad(s, ((0, 0), (0, max(0, shortest - s.shape[1]))), mode="edge") for s in series]


def _nested(series: Sequence[np.ndarray]) -> Any:
    import pandas as pd

    columns = {f"channel{c}": [pd.Series(s[c].astype(np.float64)) for s in series] for c in range(len(series[0]))}
    return pd.DataFrame(columns)


@contextmanager
def _quiet_sktime(purpose: str) -> Iterator[None]:
    """Import or run sktime without the warnings of its own dependencies; say what to install where it is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ModuleNotFoundError as error:
            raise MissingPackageError(error.name or "sktime", purpose) from error


BASELINES: dict[str, Callable[[str], Baseline]] = {
    "chance": Chance,
    "minirocket": MiniRocket,
    "catch22": Catch22,
    "lags": Lags,
}


def load_baseline(name: str) -> Baseline:
    """`chance`, `minirocket`, `catch22` or `lags`, with or without `baseline/` before it."""
    key = name.removeprefix("baseline/")
    if key not in BASELINES:
        raise UnknownNameError("baseline", name, BASELINES)
    return BASELINES[key](key)
