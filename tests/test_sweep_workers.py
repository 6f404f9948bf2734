"""Several processes on one storage, and trials in MLflow."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_sweep import sweep

from tsprobe.tracking import default_uri, log_sweep


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a server that is there for one test, on a socket in a folder of its own."""
    found = [
        shutil.which(name) or shutil.which(name, path="/usr/lib/postgresql/15/bin") for name in ("initdb", "postgres")
    ]
    if not all(found) or find_spec("psycopg2") is None:
        pytest.skip("no PostgreSQL server or no psycopg2 here: install postgresql and psycopg2-binary to run this")
    user = "nobody" if os.geteuid() == 0 else None  # a server refuses to be run by root
    name = user or pwd.getpwuid(os.geteuid()).pw_name
    home = Path(tempfile.mkdtemp(prefix="tsprobe-pg-", dir="/tmp"))
    try:
        if user:
            shutil.chown(home, user)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": home}
        subprocess.run([found[0], "-D", home / "data", "-A", "trust", "--no-sync", "-U", name], check=True, **quiet)
        server = subprocess.Popen([found[1], "-D", home / "data", "-k", home, "-c", "listen_addresses=", "-F"], **quiet)
        try:
            until = time.monotonic() + 60
            while not (home / ".s.PGSQL.5432").exists():
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
            yield f"postgresql://{name}@/postgres?host={home}"
        finally:
            server.send_signal(signal.SIGINT)  # at once, not when the last client has gone
            server.wait()
    finally:
        shutil.rmtree(home)


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
def test_workers_share_postgresql(tmp_path: Path, postgres: str) -> None:
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
