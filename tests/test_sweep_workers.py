"""Several processes on one storage, and trials in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_sweep import sweep

from tsprobe.tracking import default_uri, log_sweep


@pytest.mark.integration
def test_workers_share_a_journal(tmp_path: Path) -> None:
    found = sweep(tmp_path, workers=3, trials=20)
    assert list(found.trials.number) == list(range(20))
    assert set(found.trials.state) <= {"complete", "pruned"}
    assert len(list((tmp_path / "features").glob("*/*.zarr"))) == 2  # training series once, test series once
    more = sweep(tmp_path, workers=2, trials=25)
    assert list(more.trials.score.dropna())[: len(found.trials.score.dropna())] == list(found.trials.score.dropna())
    assert len(more.trials) == 25


@pytest.mark.integration
def test_workers_share_sqlite_in_the_folder(tmp_path: Path) -> None:
    found = sweep(tmp_path, workers=3, trials=12, storage=None)
    assert (tmp_path / "study.db").exists()
    assert sorted(found.trials.number) == list(range(12))


@pytest.mark.integration
def test_workers_share_postgresql(tmp_path: Path, postgresql: Callable[[str], str]) -> None:
    postgres = postgresql("sweep").replace("+psycopg2", "")  # as one who does not know of drivers gives it
    found = sweep(tmp_path, workers=3, trials=16, storage=postgres)
    assert sorted(found.trials.number) == list(range(16))
    assert found.best["inner_score"] > 0.8
    assert len(sweep(tmp_path, workers=1, trials=18, storage=postgres).trials) == 18


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MLflow's own
def test_trials_are_nested_runs_and_logged_once(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "sweep"
    found = sweep(folder, trials=5, pruner="none")
    spec = {"name": "sweep"}
    parent = log_sweep(found, spec)
    assert log_sweep(sweep(folder, trials=7, pruner="none"), spec) == parent
    client = MlflowClient(default_uri(folder))
    experiment = client.get_experiment_by_name("tsprobe")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"sweep"} | {f"trial {i}" for i in range(7)}
    first = found.trials.iloc[0]
    assert runs["trial 0"].data.tags["mlflow.parentRunId"] == parent
    assert runs["trial 0"].data.params["layer"] == first.layer
    assert runs["trial 0"].data.metrics["score"] == pytest.approx(first.score)
    assert {file.path for file in client.list_artifacts(parent)} >= {"trials.csv", "best.json", "report.html"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
