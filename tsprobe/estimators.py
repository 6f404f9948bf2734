"""Frozen features of a layer as estimators: what `tsprobe.sktime` and `tsprobe.sklearn` share.

The two say how series come in and what their library asks of an estimator; which encoder is read, where, and with
which head on top is said here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tsprobe.capture import Reading, extract
from tsprobe.data.panel import Panel
from tsprobe.embed import best_layer
from tsprobe.encoders import load_encoder
from tsprobe.encoders.base import Encoder
from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.forecast_metrics import LEVELS, MEDIAN
from tsprobe.tasks import Classification, Regression
from tsprobe.tasks.base import Task
from tsprobe.tasks.forecasting import Forecasting, look_back

if TYPE_CHECKING:
    from jaxtyping import Float

DEFAULT = "zoo/contrastive"
_WINDOWS = 500  # of all series together, from which the head of a forecaster learns


class Features:
    """Which encoder is read, where, and how.

    encoder : a name, as in `tsprobe list encoders`, or an `Encoder`
    layer : a layer's name, "final", or "best": the one that a ridge probe reads best on inner folds of the training
        series, which needs targets
    pooling : how the tokens of a series become one vector
    channels : "mean" or "concat", for encoders that take one channel at a time
    device : "auto", "cpu", "cuda", ...

    After fitting, `layer_` is the layer that is read and `encoder_` the encoder.
    """

    encoder_: Encoder
    layer_: str

    def __init__(
        self,
        encoder: str | Encoder = DEFAULT,
        layer: str = "final",
        pooling: str = "mean",
        channels: Literal["mean", "concat"] = "mean",
        device: str = "auto",
    ) -> None:
        self.encoder, self.layer, self.pooling, self.channels, self.device = encoder, layer, pooling, channels, device
        super().__init__()

    def _choose(self, task: Callable[[], Task] | None) -> None:
        """Load the encoder and choose its layer by a task, which is made for "best" alone; None where there is none.

        Raises what loading does, `UnknownNameError` for a layer, and `SpecError` for "best" without a task.
        """
        from tsprobe.study.run import pick_device

        found = self.encoder if isinstance(self.encoder, Encoder) else load_encoder(self.encoder)
        self.encoder_ = encoder = found.to(pick_device(self.device))
        if self.layer == "best" and task is None:
            raise SpecError('layer="best" is chosen by targets: call fit(X, y), or name a layer')
        if self.layer not in (*encoder.taps, "best", "final"):
            raise UnknownNameError(f"layer of {encoder.name}", self.layer, [*encoder.taps, "best", "final"])
        if self.layer == "best" and task is not None:
            self.layer_ = best_layer(encoder, task(), self._reading())
        else:
            self.layer_ = encoder.final if self.layer == "final" else self.layer

    def _reading(self) -> Reading:
        return Reading((self.pooling,), self.channels)

    def _vectors(self, panel: Panel) -> Float[np.ndarray, "N D"]:
        return extract(self.encoder_, panel, self._reading(), layers=(self.layer_,)).matrix(self.layer_, self.pooling)


def labelled(panel: Panel, y: Any, make: Callable[..., Task] | None = None) -> Callable[[], Task] | None:
    """What makes the task of series and their targets `[N]`, if any: unless it is said by `make`, a regression for
    floating point numbers, else a classification."""
    if y is None:
        return None
    y, few = np.asarray(y), panel.take(range(min(len(panel), 2)))  # nothing is asked of the test part
    kind = make or (Regression if y.dtype.kind == "f" else Classification)
    return lambda: kind("fit", train=(panel, y), test=(few, y[: len(few)]))


class Headed(Features):
    """With `head_`, an estimator of scikit-learn on the vectors."""

    head_: Any

    def __init__(
        self,
        encoder: str | Encoder = DEFAULT,
        layer: str = "best",
        pooling: str = "mean",
        channels: Literal["mean", "concat"] = "mean",
        device: str = "auto",
    ) -> None:
        super().__init__(encoder, layer, pooling, channels, device)


class Classifying(Headed):
    """A logistic regression on standardised vectors; `folds` of the inner cross-validation choose its strength."""

    def __init__(
        self,
        encoder: str | Encoder = DEFAULT,
        layer: str = "best",
        pooling: str = "mean",
        channels: Literal["mean", "concat"] = "mean",
        folds: int = 5,
        device: str = "auto",
    ) -> None:
        self.folds = folds
        super().__init__(encoder, layer, pooling, channels, device)

    def _learn(self, panel: Panel, y: np.ndarray) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._choose(labelled(panel, y, Classification))
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        rarest = int(np.unique(y, return_counts=True)[1].min())
        if rarest >= 2:
            grid = {"logisticregression__C": np.logspace(-4, 2, 7)}
            head = GridSearchCV(head, grid, cv=min(self.folds, rarest))
        self.head_ = head.fit(self._vectors(panel), y)


class Regressing(Headed):
    """A ridge regression on standardised vectors, its strength chosen by leaving one out."""

    def _learn(self, panel: Panel, y: np.ndarray) -> None:
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._choose(labelled(panel, y.astype(float), Regression))
        head = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 15)))
        self.head_ = head.fit(self._vectors(panel), y)


class Forecasts(Features):
    """Quantiles of the steps that follow each of some series, by a head on the windows before."""

    season: int
    context: int | None

    def _forecast(self, series: list[Float[np.ndarray, " S"]], horizon: int) -> Float[np.ndarray, "N H Q"]:
        """Of H steps the levels of `forecast_metrics.LEVELS`. Raises `DataError` for series that are too short."""
        import torch

        from tsprobe.metrics import get_metric
        from tsprobe.probes import get_probe
        from tsprobe.probes.base import Target

        # the last window is a test row, for which a future has to be there, and is not looked at
        longer = [np.append(values, np.zeros(horizon)) for values in series]
        # of history before a window: what tasks ask for, or less where it would leave next to no windows
        shortest = max(2, min(max(self.season + 1, 8), min(map(len, series)) - 3 * horizon))
        task = Forecasting(
            "fit", longer, horizon=horizon, season=self.season, context=self.context, stride=1, shortest=shortest,
            windows=max(1, _WINDOWS // len(series)),
        )  # fmt: skip
        self._choose(lambda: task)
        train, test = (torch.from_numpy(self._vectors(panel))[None] for panel in (task.train, task.test))
        assert task.units is not None
        units = torch.from_numpy(task.units[0]), torch.from_numpy(task.units[1])
        target = Target("forecast", torch.from_numpy(task.y_train), units=units)
        folds = torch.from_numpy(task.folds(5, seed=0))
        found = get_probe("quantile")(train, target, test, folds, get_metric(task.metric)).prediction[0].cpu().numpy()
        pasts = [look_back(values, self.season, self.context) for values in series]
        blocks = found.reshape(len(series), horizon, len(LEVELS))
        return np.stack([past.unscaled(block) for past, block in zip(pasts, blocks, strict=True)])


def at_levels(quantiles: Float[np.ndarray, "*batch Q"], levels: Sequence[float]) -> Float[np.ndarray, "*batch A"]:
    """Quantiles at other levels than `LEVELS`: between them on a line, beyond them as those of a normal distribution,
    whose spread is from the median to the last level."""
    from scipy.stats import norm

    middle, found = quantiles[..., MEDIAN], []
    for level in levels:
        if LEVELS[0] <= level <= LEVELS[-1]:
            at = np.interp(level, LEVELS, np.arange(len(LEVELS)))
            low, part = int(at), at - int(at)
            found.append(quantiles[..., low] * (1 - part) + quantiles[..., min(low + 1, len(LEVELS) - 1)] * part)
        else:
            end = 0 if level < LEVELS[0] else -1
            found.append(middle + (quantiles[..., end] - middle) * norm.ppf(level) / norm.ppf(LEVELS[end]))
    return np.stack(found, -1)
