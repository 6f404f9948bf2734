"""A study in MLflow: curves as steps, data sets, artefacts; and a store that cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import planted_encoder, planted_task

import tsprobe as tp
from tsprobe.cli import main
from tsprobe.study.spec import Tracking
from tsprobe.tracking import TrackingError, default_uri, log_study, loss_curves


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tp.Study:
    out = tmp_path_factory.mktemp("tracked") / "study"
    return tp.probe(planted_encoder(2), planted_task(), controls=("untrained",), resamples=200, out=out)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MLflow's own
def test_layers_are_steps_and_everything_is_there(study: tp.Study) -> None:
    from mlflow.tracking import MlflowClient

    assert (study.folder.parent / "mlflow.db").exists()
    client = MlflowClient(default_uri(study.folder))
    experiment = client.get_experiment_by_name("tsprobe")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"study", "planted on planted-task", "planted@untrained on planted-task"}
    child, parent = runs["planted on planted-task"], runs["study"].info.run_id
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.params["verdict"] == "hidden"
    curve = client.get_metric_history(child.info.run_id, "accuracy")
    expected = study.scores.query("encoder == 'planted'").set_index("layer_index").score
    assert {point.step: point.value for point in curve} == pytest.approx(dict(expected))
    assert [d.dataset.name for d in child.inputs.dataset_inputs] == ["planted-task"]
    artefacts = {file.path for file in client.list_artifacts(parent)}
    assert {"scores.csv", "verdicts.csv", "report.html", "spec.yaml", "provenance.json", "study.zarr"} <= artefacts
    assert runs["study"].data.params["version.tsprobe"]
    assert all(run.info.status == "FINISHED" for run in runs.values())


@pytest.mark.filterwarnings("default")
def test_a_store_that_cannot_be_reached_is_one_error(study: tp.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"cannot log to http://127.0.0.1:9"):
        log_study(study, "http://127.0.0.1:9")


@pytest.mark.filterwarnings("default")
def test_python_keeps_the_study_and_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = {"controls": (), "resamples": 100, "tracking": {"uri": "http://127.0.0.1:9"}, "out": tmp_path / "out"}
    with pytest.warns(UserWarning, match="cannot log to .*; the study is kept in"):
        study = tp.probe(planted_encoder(2), planted_task(), **settings)
    assert study.verdicts.verdict[0] == "hidden"


@pytest.mark.filterwarnings("default")
def test_the_study_is_done_although_the_store_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = tmp_path / "gone.yaml"
    config.write_text(
        "encoders: [{source: 'python:planted:build', name: planted, blocks: blocks.*, prepare: bs, tokens: 8}]\n"
        "tasks: ['process/k1?n_train=40&n_test=20&length=64']\ncontrols: []\nresamples: 100\n"
        "tracking: {uri: 'http://127.0.0.1:9'}\n"
    )
    monkeypatch.setattr("sys.argv", ["tsprobe", "run", str(config), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "the study itself is safe, run it again to log it" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.filterwarnings("default")
def test_losses_are_curves_of_a_run_for_each_tuning(study: tp.Study) -> None:
    """In the store that the study is logged to."""
    from mlflow.tracking import MlflowClient

    folder, said = study.folder.parent / "lifted", []
    rows = [{"step": s, "held_out": s % 2, "core block.1": 1.0 / (1 + s), "what? [x]": 2.0} for s in range(4)]
    with loss_curves(folder, {"recipe": "dense"}, Tracking(), complain=said.append) as note:
        note("dense", rows[:2])
        note("dense", rows[2:])
        note("dense control", [{"step": 1, "held_out": 0, "core": float("nan")}])
    client = MlflowClient(default_uri(folder))
    experiment = client.get_experiment_by_name("tsprobe")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    run = runs["lifted: dense"]
    assert "lifted: dense control" in runs
    assert (run.data.params["spec.recipe"], run.info.status) == ("dense", "FINISHED")
    for metric, steps in (("core block.1", (0, 2)), ("held_out.core block.1", (1, 3)), ("what_ _x_", (0, 2))):
        points = client.get_metric_history(run.info.run_id, metric)
        assert [p.step for p in points] == list(steps)
    assert said == []


@pytest.mark.filterwarnings("default")
def test_a_tuning_goes_on_without_its_store_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    for where in (Tracking(uri="http://127.0.0.1:9"), Tracking(enabled=False)):
        with loss_curves(tmp_path / "a", {}, where, complain=said.append) as note:
            note("dense", [{"step": 1, "held_out": 0, "core": 1.0}])
            note("dense", [{"step": 2, "held_out": 0, "core": 1.0}])
    assert len(said) == 1
    assert "cannot log to http://127.0.0.1:9" in said[0]
