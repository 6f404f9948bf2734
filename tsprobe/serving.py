"""Encoders and estimators as MLflow models: logged, registered under an alias, and served.

    uri = log_estimator(clf, name="gunpoint", example=X, register="gunpoint", alias="champion")
    mlflow.pyfunc.load_model(uri).predict(X)                          # labels
    mlflow.pyfunc.load_model(uri).predict(X, params={"proba": True})  # probabilities

    mlflow models serve --model-uri models:/gunpoint@champion --env-manager local --port 5001
    curl 127.0.0.1:5001/invocations -H "Content-Type: application/json" -d '{"inputs": [[[0.1, ...]]]}'

A model is a folder of plain files (`tsprobe.served`), never a pickle: its encoder is cut at the layer that is read, so
that what comes after is neither kept nor run. Series are `[N, C, S]` of float64, of any number and length.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from tsprobe import served
from tsprobe.capture import Reading
from tsprobe.data.panel import Panel, as_panel
from tsprobe.encoders import load_encoder
from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, MissingPackageError, SpecError, UnknownNameError
from tsprobe.estimators import Headed
from tsprobe.tracking import TrackingError, open_store, telling

__all__ = ["TrackingError", "log_encoder", "log_estimator"]

_SHOWN = 2  # series in the input example


class Where(TypedDict, total=False):
    """Where a model goes, and what else it needs; all of it may be left out.

    `uri` is the store's address, MLflow's own by default, and `experiment` one of it. With `register` the model becomes
    a version of that registered model, with `alias` the one of that alias. An encoder that wraps a module of yours
    needs `source`, `python:package.module:function`, which builds the module or the encoder, and `code`, the files or
    folders in which it is.
    """

    uri: str | None
    experiment: str
    register: str | None
    alias: str | None
    source: str | None
    code: Sequence[str | Path]


def log_encoder(
    encoder: str | Encoder,
    *,
    layer: str = "final",
    pooling: str = "mean",
    channels: Literal["mean", "concat"] = "mean",
    name: str,
    example: Any,
    **where: Unpack[Where],
) -> str:
    """Log a layer of an encoder as a model that gives features `[N, D]`, and give the model's address.

    `example` are a few series in any form that `as_panel` takes, of one length. Further arguments: see `Where`.

    Raises `EncoderError` for an encoder that cannot be kept (see `served.write`), `TrackingError` where the store
    cannot be reached, `UnknownNameError` for a layer.
    """
    place = _place(where)
    found = load_encoder(encoder) if isinstance(encoder, str) else encoder
    layer = found.final if layer == "final" else layer
    if layer not in found.taps:
        raise UnknownNameError(f"layer of {found.name}", layer, [*found.taps, "final"])
    panel = _example(example)

    def write(folder: Path) -> served.Served:
        return served.write(folder, found, layer, Reading((pooling,), channels), None, panel, place["source"])

    return _log(write, panel, name, place)


def log_estimator(estimator: Headed, *, name: str, example: Any, **where: Unpack[Where]) -> str:
    """Log a fitted `LayerClassifier` or `LayerRegressor`, of `tsprobe.sklearn` or `tsprobe.sktime`.

    The model gives labels, with `params={"proba": True}` probabilities `[N, C]` in the order of the classes, or values.
    Arguments and errors: see `log_encoder`; also `SpecError` for what is no such estimator, or not fitted.
    """
    place = _place(where)
    if not isinstance(estimator, Headed) or not hasattr(estimator, "head_"):
        raise SpecError(f"{type(estimator).__name__} is no LayerClassifier or LayerRegressor that was fitted")
    panel, head = _example(example), served.Head.of(estimator.head_)

    def write(folder: Path) -> served.Served:
        reading = Reading((estimator.pooling,), estimator.channels)
        return served.write(folder, estimator.encoder_, estimator.layer_, reading, head, panel, place["source"])

    return _log(write, panel, name, place)


def _place(where: Where) -> Where:
    """With what was left out. Raises `TypeError` for an argument that there is not, as a call would."""
    unknown = sorted(set(where) - set(Where.__annotations__))
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    if where.get("alias") is not None and where.get("register") is None:
        raise SpecError(f"alias={where['alias']!r} is of a registered model: give register= its name")
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise MissingPackageError("mlflow", "logging a model") from error
    usual: Where = {"experiment": "tsprobe", "register": None, "alias": None, "source": None, "code": ()}
    return {**usual, **where, "uri": where.get("uri") or mlflow.get_tracking_uri()}


def _example(example: Any) -> Panel:
    panel = as_panel(example)
    if panel.ragged:
        raise DataError(
            "the example's series differ in length; models take arrays [N, C, S]: give series of one length"
        )
    return panel.take(range(min(len(panel), _SHOWN)))


def _log(write: Callable[[Path], served.Served], example: Panel, name: str, where: Where) -> str:
    uri = str(where["uri"])
    database = Path(uri.removeprefix("sqlite:///"))  # whose folder holds the artefacts too
    client, number, _ = open_store(database, uri, where["experiment"], "logging a model")
    with tempfile.TemporaryDirectory(prefix="tsprobe-") as folder:
        data = Path(folder, "served")
        model = write(data)
        with telling(uri), _logged(client, number, name, model) as logged:
            _save(Path(folder, "model"), data, model, example.stack().astype(np.float64), logged, where["code"])
            client.log_model_artifacts(logged.model_id, str(Path(folder, "model")))
        with telling(uri):
            return _registered(client, logged.model_id, where)


@contextlib.contextmanager
def _logged(client: Any, experiment: str, name: str, model: served.Served) -> Iterator[Any]:
    """A model in the store, ready when all went well, failed otherwise."""
    where = model.where
    params = {"encoder": where.encoder, "layer": where.layer, "pooling": where.pooling, "channels": where.channels}
    params |= {"gives": model.kind, "cut": str(model.encoder.cut is not None)}
    logged = client.create_logged_model(experiment, name=name, params=params, model_type="tsprobe")
    status = "FAILED"
    try:
        yield logged
        status = "READY"
    finally:
        client.finalize_logged_model(logged.model_id, status)


def _save(
    path: Path, data: Path, model: served.Served, example: np.ndarray, logged: Any, code: Sequence[str | Path]
) -> None:
    from mlflow.models import Model, ModelSignature, infer_signature
    from mlflow.pyfunc import save_model
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    inputs = Schema([TensorSpec(np.dtype(np.float64), (-1, example.shape[1], -1))])
    outputs = infer_signature(example, model.predict(example)).outputs
    params: Any = ParamSchema([ParamSpec("proba", "boolean", False)]) if model.kind == "labels" else None
    save_model(
        path,
        loader_module=served.__name__,
        data_path=str(data),
        code_paths=[str(file) for file in code] or None,
        mlflow_model=Model(
            artifact_path=logged.artifact_location, model_uuid=logged.model_id, model_id=logged.model_id
        ),
        signature=ModelSignature(inputs, outputs, params),
        input_example=example,
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "tsprobe")],
    )


def _registered(client: Any, model: str, where: Where) -> str:
    """The address of a model, by its alias or version where it is registered."""
    from mlflow.exceptions import MlflowException

    name, alias = where["register"], where["alias"]
    if name is None:
        return f"models:/{model}"
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    number = client.create_model_version(name, f"models:/{model}", model_id=model).version
    if alias is None:
        return f"models:/{name}/{number}"
    client.set_registered_model_alias(name, alias, number)
    return f"models:/{name}@{alias}"
