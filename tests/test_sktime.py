"""Layers as sktime estimators: sktime's own checks, and what people do with estimators."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sktime.datasets import load_unit_test
from sktime.pipeline import make_pipeline
from sktime.utils.estimator_checks import check_estimator
from waves import Waves

from tsprobe.encoders import load_encoder
from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.estimators import at_levels
from tsprobe.sktime import LayerClassifier, LayerForecaster, LayerRegressor, LayerTransformer

# a deep copy and a comparison of an encoder are those of a torch module; nothing of ours warns
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def train():
    return load_unit_test(split="train", return_type="numpy3D")


@pytest.fixture(scope="module")
def test():
    return load_unit_test(split="test", return_type="numpy3D")


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [LayerTransformer, LayerClassifier, LayerRegressor, LayerForecaster])
def test_sktime_checks_pass(estimator, monkeypatch):
    """With a tiny encoder, since they fit hundreds of times; examples in docstrings are run with their own."""
    monkeypatch.setattr("tsprobe.sktime.DEFAULT", "waves")
    monkeypatch.setattr(
        "tsprobe.estimators.load_encoder", lambda name: Waves() if name == "waves" else load_encoder(name)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(estimator, raise_exceptions=False, verbose=False)
    assert len(found) > 50
    assert {name: outcome for name, outcome in found.items() if outcome != "PASSED"} == {}


def test_features_are_those_of_the_layer(train):
    from tsprobe.capture import Reading, extract
    from tsprobe.data.panel import as_panel

    X, _ = train
    table = LayerTransformer("zoo/contrastive", layer="block.3", pooling="max").fit_transform(X)
    read = extract(load_encoder("zoo/contrastive"), as_panel(X), Reading(("max",)), layers=("block.3",))
    np.testing.assert_allclose(table.to_numpy(), read.matrix("block.3", "max"))
    assert list(table.columns[:2]) == ["block.3.0", "block.3.1"]


def test_the_best_layer_is_that_of_inner_folds(train):
    import tsprobe as tp
    from tsprobe.capture import Reading
    from tsprobe.embed import best_layer

    X, y = train
    fitted = LayerClassifier("zoo/contrastive").fit(X, y)
    task = tp.Classification("unit", train=(X, y), test=(X[:2], y[:2]))
    assert fitted.layer_ == best_layer(load_encoder("zoo/contrastive"), task, Reading())
    chosen = LayerTransformer("zoo/contrastive", layer="best").fit(X, y)
    assert chosen.layer_ == fitted.layer_


def test_it_learns(train, test):
    X, y = train
    fitted = LayerClassifier("zoo/contrastive", layer="block.5").fit(X, y)
    assert fitted.score(*test) > 0.7
    assert fitted.predict_proba(test[0]).shape == (22, 2)
    size = X[:, 0].std(1)
    predicted = LayerRegressor("fracast", layer="block.2").fit(X, size).predict(X)
    assert np.corrcoef(predicted, size)[0, 1] > 0.9


def test_pipelines_grids_and_pickles(train, test):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    X, y = train
    pipe = make_pipeline(LayerTransformer("zoo/contrastive", layer="block.3"), RandomForestClassifier(random_state=0))
    assert pipe.fit(X, y).predict(test[0]).shape == (22,)
    grid = GridSearchCV(
        LayerClassifier("zoo/contrastive"), {"layer": ["embedding", "block.5"], "pooling": ["mean", "max"]}, cv=2
    ).fit(X, y)
    assert grid.best_params_["layer"] in ("embedding", "block.5")
    again = pickle.loads(pickle.dumps(grid.best_estimator_))
    np.testing.assert_array_equal(again.predict(test[0]), grid.predict(test[0]))


def test_ragged_series_and_an_encoder_of_ones_own(train):
    X, y = train
    ragged = [pd.DataFrame(x[0, : 20 - i % 5]) for i, x in enumerate(X)]
    encoder = load_encoder("zoo/contrastive").truncate("block.2")
    fitted = LayerClassifier(encoder, layer="final").fit(ragged, y)
    assert fitted.layer_ == "block.2"
    assert len(fitted.predict(ragged)) == len(y)


def test_what_cannot_be_is_one_clear_error(train):
    X, y = train
    with pytest.raises(UnknownNameError, match=r"block\.1"):
        LayerTransformer("zoo/contrastive", layer="block1").fit(X)
    with pytest.raises(SpecError, match="chosen by targets"):
        LayerTransformer("zoo/contrastive", layer="best").fit(X)
    with pytest.raises(UnknownNameError, match="zoo/contrastive"):
        LayerClassifier("zoo/contrastiv").fit(X, y)


@pytest.fixture(scope="module")
def passengers():
    from sktime.datasets import load_airline

    return load_airline()[:60]


def test_forecasts_are_those_of_the_head_that_studies_fit(passengers):
    """Through the gluonts predictor, whose scores are those of a study."""
    import tsprobe as tp
    from tsprobe.forecasting import predictor

    fitted = LayerForecaster(Waves(), layer="block.0", season=12).fit(passengers, fh=[1, 4, 6])
    known = passengers.to_numpy(float)
    task = tp.Forecasting("same", np.append(known, np.zeros(6)), horizon=6, season=12, stride=1)
    entry = {"start": pd.Period("1949-01", "M"), "target": known}
    [expected] = predictor(Waves(), task, "block.0").predict([entry])
    found = fitted.predict_quantiles(alpha=[0.1, 0.5, 0.9])
    for level in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(
            found.xs(level, axis=1, level=1)[found.columns[0][0]], expected.quantile(level)[[0, 3, 5]]
        )
    np.testing.assert_array_equal(fitted.predict().to_numpy(), found.iloc[:, 1].to_numpy())
    assert [str(month) for month in fitted.predict().index] == ["1954-01", "1954-04", "1954-06"]


def test_a_panel_shares_one_head_and_each_series_keeps_its_size(passengers):
    frames = {name: size * passengers.to_frame("y") for name, size in (("small", 1.0), ("large", 10.0))}
    panel = pd.concat(frames, names=["name", "month"])
    fitted = LayerForecaster(Waves(), layer="best", context=24).fit(panel, fh=[1, 2])
    found = fitted.predict()
    np.testing.assert_allclose(found.loc["large"], 10 * found.loc["small"], rtol=1e-4)  # features are float32
    low, high = fitted.predict_interval(coverage=0.95).to_numpy().T
    assert (low < found.y).all()
    assert (found.y < high).all()


def test_levels_of_a_normal_distribution_come_back():
    from scipy.stats import norm

    from tsprobe.forecast_metrics import LEVELS

    given = np.array([3 + 2 * norm.ppf(LEVELS)])
    wanted = [0.01, 0.1, 0.4, 0.5, 0.9, 0.995]
    np.testing.assert_allclose(at_levels(given, wanted)[0], 3 + 2 * norm.ppf(wanted))
    np.testing.assert_allclose(at_levels(given, [0.25])[0, 0], given[0, 1:3].mean())


def test_too_short_to_forecast_is_one_clear_error(passengers):
    with pytest.raises(DataError, match="no training window"):
        LayerForecaster(Waves()).fit(passengers[:6], fh=[1, 2, 3, 4, 5, 6])
