"""Frozen features of a layer as sktime estimators: a panel-to-table transformer, a classifier and a regressor on it.

They take and give what sktime's do, and work in `make_pipeline`, in `GridSearchCV` and in pickles:

    from sktime.pipeline import make_pipeline
    from tsprobe.sktime import LayerClassifier, LayerTransformer

    clf = LayerClassifier("fracast", layer="best").fit(X_train, y_train)     # the layer is chosen by inner folds
    clf.layer_, clf.score(X_test, y_test)
    pipe = make_pipeline(LayerTransformer("zoo/jepa", layer="block.7"), RandomForestClassifier())

An encoder is loaded by its name at `fit`, or given as an object, which is then pickled with its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from sktime.classification.base import BaseClassifier
from sktime.regression.base import BaseRegressor
from sktime.transformations.base import BaseTransformer

from tsprobe.capture import Reading, extract
from tsprobe.data.panel import Panel, as_panel
from tsprobe.embed import best_layer
from tsprobe.encoders import load_encoder
from tsprobe.encoders.base import Encoder
from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.tasks import Classification, Regression
from tsprobe.tasks.base import Task

if TYPE_CHECKING:
    from jaxtyping import Float

_DEFAULT = "zoo/contrastive"
_TAGS = {
    "authors": ["tsprobe"],
    "maintainers": ["tsprobe"],
    "python_dependencies": ["torch"],
    "capability:multivariate": True,
    "capability:unequal_length": True,
    "capability:missing_values": True,
    "X_inner_mtype": "df-list",
}


class _Layers:
    """Which encoder is read, where, and how: what the three estimators share.

    encoder : a name, as in `tsprobe list encoders`, or an `Encoder`
    layer : a layer's name, "final", or "best": the one that a ridge probe reads best on inner folds of the training
        series, which needs targets
    pooling : how the tokens of a series become one vector
    channels : "mean" or "concat", for encoders that take one channel at a time
    device : "auto", "cpu", "cuda", ...
    """

    encoder: str | Encoder
    layer: str
    pooling: str
    channels: Literal["mean", "concat"]
    device: str
    encoder_: Encoder
    layer_: str

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

    def _reading(self) -> Reading:
        return Reading((self.pooling,), self.channels)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Two settings that sktime's checks try."""
        return [{"encoder": _DEFAULT, "layer": "block.1"}, {"encoder": _DEFAULT, "pooling": "max"}]

    def _begin(self, X: Any, make: Callable[..., Task] | None, y: Any) -> Panel:
        """Load the encoder and choose its layer; `make` is what the targets are for, None without any."""
        from tsprobe.study.run import pick_device

        panel = _panel(X)
        found = self.encoder if isinstance(self.encoder, Encoder) else load_encoder(self.encoder)
        self.encoder_ = found.to(pick_device(self.device))
        self.layer_ = self._chosen(panel, make, y)
        return panel

    def _chosen(self, panel: Panel, make: Callable[..., Task] | None, y: Any) -> str:
        encoder = self.encoder_
        if self.layer == "final":
            return encoder.final
        if self.layer != "best":
            if self.layer not in encoder.taps:
                raise UnknownNameError(f"layer of {encoder.name}", self.layer, [*encoder.taps, "best", "final"])
            return self.layer
        if make is None:
            raise SpecError('layer="best" is chosen by targets: call fit(X, y), or name a layer')
        few = panel.take(range(min(len(panel), 2)))  # nothing is asked of the test part
        return best_layer(encoder, make("fit", train=(panel, y), test=(few, y[: len(few)])), self._reading())

    def _vectors(self, panel: Panel) -> Float[np.ndarray, "N D"]:
        return extract(self.encoder_, panel, self._reading(), layers=(self.layer_,)).matrix(self.layer_, self.pooling)


class _Headed(_Layers):
    """With `head_`, an estimator of scikit-learn on the vectors."""

    head_: Any

    def _predict(self, X: Any) -> np.ndarray:
        return self.head_.predict(self._vectors(_panel(X)))


def _panel(X: Any) -> Panel:
    """Series as sktime's df-list has them: a frame each, a row a step, a column a channel."""
    return as_panel([np.ascontiguousarray(frame.to_numpy(np.float64).T) for frame in X])


class LayerTransformer(_Layers, BaseTransformer):
    """Series to frozen features of one layer: a table with a row a series. Parameters: see `_Layers`.

    After `fit`, `layer_` is the layer that is read and `encoder_` the encoder. Targets that are floating point numbers
    choose the layer as a regression, others as a classification.

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

    def __init__(
        self,
        encoder: str | Encoder = _DEFAULT,
        layer: str = "final",
        pooling: str = "mean",
        channels: Literal["mean", "concat"] = "mean",
        device: str = "auto",
    ) -> None:
        self.encoder, self.layer, self.pooling, self.channels, self.device = encoder, layer, pooling, channels, device
        super().__init__()

    def _fit(self, X: Any, y: Any = None) -> LayerTransformer:
        make: Callable[..., Task] | None = None
        if y is not None:
            make = Regression if np.asarray(y).dtype.kind == "f" else Classification
        self._begin(X, make, y if y is None else np.asarray(y))
        return self

    def _transform(self, X: Any, y: Any = None) -> pd.DataFrame:
        found = self._vectors(_panel(X))
        return pd.DataFrame(found, columns=[f"{self.layer_}.{i}" for i in range(found.shape[1])])


class LayerClassifier(_Headed, BaseClassifier):
    """A logistic regression on standardised frozen features of one layer, its strength chosen by inner folds.

    Parameters: see `_Layers`; `folds` of the inner cross-validation. After `fit`, `layer_` is the layer that is read.

    Examples
    --------
    >>> from sktime.datasets import load_unit_test
    >>> from tsprobe.sktime import LayerClassifier
    >>> X, y = load_unit_test(split="train")
    >>> LayerClassifier("zoo/contrastive", layer="block.3").fit(X, y).predict(X).shape
    (20,)
    """

    _tags = _TAGS | {"object_type": "classifier", "capability:predict_proba": True}

    def __init__(
        self,
        encoder: str | Encoder = _DEFAULT,
        layer: str = "best",
        pooling: str = "mean",
        channels: Literal["mean", "concat"] = "mean",
        folds: int = 5,
        device: str = "auto",
    ) -> None:
        self.encoder, self.layer, self.pooling, self.channels = encoder, layer, pooling, channels
        self.folds, self.device = folds, device
        super().__init__()

    def _fit(self, X: Any, y: Any) -> LayerClassifier:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        panel = self._begin(X, Classification, y)
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        rarest = int(np.unique(y, return_counts=True)[1].min())
        if rarest >= 2:
            grid = {"logisticregression__C": np.logspace(-4, 2, 7)}
            head = GridSearchCV(head, grid, cv=min(self.folds, rarest))
        self.head_ = head.fit(self._vectors(panel), y)
        return self

    def _predict_proba(self, X: Any) -> Float[np.ndarray, "N C"]:
        return self.head_.predict_proba(self._vectors(_panel(X)))


class LayerRegressor(_Headed, BaseRegressor):
    """A ridge regression on standardised frozen features of one layer, its strength chosen by leaving one out.

    Parameters: see `_Layers`. After `fit`, `layer_` is the layer that is read.

    Examples
    --------
    >>> from sktime.datasets import load_unit_test
    >>> from tsprobe.sktime import LayerRegressor
    >>> X, y = load_unit_test(split="train")
    >>> LayerRegressor("zoo/contrastive", layer="block.3").fit(X, y.astype(float)).predict(X).shape
    (20,)
    """

    _tags = _TAGS | {"object_type": "regressor"}

    def __init__(
        self,
        encoder: str | Encoder = _DEFAULT,
        layer: str = "best",
        pooling: str = "mean",
        channels: Literal["mean", "concat"] = "mean",
        device: str = "auto",
    ) -> None:
        self.encoder, self.layer, self.pooling, self.channels, self.device = encoder, layer, pooling, channels, device
        super().__init__()

    def _fit(self, X: Any, y: Any) -> LayerRegressor:
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        panel = self._begin(X, Regression, np.asarray(y, float))
        head = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 15)))
        self.head_ = head.fit(self._vectors(panel), y)
        return self
