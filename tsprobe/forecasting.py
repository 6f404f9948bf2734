"""A frozen encoder with its quantile head as a gluonts predictor, so that gluonts can score it and compare it.

`gluonts.model.evaluate_model(predictor("zoo/forecasting", "m3/monthly", "block.5"), test_data=…, metrics=[MASE()], …)`
gives the score of that layer in a study.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.capture import Reading, extract
from tsprobe.data.panel import Panel
from tsprobe.encoders import load_encoder
from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, SpecError
from tsprobe.forecast_metrics import LEVELS
from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe
from tsprobe.probes.base import Target
from tsprobe.tasks import load_task
from tsprobe.tasks.forecasting import ForecastTask, look_back

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gluonts' imports warn about themselves
    from gluonts.model.forecast import QuantileForecast
    from gluonts.model.predictor import Predictor

if TYPE_CHECKING:
    from jaxtyping import Float


class FrozenPredictor(Predictor):
    """Quantile forecasts of one layer and pooling, by the head that a study fits: same rows, folds and strengths.

    The head is fitted when `predict` is called, to the training rows of the task; the test rows are not looked at.
    """

    def __init__(
        self, encoder: Encoder, task: ForecastTask, layer: str, pooling: str, *, folds: int = 5, seed: int = 0
    ) -> None:
        super().__init__(prediction_length=task.horizon)
        self.encoder, self.task, self.layer = encoder, task, layer
        self.reading = Reading((pooling,))
        self._folds = torch.from_numpy(task.folds(folds, seed))
        self._train = self._features(task.train)

    def predict(self, dataset: Any, **kwargs: Any) -> Iterator[QuantileForecast]:
        """Forecasts of the steps that follow each entry's `target` `[S]`.

        Raises `DataError` for a target of several channels, or one without a value.
        """
        entries = list(dataset)
        pasts = []
        for i, entry in enumerate(entries):
            target = np.asarray(entry["target"], np.float64)
            if target.ndim != 1:
                raise DataError(f"entry {i} has a target of shape {target.shape}; forecasts are of one channel, [S]")
            pasts.append(look_back(np.where(np.isfinite(target), target, np.nan), self.task.season, self.task.context))
        if not entries:
            return
        x = self._features(Panel(tuple(past.steps for past in pasts)))
        forecasts = self._forecasts(x, np.array([past.unit for past in pasts]))
        for entry, past, forecast in zip(entries, pasts, forecasts, strict=True):
            yield QuantileForecast(
                past.unscaled(forecast.reshape(self.prediction_length, len(LEVELS)).T),
                entry["start"] + len(entry["target"]),
                [str(level) for level in LEVELS],
                item_id=entry.get("item_id"),
            )

    def _forecasts(self, x: Float[np.ndarray, "M D"], units: Float[np.ndarray, " M"]) -> Float[np.ndarray, "M HQ"]:
        assert self.task.units is not None
        units_of = torch.from_numpy(self.task.units[0]), torch.from_numpy(units)
        target = Target("forecast", torch.from_numpy(self.task.y_train), units=units_of)
        train, test = (torch.from_numpy(part)[None].to(self.encoder.device) for part in (self._train, x))
        readout = get_probe("quantile")(train, target, test, self._folds, get_metric(self.task.metric))
        return readout.prediction[0].cpu().numpy()

    def _features(self, panel: Panel) -> Float[np.ndarray, "N D"]:
        return extract(self.encoder, panel, self.reading, layers=(self.layer,)).matrix(
            self.layer, self.reading.poolings[0]
        )


def predictor(
    encoder: str | Encoder,
    task: str | ForecastTask,
    layer: str = "final",
    pooling: str = "mean",
    *,
    folds: int = 5,
    seed: int = 0,
) -> FrozenPredictor:
    """The forecasts of a layer of an encoder, fitted to the training rows of a forecasting task.

    Raises what loading raises, `SpecError` for a task that is no forecast, and `UnknownNameError` for a layer or
    pooling that is not there.
    """
    encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
    task = load_task(task) if isinstance(task, str) else task
    if not isinstance(task, ForecastTask):
        raise SpecError(f"{task.name} is a {task.kind} task; a predictor needs one that Forecasting() or m3/… makes")
    layer = encoder.final if layer == "final" else layer
    return FrozenPredictor(encoder, task, layer, pooling, folds=folds, seed=seed)
