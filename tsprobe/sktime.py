"""Frozen features of a layer as sktime estimators: a panel-to-table transformer; a classifier, a regressor and a
forecaster on it.

They take and give what sktime's do, and work in `make_pipeline`, in `GridSearchCV` and in pickles:

    from sktime.pipeline import make_pipeline
    from tsprobe.sktime import LayerClassifier, LayerTransformer

    clf = LayerClassifier("fracast", layer="best").fit(X_train, y_train)     # the layer is chosen by inner folds
    clf.layer_, clf.score(X_test, y_test)
    pipe = make_pipeline(LayerTransformer("zoo/jepa", layer="block.7"), RandomForestClassifier())
    LayerForecaster("zoo/forecasting", season=12).fit(y, fh=range(1, 13)).predict_interval()

An encoder is loaded by its name at `fit`, or given as an object, which is then pickled with its weights. For
`[N, C, S]` arrays and scikit-learn alone there is `tsprobe.sklearn`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sktime.classification.base import BaseClassifier
from sktime.forecasting.base import BaseForecaster
from sktime.regression.base import BaseRegressor
from sktime.transformations.base import BaseTransformer

from tsprobe.data.panel import Panel, as_panel
from tsprobe.encoders.base import Encoder
from tsprobe.estimators import DEFAULT, Classifying, Features, Forecasts, Regressing, at_levels, labelled

if TYPE_CHECKING:
    from jaxtyping import Float

_TAGS = {
    "authors": ["tsprobe"],
    "maintainers": ["tsprobe"],
    "python_dependencies": ["torch"],
    "capability:multivariate": True,
    "capability:unequal_length": True,
    "capability:missing_values": True,
    "X_inner_mtype": "df-list",
}


class _Sktime:
    """What sktime and its checks, and scikit-learn's searches over sktime's estimators, ask of all three."""

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's searches ask of an estimator; sktime's base classes do not say it."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags, TransformerTags

        kind = str(self._tags["object_type"])  # type: ignore[attr-defined]
        return Tags(
            estimator_type=None if kind == "transformer" else kind,
            target_tags=TargetTags(required=kind != "transformer"),
            transformer_tags=TransformerTags() if kind == "transformer" else None,
            classifier_tags=ClassifierTags() if kind == "classifier" else None,
            regressor_tags=RegressorTags() if kind == "regressor" else None,
            input_tags=InputTags(two_d_array=False, three_d_array=True),
        )  # fmt: skip

    def reset(self) -> Any:
        """As sktime has it; what a search of scikit-learn 1.9 has put on the estimator for the time of `fit` stays."""
        kept = {name: value for name, value in vars(self).items() if name == "_parent_callback_ctx"}
        super().reset()  # type: ignore[misc]
        vars(self).update(kept)
        return self

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Two settings that sktime's checks try."""
        return [{"encoder": DEFAULT, "layer": "block.1"}, {"encoder": DEFAULT, "pooling": "max"}]


def _panel(X: Any) -> Panel:
    """Series as sktime's df-list has them: a frame each, a row a step, a column a channel."""
    return as_panel([np.ascontiguousarray(frame.to_numpy(np.float64).T) for frame in X])


class LayerTransformer(_Sktime, Features, BaseTransformer):
    """Series to frozen features of one layer: a table with a row a series.

    Parameters: see `tsprobe.estimators.Features`. Targets that are floating point numbers choose the layer as a
    regression, others as a classification.

    Examples
    --------
    >>> from sktime.datasets import load_unit_test
    >>> from tsprobe.sktime import LayerTransformer
    >>> X, y = load_unit_test(split="train")
    >>> LayerTransformer("zoo/contrastive", layer="block.3").fit_transform(X).shape
    (20, 128)
    """

    _tags = _TAGS | {
        "object_type": "transformer", "scitype:transform-input": "Series", "scitype:transform-output": "Primitives",
        "scitype:instancewise": True, "y_inner_mtype": "numpy1D", "requires_y": False, "fit_is_empty": False,
        "capability:inverse_transform": False,
    }  # fmt: skip

    def _fit(self, X: Any, y: Any = None) -> LayerTransformer:
        self._choose(labelled(_panel(X), y))
        return self

    def _transform(self, X: Any, y: Any = None) -> pd.DataFrame:
        found = self._vectors(_panel(X))
        return pd.DataFrame(found, columns=[f"{self.layer_}.{i}" for i in range(found.shape[1])])


class LayerClassifier(_Sktime, Classifying, BaseClassifier):
    """A logistic regression on standardised frozen features of one layer, its strength chosen by inner folds.

    Parameters: see `tsprobe.estimators.Features`; `folds` of the inner cross-validation.

    Examples
    --------
    >>> from sktime.datasets import load_unit_test
    >>> from tsprobe.sktime import LayerClassifier
    >>> X, y = load_unit_test(split="train")
    >>> LayerClassifier("zoo/contrastive", layer="block.3").fit(X, y).predict(X).shape
    (20,)
    """

    _tags = _TAGS | {"object_type": "classifier", "capability:predict_proba": True}

    def _fit(self, X: Any, y: Any) -> LayerClassifier:
        self._learn(_panel(X), y)
        return self

    def _predict(self, X: Any) -> np.ndarray:
        return self.head_.predict(self._vectors(_panel(X)))

    def _predict_proba(self, X: Any) -> Float[np.ndarray, "N C"]:
        return self.head_.predict_proba(self._vectors(_panel(X)))


class LayerRegressor(_Sktime, Regressing, BaseRegressor):
    """A ridge regression on standardised frozen features of one layer, its strength chosen by leaving one out.

    Parameters: see `tsprobe.estimators.Features`.

    Examples
    --------
    >>> from sktime.datasets import load_unit_test
    >>> from tsprobe.sktime import LayerRegressor
    >>> X, y = load_unit_test(split="train")
    >>> LayerRegressor("zoo/contrastive", layer="block.3").fit(X, y.astype(float)).predict(X).shape
    (20,)
    """

    _tags = _TAGS | {"object_type": "regressor"}

    def _fit(self, X: Any, y: Any) -> LayerRegressor:
        self._learn(_panel(X), y)
        return self

    def _predict(self, X: Any) -> np.ndarray:
        return self.head_.predict(self._vectors(_panel(X)))


class LayerForecaster(_Sktime, Forecasts, BaseForecaster):
    """Quantile forecasts from frozen features of one layer, by the linear head that studies fit.

    Windows are cut from all series that are fitted, at most 500 in all, and share one head: panels are forecast
    globally. Levels between 0.1 and 0.9 lie between those of the head; beyond, tails are those of a normal
    distribution. A horizon is needed at `fit`, and lies in the future.

    Parameters: see `tsprobe.estimators.Features`; `season` in steps, 1 for none, scales errors as MASE does; an encoder
    reads the last `context` steps, or all.

    Examples
    --------
    >>> from sktime.datasets import load_airline
    >>> from tsprobe.sktime import LayerForecaster
    >>> LayerForecaster("zoo/forecasting", season=12).fit(load_airline(), fh=[1, 2, 3]).predict().shape
    (3,)
    """

    _tags = _TAGS | {
        "object_type": "forecaster", "capability:multivariate": False, "capability:exogenous": False,
        "capability:insample": False, "capability:pred_int": True, "capability:pred_int:insample": False,
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"], "requires-fh-in-fit": True,
    }  # fmt: skip
    _tags.pop("X_inner_mtype")
    channels = "mean"  # there is one

    def __init__(
        self,
        encoder: str | Encoder = "zoo/forecasting",
        layer: str = "final",
        pooling: str = "mean",
        season: int = 1,
        context: int | None = None,
        device: str = "auto",
    ) -> None:
        self.season, self.context = season, context
        self.encoder, self.layer, self.pooling, self.device = encoder, layer, pooling, device
        BaseForecaster.__init__(self)
        self.set_config(remember_data=True)  # `update` fits again, to all that was seen

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Two settings that sktime's checks try."""
        return [{"encoder": DEFAULT, "context": 16}, {"encoder": DEFAULT, "layer": "block.1", "season": 2}]

    def _fit(self, y: Any, X: Any = None, fh: Any = None) -> LayerForecaster:
        series = [part.to_numpy(np.float64)[:, 0] for part in _instances(y)]
        self.forecasts_ = self._forecast(series, int(max(fh.to_relative(self.cutoff).to_numpy())))  # [N, H, Q]
        return self

    def _predict(self, fh: Any, X: Any = None) -> pd.DataFrame:
        return self._table(fh, [0.5], self._get_varnames())

    def _predict_quantiles(self, fh: Any, X: Any, alpha: list[float]) -> pd.DataFrame:
        return self._table(fh, alpha, pd.MultiIndex.from_product([self._get_varnames(), alpha]))

    def _table(self, fh: Any, levels: list[float], columns: Any) -> pd.DataFrame:
        steps = np.asarray(fh.to_relative(self.cutoff).to_numpy(), int) - 1
        values = at_levels(self.forecasts_[:, steps], levels).reshape(-1, len(levels))
        return pd.DataFrame(values, fh.get_expected_pred_idx(self._y, self.cutoff), columns)


def _instances(y: pd.DataFrame) -> list[pd.DataFrame]:
    """The series of a frame: all of it, or one for each value of the index's levels before the last, in sorted order,
    which is that of the index of sktime's forecasts."""
    levels: Any = list(range(y.index.nlevels - 1))
    if not levels:
        return [y]
    return [part for _, part in y.groupby(level=levels if len(levels) > 1 else 0, sort=True)]
