"""Encoders and estimators as MLflow models: what is kept and comes back, servers that answer, one that is gone."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import waves
from planted import planted_encoder, planted_task
from servers import answers, environment, free_port, python, running
from waves import Waves

import tsprobe as tp
from tsprobe import sktime
from tsprobe.capture import Reading, extract
from tsprobe.data.panel import as_panel
from tsprobe.errors import DataError, EncoderError, SpecError, UnknownNameError
from tsprobe.served import Head, read
from tsprobe.serving import TrackingError, log_encoder, log_estimator
from tsprobe.sklearn import LayerClassifier
from tsprobe.tracking import log_study

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own
OURS = {"source": "python:waves:Waves", "code": [waves.__file__]}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.array(["a", "b", "c"])[np.arange(30) % 3]
    X = rng.standard_normal((30, 2, 32))
    X[:, 0, ::4] += np.arange(30)[:, None] % 3
    return X, y


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of this module's own, and MLflow's default for its time."""
    folder = tmp_path_factory.mktemp("store")
    with default_store(f"sqlite:///{folder}/mlflow.db"):
        yield folder


@contextlib.contextmanager
def default_store(uri):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def champion(data, store):
    """Three classes, by a module of the user's own, under an alias."""
    fitted = LayerClassifier(Waves(), layer="block.0", folds=2).fit(*data)
    names = {"name": "classes", "register": "classes", "alias": "champion"}
    return fitted, log_estimator(fitted, example=data[0], **names, **OURS)


def test_a_classifier_comes_back_by_its_alias(data, champion):
    fitted, uri = champion
    assert uri == "models:/classes@champion"
    model = mlflow.pyfunc.load_model(uri)
    np.testing.assert_array_equal(model.predict(data[0]), fitted.predict(data[0]))
    chances = model.predict(data[0], params={"proba": True})
    np.testing.assert_allclose(chances, fitted.predict_proba(data[0]), atol=1e-6)  # float32 features
    assert str(model.metadata.get_input_schema().inputs[0].shape) == "(-1, 2, -1)"
    assert model.input_example.shape == (2, 2, 32)
    longer = np.concatenate([data[0], data[0]], 2)
    assert model.predict(longer).shape == (30,)


def test_no_pickle_is_kept(champion):
    folder = Path(mlflow.artifacts.download_artifacts(champion[1]))
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    assert kinds <= {"", ".json", ".yaml", ".txt", ".safetensors", ".npz", ".py"}
    with np.load(next(folder.rglob("head.npz")), allow_pickle=False) as arrays:
        assert list(arrays["classes"]) == ["a", "b", "c"]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_says_what_scikit_learn_does(classes):
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((40, 1, 16)), np.arange(40) % classes
    X[:, 0, 0] += 3 * y
    fitted = LayerClassifier(Waves(), layer="final", folds=2).fit(X, y)
    head, vectors = Head.of(fitted.head_), fitted._vectors(as_panel(X)).astype(np.float64)  # both reckon in that
    np.testing.assert_allclose(head.probabilities(vectors), fitted.head_.predict_proba(vectors), rtol=1e-9)
    np.testing.assert_array_equal(head.answers(vectors), fitted.head_.predict(vectors))


def test_a_regressor_of_sktime_and_its_values(data, store):
    X, _ = data
    fitted = sktime.LayerRegressor(Waves(), layer="best").fit(X, X[:, 0].mean(1))
    model = mlflow.pyfunc.load_model(log_estimator(fitted, name="values", example=X, **OURS))
    np.testing.assert_allclose(model.predict(X), fitted.predict(X), atol=1e-5)
    with pytest.raises(SpecError, match="proba is for classifiers"):
        model.get_raw_model().predict(X, {"proba": True})


def test_a_layer_is_kept_without_what_comes_after(data, store):
    X, _ = data
    encoder = tp.load_encoder("zoo/contrastive")
    uri = log_encoder(encoder, layer="block.1", pooling="max", name="zoo", example=X)
    model = mlflow.pyfunc.load_model(uri)
    whole = extract(encoder, as_panel(X), Reading(("max",), "mean"), layers=("block.1",)).matrix("block.1", "max")
    np.testing.assert_allclose(model.predict(X), whole, atol=1e-5)
    kept = next(Path(mlflow.artifacts.download_artifacts(uri)).rglob("model.safetensors"))
    weights = sum(p.numel() for p in encoder.module.parameters())
    assert kept.stat().st_size < weights  # float32: a quarter of all weights


def test_a_wrapped_module_is_built_by_its_function_and_wrapped_anew(store):
    task = planted_task(8)
    encoder = planted_encoder(3)  # other weights than planted:build gives
    X = np.stack(task.train.series).astype(float)
    uri = log_encoder(encoder, layer="block.2", name="own", example=X, source="python:planted:build")
    folder = next(Path(mlflow.artifacts.download_artifacts(uri)).rglob("served.json")).parent
    assert read(folder).encoder.final == "block.2"
    whole = extract(encoder, as_panel(X), Reading(), layers=("block.2",)).matrix("block.2", "mean")
    np.testing.assert_allclose(mlflow.pyfunc.load_model(uri).predict(X), whole, atol=1e-5)


def test_what_cannot_be_kept_is_one_clear_error(data, store):
    X, y = data
    fitted = LayerClassifier(Waves(), layer="block.0", folds=2).fit(X, y)
    with pytest.raises(SpecError, match="fitted"):
        log_estimator(LayerClassifier(Waves()), name="a", example=X)
    with pytest.raises(SpecError, match="register="):
        log_estimator(fitted, name="a", example=X, alias="champion", **OURS)
    with pytest.raises(DataError, match="differ in length"):
        log_estimator(fitted, name="a", example=[X[0], X[1, :, :9]], **OURS)
    with pytest.raises(UnknownNameError, match="unknown encoder 'waves'"):
        log_estimator(fitted, name="a", example=X)
    with pytest.raises(EncoderError, match="source="):
        log_encoder(planted_encoder(2), name="a", example=X[:, :1])
    with pytest.raises(EncoderError, match="does not read as this encoder does"):
        log_encoder(Waves(), layer="block.0", name="a", example=X, source="python:test_serving:build_other")
    with pytest.raises(UnknownNameError, match=r"block\.99"):
        log_encoder("zoo/contrastive", layer="block.99", name="a", example=X)


def build_other():
    """The same weights, read elsewhere."""
    other = Waves()
    other.prepare = lambda batch: Waves.prepare(other, type(batch)(2 * batch.values, batch.observed, batch.lengths))
    return other


def test_a_server_that_is_gone_is_one_error(data, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"cannot log to http://127.0.0.1:9"):
        log_encoder(Waves(), name="a", example=data[0], uri="http://127.0.0.1:9", **OURS)


@pytest.mark.slow
@pytest.mark.integration
def test_mlflow_serves_it_over_http(data, champion, store):
    """`mlflow models serve`, in a process that knows the user's module from the model alone."""
    fitted, uri = champion
    X, port = data[0][:4], free_port()
    command = ["-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    env = environment(MLFLOW_TRACKING_URI=mlflow.get_tracking_uri())
    address = f"http://127.0.0.1:{port}"

    def ask(body):
        request = urllib.request.Request(
            f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["predictions"]

    with running(python(*command), answers(f"{address}/ping"), store / "serve.log", env=env, cwd=store):
        assert ask({"inputs": X.tolist()}) == list(fitted.predict(X))
        chances = ask({"inputs": X.tolist(), "params": {"proba": True}})
    np.testing.assert_allclose(chances, fitted.predict_proba(X), atol=1e-6)


@pytest.mark.slow
@pytest.mark.integration
def test_a_tracking_server_with_postgresql(data, postgresql, tmp_path):
    """A study, and a model under an alias, through HTTP to a database that more than one can write to."""
    port, backend = free_port(), postgresql("mlflow")
    command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend, "--artifacts-destination", str(tmp_path / "artefacts")]
    env = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    address = f"http://127.0.0.1:{port}"
    study = tp.probe(
        planted_encoder(2), planted_task(40), controls=(), resamples=100, out=tmp_path / "study",
        tracking={"enabled": False},
    )  # fmt: skip
    with running(python(*command), answers(f"{address}/health"), tmp_path / "server.log", env=env, cwd=tmp_path):
        run = log_study(study, address)
        client = mlflow.MlflowClient(address)
        kept = client.get_run(run)
        assert kept.data.metrics["verdicts.hidden"] == 1
        assert "report.html" in {file.path for file in client.list_artifacts(run)}
        child = client.search_runs([kept.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run}'")[0]
        assert len(client.get_metric_history(child.info.run_id, "accuracy")) == len(study.scores)
        where = {"uri": address, "register": "waves", "alias": "best"}
        assert log_encoder(Waves(), name="waves", example=data[0], **where, **OURS) == "models:/waves@best"
        assert client.search_logged_models([kept.info.experiment_id])[0].status == "READY"
        with default_store(address):
            assert mlflow.pyfunc.load_model("models:/waves@best").predict(data[0]).shape == (30, 32)
    assert not list(tmp_path.glob("*.db"))


def test_an_argument_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match="'alais'"):
        log_encoder("zoo/jepa", name="zoo", example=np.zeros((2, 1, 64)), alais="best")
