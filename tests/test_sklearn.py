"""Layers as scikit-learn estimators: scikit-learn's own checks, and what people do with estimators."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from waves import Waves

from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.sklearn import LayerClassifier, LayerRegressor, LayerTransformer

WAVES = Waves()
HASH = "joblib's hash of a torch module is not that of its deep copy, with or without a fit between"
ONE = "the best layer cannot be chosen by one class or one series: DataError says so"
EXPECTED = {
    "LayerTransformer": {"check_estimators_overwrite_params": HASH},
    "LayerClassifier": {
        "check_estimators_overwrite_params": HASH, "check_classifiers_one_label": ONE, "check_fit2d_1sample": ONE,
    },
    "LayerRegressor": {"check_estimators_overwrite_params": HASH, "check_fit2d_1sample": ONE},
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    """The class is how fast a series swings; the second channel is noise."""
    rng = np.random.default_rng(0)
    y = np.array(["slow", "fast"])[np.arange(40) % 2]
    turns = np.where(y == "slow", 2, 5)[:, None] * np.arange(32) * 2 * np.pi / 32
    X = np.stack([np.cos(turns) + 0.3 * rng.standard_normal((40, 32)), rng.standard_normal((40, 32))], 1)
    return X, y


@pytest.mark.parametrize(
    "estimator",
    [LayerTransformer(WAVES), LayerClassifier(WAVES, folds=2), LayerRegressor(WAVES)],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.filterwarnings("ignore")  # scikit-learn's about the folds of its own tiny tables
def test_scikit_learns_checks_pass(estimator):
    expected = EXPECTED[type(estimator).__name__]
    found = check_estimator(estimator, expected_failed_checks=expected, on_fail=None, on_skip=None)
    outcomes = {one["check_name"]: one["status"] for one in found}
    assert len(found) > 40
    assert {name for name, status in outcomes.items() if status == "failed"} == set()
    assert {name for name, status in outcomes.items() if status == "xfail"} == set(expected)  # none has come to pass
    assert {name for name, status in outcomes.items() if status == "skipped"} == {"check_array_api_input"}


def test_both_rooms_read_the_same(data):
    from tsprobe import sktime

    X, y = data
    ours = LayerTransformer(WAVES, layer="block.0", pooling="std", channels="concat").fit(X)
    theirs = sktime.LayerTransformer(WAVES, layer="block.0", pooling="std", channels="concat").fit(X)
    np.testing.assert_array_equal(ours.transform(X), theirs.transform(X).to_numpy())
    assert ours.transform(X).shape == (40, 64)
    np.testing.assert_array_equal(
        LayerClassifier(WAVES).fit(X, y).predict_proba(X), sktime.LayerClassifier(WAVES).fit(X, y).predict_proba(X)
    )


def test_tables_are_univariate_series(data):
    X, _ = data
    table = LayerTransformer(WAVES).fit_transform(X[:, 0])
    np.testing.assert_array_equal(table, LayerTransformer(WAVES).fit_transform(X[:, :1]))


def test_it_learns_and_takes_other_lengths(data):
    X, y = data
    fitted = LayerClassifier(WAVES).fit(X[:30], y[:30])
    assert fitted.score(X[30:], y[30:]) > 0.8
    assert list(fitted.classes_) == ["fast", "slow"]
    assert fitted.predict(np.concatenate([X, X], 2)).shape == (40,)
    gappy = X[30:].copy()
    gappy[:, :, 3] = np.nan
    assert fitted.score(gappy, y[30:]) > 0.8
    speed = (y == "fast") * 3.0
    assert LayerRegressor(WAVES).fit(X[:30], speed[:30]).score(X[30:], speed[30:]) > 0.5


def test_the_layer_is_a_parameter_of_a_grid_in_a_pipeline(data):
    X, y = data
    pipe = make_pipeline(LayerTransformer(WAVES), LogisticRegression(max_iter=1000))
    grid = GridSearchCV(
        pipe, {"layertransformer__layer": ["block.0", "best"], "layertransformer__pooling": ["mean", "max"]}, cv=2
    ).fit(X, y)
    assert grid.best_score_ > 0.9
    again = pickle.loads(pickle.dumps(grid.best_estimator_))
    np.testing.assert_array_equal(again.predict(X), grid.predict(X))
    fresh = clone(grid.best_estimator_)
    assert not hasattr(fresh[0], "layer_")
    assert fresh[0].get_params()["layer"] == grid.best_params_["layertransformer__layer"]


def test_names_of_features_say_the_layer(data):
    X, _ = data
    table = LayerTransformer(WAVES, layer="block.0").set_output(transform="pandas").fit_transform(X)
    assert list(table.columns[[0, -1]]) == ["block.0.0", "block.0.31"]


def test_what_cannot_be_is_one_clear_error(data):
    X, y = data
    with pytest.raises(UnknownNameError, match=r"block\.1"):
        LayerTransformer(WAVES, layer="block1").fit(X)
    with pytest.raises(SpecError, match="chosen by targets"):
        LayerTransformer(WAVES, layer="best").fit(X)
    with pytest.raises(UnknownNameError, match="unknown pooling"):
        LayerTransformer(WAVES, pooling="median").fit(X)
    with pytest.raises(ValueError, match="1 features"):
        LayerClassifier(WAVES).fit(X, y).predict(X[:, :1])
