"""A study in MLflow: one run for the study, a nested run for each encoder and task. Losses of a tuning as they come.

A sweep is a run with a nested run for each trial.

A layer's score is a metric whose step is the layer's index, so that the MLflow page draws the layer curve.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tsprobe.errors import MissingPackageError, TsprobeError

if TYPE_CHECKING:
    import pandas as pd

    from tsprobe.study import Study
    from tsprobe.study.spec import Tracking

ARTEFACTS = ("scores.csv", "verdicts.csv", "diagnostics.csv", "spec.yaml", "provenance.json", "report.html")
SWEEP_ARTEFACTS = ("trials.csv", "best.json", "grid.csv", "spec.yaml", "provenance.json", "report.html")


class TrackingError(TsprobeError):
    """The tracking store cannot be reached or refuses; the study itself is safe in its folder."""


def log_study(study: Study, uri: str | None = None, experiment: str = "tsprobe") -> str:
    """Log a finished study and give the id of its run.

    Without a `uri` the store is SQLite, `mlflow.db` beside the study's folder. Raises `TrackingError` where the store
    cannot be reached, `MissingPackageError` without MLflow.
    """
    client, number, uri = open_store(study.folder, uri, experiment, "logging a study")
    with telling(uri):
        return _log(client, number, study)


@contextlib.contextmanager
def loss_curves(
    folder: Path,
    settings: dict[str, Any],
    where: Tracking,
    *,
    complain: Callable[[str], None],
) -> Iterator[Callable[[str, list[dict[str, float]]], None]]:
    """A function that takes a tuning's name and rows of its losses, with `step` and `held_out`: a run for each tuning.

    `settings` are the runs' parameters. Runs that do not end count as failed. Where the store cannot be reached, now or
    later, or MLflow is not installed, `complain` is told once, and nothing more is logged: the tuning goes on.
    """
    failed = [] if where.enabled else ["not asked for"]
    runs: dict[str, str] = {}

    @contextlib.contextmanager
    def once() -> Iterator[None]:
        try:
            yield
        except (TrackingError, MissingPackageError) as error:
            failed.append(str(error))
            complain(f"{error}; losses are kept in losses.csv")

    if where.enabled:
        with once():
            client, number, uri = open_store(folder, where.uri, where.experiment, "logging loss curves")

    def note(name: str, rows: list[dict[str, float]]) -> None:
        if not failed:
            with once():
                log(name, rows)

    def log(name: str, rows: list[dict[str, float]]) -> None:
        now = int(time.time() * 1000)
        with telling(uri):
            if name not in runs:
                tags = {"tsprobe.alignment": folder.name}
                runs[name] = client.create_run(number, run_name=f"{folder.name}: {name}", tags=tags).info.run_id
                _batch(client, runs[name], {f"spec.{key}": value for key, value in settings.items()}, [], now)
            metrics = [
                (_metric_name(f"{'held_out.' if row['held_out'] else ''}{key}"), value, int(row["step"]))
                for row in rows
                for key, value in row.items()
                if key not in ("step", "held_out")
            ]
            _batch(client, runs[name], {}, metrics, now)

    status = "FAILED"
    try:
        yield note
        status = "FINISHED"
    finally:
        if runs and not failed:
            with once(), telling(uri):
                for run in runs.values():
                    client.set_terminated(run, status)


class Searched(Protocol):
    """A sweep, as `tsprobe.sweep` gives it: a row for each trial, the chosen one, its numbers, and its mark."""

    @property
    def folder(self) -> Path: ...

    @property
    def trials(self) -> pd.DataFrame: ...

    @property
    def best(self) -> dict[str, Any]: ...

    @property
    def token(self) -> str: ...

    @property
    def figures(self) -> dict[str, float]: ...


def log_sweep(found: Searched, spec: dict[str, Any], uri: str | None = None, experiment: str = "tsprobe") -> str:
    """Log a sweep and give the id of its run; trials are nested runs.

    A sweep that went on goes on in its run, and only trials that are not there are logged, each with one batch. Raises
    what `log_study` does.
    """
    client, number, uri = open_store(found.folder, uri, experiment, "logging a sweep")
    now = int(time.time() * 1000)
    with telling(uri):
        there = _runs(client, number, f"tags.`tsprobe.sweep` = '{found.token}'")
        if there:
            parent = there[0].info.run_id
        else:
            tags = {"tsprobe.sweep": found.token}
            parent = client.create_run(number, run_name=found.folder.resolve().name, tags=tags).info.run_id
            _batch(client, parent, {f"spec.{key}": value for key, value in spec.items()}, [], now)
        logged = {run.info.run_name for run in _runs(client, number, f"tags.`mlflow.parentRunId` = '{parent}'")}
        for row in found.trials.to_dict("records"):
            name = f"trial {row['number']}"
            if name not in logged and row["state"] != "running":
                _log_trial(client, number, parent, name, row)
        values = [(_metric_name(key), value, found.best["trial"]) for key, value in found.figures.items()]
        _batch(client, parent, {}, values, now)
        for file in SWEEP_ARTEFACTS:
            if (found.folder / file).exists():
                client.log_artifact(parent, str(found.folder / file))
        client.set_terminated(parent)
    return parent


def _runs(client: Any, experiment: str, filter_: str) -> list[Any]:
    found, page = [], None
    while page is None or page:
        some = client.search_runs([experiment], filter_, max_results=1000, page_token=page)
        found += some
        page = some.token or ""
    return found


def _log_trial(client: Any, experiment: str, parent: str, name: str, row: dict[str, Any]) -> None:
    now = int(time.time() * 1000)
    began = now - int(1000 * row["seconds"]) if row["seconds"] == row["seconds"] else now
    tags = {"mlflow.parentRunId": parent, "tsprobe.state": row["state"]}
    run = client.create_run(experiment, start_time=began, run_name=name, tags=tags).info.run_id
    measured = {key: row[key] for key in ("score", "parameters", "latency", "price") if key in row}
    known = ("number", "state", "seconds", *measured)
    params = {_metric_name(key): value for key, value in row.items() if key not in known and value == value and value}
    _batch(client, run, params, [(key, value, row["number"]) for key, value in measured.items()], now)
    client.set_terminated(run, "FAILED" if row["state"] == "fail" else "FINISHED", now)


def _metric_name(name: str) -> str:
    """MLflow's names hold letters, digits and a few signs."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def open_store(folder: Path, uri: str | None, experiment: str, purpose: str) -> tuple[Any, str, str]:
    """A client, the number of the experiment, and the store's address."""
    # A server that is gone should cost seconds, not MLflow's default of several minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError as error:
        raise MissingPackageError("mlflow", purpose) from error
    home = folder.resolve().parent
    uri = uri or default_uri(folder)
    with telling(uri):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        location = (home / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        number = found.experiment_id if found else client.create_experiment(experiment, artifact_location=location)
        return client, number, uri


@contextlib.contextmanager
def telling(uri: str) -> Iterator[None]:
    """MLflow's own errors as `TrackingError`, and no lines of its store's."""
    from mlflow.exceptions import MlflowException

    with _quiet():
        try:
            yield
        except (MlflowException, OSError) as error:
            raise TrackingError(f"cannot log to {uri}: {' '.join(str(error).split())[:300]}") from error


def _log(client: Any, experiment: str, study: Study) -> str:
    now = int(time.time() * 1000)
    parent = client.create_run(experiment, run_name=study.name, tags={"tsprobe.study": study.name}).info.run_id
    params = {f"spec.{key}": value for key, value in study.spec.items()} | {
        f"version.{key}": value for key, value in study.provenance["versions"].items()
    }
    seconds = {f"seconds.{stage}": value for stage, value in study.provenance["seconds"].items()}
    counts = {f"verdicts.{k}": v for k, v in study.verdicts.verdict.value_counts().items()}
    _batch(client, parent, params, [(key, value, 0) for key, value in (seconds | counts).items()], now)
    by_pair = study.scores.groupby(["encoder", "task"], sort=False)
    curves = dict(list(study.curves.groupby(["encoder", "task"], sort=False)))
    for row in study.verdicts.to_dict("records"):
        key = (row["encoder"], row["task"])
        _log_pair(client, experiment, parent, row, (by_pair.get_group(key), curves[key]), study, now)
    for name in ARTEFACTS:
        if (study.folder / name).exists():
            client.log_artifact(parent, str(study.folder / name))
    client.log_artifacts(parent, str(study.folder / "study.zarr"), "study.zarr")
    client.set_terminated(parent)
    return parent


def _log_pair(
    client: Any, experiment: str, parent: str, row: dict[str, Any], tables: tuple[pd.DataFrame, pd.DataFrame],
    study: Study, now: int,
) -> None:  # fmt: skip
    tags = {"mlflow.parentRunId": parent, "tsprobe.encoder": row["encoder"], "tsprobe.task": row["task"]}
    run = client.create_run(experiment, run_name=f"{row['encoder']} on {row['task']}", tags=tags).info.run_id
    scores, curve = tables
    metric = row["metric"]
    metrics = [(metric, s, step) for s, step in zip(curve.score, curve.layer_index, strict=True)]
    for readout, values in scores.groupby(["pooling", "probe"], sort=False):
        by_layer = values.groupby("layer_index").score.mean()
        metrics += [(f"{metric}.{'.'.join(readout)}", score, step) for step, score in by_layer.items()]
    metrics += [(key, row[key], 0) for key in ("gap", "gap_low", "gap_high", "p_value", "p_adjusted")]
    params = {
        k: row[k]
        for k in ("encoder", "objective", "task", "family", "metric", "final_layer", "chosen_layer", "verdict")
    }
    _batch(client, run, params, metrics, now)
    _log_data(client, run, row["task"], study.provenance["tasks"][row["task"]])
    client.set_terminated(run)


def _log_data(client: Any, run: str, task: str, facts: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name=task, digest=facts["sha256"][:36], source_type="tsprobe", source=facts["source"] or task,
        profile=f'{{"num_rows": {facts["n_train"] + facts["n_test"]}, "channels": {facts["channels"]}}}',
    )  # fmt: skip
    client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "probing")])])


def _batch(client: Any, run: str, params: dict[str, Any], metrics: list[tuple[str, float, int]], now: int) -> None:
    from mlflow.entities import Metric, Param

    kept = [Metric(k, float(v), now, int(step)) for k, v, step in metrics if v == v]  # MLflow's stores refuse NaN
    client.log_batch(run, metrics=kept[:1000], params=[Param(k, str(v)[:6000]) for k, v in params.items()])
    for begin in range(1000, len(kept), 1000):
        client.log_batch(run, metrics=kept[begin : begin + 1000])


@contextlib.contextmanager
def _quiet() -> Any:
    """MLflow's store migrations write dozens of log lines on first use."""
    import logging
    import warnings

    names = ("alembic", "mlflow")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def default_uri(folder: Path) -> str:
    return f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
