"""Frozen features of a layer as scikit-learn estimators over arrays: a transformer, a classifier and a regressor.

X is `[N, C, S]`, or `[N, S]` for one channel; what is not finite is missing. They work in `make_pipeline`, in
`GridSearchCV` (the layer may be a parameter of the grid) and in pickles:

    from sklearn.pipeline import make_pipeline
    from tsprobe.sklearn import LayerClassifier, LayerTransformer

    clf = LayerClassifier("fracast", layer="best").fit(X_train, y_train)     # the layer is chosen by inner folds
    clf.layer_, clf.score(X_test, y_test)
    pipe = make_pipeline(LayerTransformer("zoo/jepa", layer="block.7"), RandomForestClassifier())

Series of `[N, C, S]` may have another length when predictions are asked for, but the same channels; the columns of
`[N, S]` are those of a table, as everywhere in scikit-learn. Ragged series: `tsprobe.sktime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from tsprobe.data.panel import Panel, as_panel
from tsprobe.estimators import Classifying, Features, Regressing, labelled

if TYPE_CHECKING:
    from jaxtyping import Float


class _Arrays:
    """Series from arrays, which scikit-learn has looked at as at those of any estimator."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.allow_nan = tags.input_tags.three_d_array = True
        if tags.transformer_tags is not None:
            tags.transformer_tags.preserves_dtype = []  # encoders give float32 whatever they are given
        return tags

    def _first(self, X: Any, y: Any = "no_validation", **checks: Any) -> tuple[Panel, np.ndarray | None]:
        """Series and targets of `fit`; how many channels (or columns) they have is kept in `n_features_in_`."""
        found = validate_data(self, X, y, allow_nd=True, ensure_all_finite=False, **checks)
        series, targets = found if isinstance(found, tuple) else (found, None)
        return as_panel(series), targets

    def _again(self, X: Any) -> Panel:
        check_is_fitted(self)
        return as_panel(validate_data(self, X, reset=False, allow_nd=True, ensure_all_finite=False))


class LayerTransformer(_Arrays, Features, TransformerMixin, BaseEstimator):
    """Series to frozen features of one layer: `[N, C, S]` to `[N, D]`. Parameters: see `tsprobe.estimators.Features`.

    Targets are needed for `layer="best"` alone. Those that are floating point numbers choose the layer as a
    regression, others as a classification.

    Examples
    --------
    >>> import numpy as np
    >>> from tsprobe.sklearn import LayerTransformer
    >>> X = np.random.default_rng(0).standard_normal((4, 2, 64))
    >>> LayerTransformer("zoo/contrastive", layer="block.3").fit_transform(X).shape
    (4, 128)
    """

    def fit(self, X: Any, y: Any = None) -> LayerTransformer:
        panel, _ = self._first(X)
        self._choose(labelled(panel, y))
        self._width = self._vectors(panel.take([0])).shape[1]
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "N D"]:
        return self._vectors(self._again(X))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The layer's name and the number of the feature."""
        check_is_fitted(self)
        _check_feature_names_in(self, input_features)
        return np.array([f"{self.layer_}.{i}" for i in range(self._width)], dtype=object)


class LayerClassifier(_Arrays, Classifying, ClassifierMixin, BaseEstimator):
    """A logistic regression on standardised frozen features of one layer, its strength chosen by inner folds.

    Parameters: see `tsprobe.estimators.Features`; `folds` of the inner cross-validation.

    Examples
    --------
    >>> import numpy as np
    >>> from tsprobe.sklearn import LayerClassifier
    >>> X, y = np.random.default_rng(0).standard_normal((8, 1, 64)), [0, 1] * 4
    >>> LayerClassifier("zoo/contrastive", layer="block.3").fit(X, y).predict_proba(X).shape
    (8, 2)
    """

    def fit(self, X: Any, y: Any) -> LayerClassifier:
        panel, targets = self._first(X, y)
        check_classification_targets(targets)
        assert targets is not None
        self._learn(panel, targets)
        self.classes_ = self.head_.classes_
        return self

    def predict(self, X: Any) -> np.ndarray:
        vectors = self._vectors(self._again(X))
        return self.head_.predict(vectors)

    def predict_proba(self, X: Any) -> Float[np.ndarray, "N C"]:
        vectors = self._vectors(self._again(X))
        return self.head_.predict_proba(vectors)


class LayerRegressor(_Arrays, Regressing, RegressorMixin, BaseEstimator):
    """A ridge regression on standardised frozen features of one layer, its strength chosen by leaving one out.

    Parameters: see `tsprobe.estimators.Features`.

    Examples
    --------
    >>> import numpy as np
    >>> from tsprobe.sklearn import LayerRegressor
    >>> X = np.random.default_rng(0).standard_normal((8, 1, 64))
    >>> LayerRegressor("zoo/contrastive", layer="block.3").fit(X, X[:, 0].std(1)).predict(X).shape
    (8,)
    """

    def fit(self, X: Any, y: Any) -> LayerRegressor:
        panel, targets = self._first(X, y, y_numeric=True)
        assert targets is not None
        self._learn(panel, targets)
        return self

    def predict(self, X: Any) -> np.ndarray:
        vectors = self._vectors(self._again(X))
        return self.head_.predict(vectors)
