"""Sweeps over planted answers: what is found, what trials may see, what a stopped one leaves, what is written."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.linear_model import Ridge
from torch import Tensor, nn

import tsprobe as tp
from tsprobe.cli import main
from tsprobe.errors import DataError, SpecError, StorageError, TsprobeError
from tsprobe.probes import base, ridge
from tsprobe.study.pair import Pair
from tsprobe.sweep import Sweep, make_sweep_spec, run_sweep
from tsprobe.sweep import storage as kept
from tsprobe.sweep.bench import Bench
from tsprobe.tasks.base import Task

PATCH = 8
LAYERS = ("embedding", "block.0", "block.1", "block.2", "block.3")


class Steps(nn.Module):
    """A block that does one fixed thing to tokens; its weights are there to be counted."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.weight = what, nn.Parameter(torch.zeros(PATCH))

    def forward(self, x: Tensor) -> Tensor:
        x = x.square() if self.what == "square" else x
        return x * (torch.arange(PATCH) > 0) if self.what == "forget" else x

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Middle(nn.Module):
    """`[R, S]` to tokens of eight steps. The label is the size of the first step, its sign is noise: a linear readout
    of means sees it after it has been squared, in block.1, and before it is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Steps(what) for what in ("keep", "square", "forget", "keep"))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, PATCH)
        for block in self.blocks:
            x = block(x)
        return x


def build() -> nn.Module:
    """For configs: `source: python:test_sweep:build`."""
    return Middle()


def middle(name: str = "middle") -> Any:
    return tp.load_encoder(Middle(), blocks="blocks.*", prepare="bs", tokens=PATCH, name=name)


def sizes(n: int = 60, seed: int = 0, name: str = "sizes") -> Task:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(2 * n) % 2)
    x = rng.standard_normal((2 * n, 1, 4 * PATCH))
    x[:, 0, ::PATCH] = (0.3 + 1.7 * y[:, None]) * rng.choice([-1, 1], (2 * n, 4))
    return tp.Classification(name, train=(x[:n], y[:n]), test=(x[n:], y[n:]))


SPACE = {"poolings": ["mean", "max"], "probes": {"ridge": [0.01, 1.0], "knn": [1, 5]}, "standardise": [True, False]}


def sweep(folder: Path, task: Task | None = None, encoder: Any = None, **settings: Any) -> Sweep:
    task, encoder = task or sizes(), encoder or middle()
    given = {"encoders": [encoder.name], "tasks": [task.name], "space": SPACE, "trials": 8, "resamples": 100}
    given |= {"storage": f"journal:{folder}/journal.log", "tracking": {"enabled": False}} | settings
    fresh = given.pop("fresh", False)
    spec = make_sweep_spec(given)
    return run_sweep(spec, folder, encoders={encoder.name: encoder}, tasks={task.name: task}, fresh=fresh)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """One sweep that is compared with the grid, for tests that only look."""
    space = SPACE | {"combine": ["one", "mean", "concat"], "poolings": ["mean", "mean+first"], "layers": None}
    return sweep(tmp_path_factory.mktemp("searched"), space=space, trials=40, compare="grid", seed=1)


def test_a_planted_layer_is_found_and_read_on_the_test_set(searched: Sweep) -> None:
    best = searched.best
    assert "block.1" in best["setting"]["layers"]
    assert best["inner_score"] > 0.9
    assert best["test"]["score"] > 0.9
    assert best["test"]["low"] <= best["test"]["score"] <= best["test"]["high"]
    single = searched.trials.query("combine == 'one' and layer != 'block.1' and state == 'complete'")
    assert (single.score < 0.85).all()


def test_the_grid_has_no_better_setting_and_trials_score_as_it_does(searched: Sweep) -> None:
    grid, compared = pd.read_csv(searched.folder / "grid.csv"), searched.best["compared"]
    layers = len(LAYERS)
    assert compared["cells"] == len(grid) == (layers + 2 * layers * (layers - 1) // 2) * 2 * 2 * 4
    assert compared["within"]
    assert 1 <= compared["trials_to_within"] <= 40
    assert compared["best"] == grid.score.max() >= compared["best_of_sweep"] - 1e-9
    keys = ["layers", "combine", "pooling", "standardise", "probe", "strength"]
    by_setting = grid.set_index(keys).score
    complete = searched.trials.query("state == 'complete'")
    assert complete["combine"].nunique() > 1
    assert len(complete) > 5
    for row in complete.to_dict("records"):
        strength = row["ridge alpha"] if row["probe"] == "ridge" else row["knn k"]
        layers = {row["layer"]} if row["combine"] == "one" else {row["layer"], row["layer 2"]}
        named = "+".join(name for name in LAYERS if name in layers)  # in the order of the encoder
        combine = row["combine"] if len(layers) > 1 else "one"
        key = (named, combine, row["pooling"], row["standardise"], row["probe"], strength)
        assert row["score"] == pytest.approx(by_setting[key], abs=1e-9)


def test_inner_scores_are_those_of_a_study(searched: Sweep) -> None:
    """The best strength of each layer and probe, standardised as a study does it, on the folds of a study."""
    study = tp.probe(middle(), sizes(), controls=(), resamples=100, probes=("ridge",), tracking={"enabled": False})
    found = sweep(searched.folder.parent / "as-study", trials=1, compare="grid", space={"probes": ["ridge"]}, seed=0)
    inner = next(iter(study.tree.leaves))["inner"].squeeze()
    grid = pd.read_csv(found.folder / "grid.csv").groupby("layers").score.max()
    assert dict(grid) == pytest.approx({str(layer): float(inner.sel(layer=layer)) for layer in inner.layer.values})


def test_trials_never_see_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other test series with contrary labels change the test score, and nothing of the trials or the choice."""
    task = sizes()
    lies = replace(task, y_test=1 - task.y_test)
    reads: list[tuple[str, int]] = []
    read, done = Pair.encoder_features, []
    scores = Bench.scores
    monkeypatch.setattr(Bench, "scores", lambda self, setting: done.append(setting) or scores(self, setting))
    monkeypatch.setattr(
        Pair, "encoder_features", lambda self, e, split: reads.append((split, len(done))) or read(self, e, split)
    )
    straight, crooked = (sweep(tmp_path / t, one, seed=3) for t, one in (("straight", task), ("lies", lies)))
    columns = ["number", "state", "layer", "probe", "score"]
    pd.testing.assert_frame_equal(straight.trials[columns], crooked.trials[columns])
    assert straight.best["params"] == crooked.best["params"]
    assert straight.best["test"]["score"] == pytest.approx(1 - crooked.best["test"]["score"])
    assert [when for split, when in reads if split == "test"] == [8, 16]  # once each, after the last trial
    reads.clear()
    again = sweep(tmp_path / "straight", task, seed=3)
    assert [split for split, _ in reads] == ["train"]
    assert again.best == straight.best


def test_settings_have_names_of_their_own_and_files_their_columns(searched: Sweep) -> None:
    names = {path.name for path in searched.folder.iterdir()}
    assert {"trials.csv", "best.json", "spec.yaml", "provenance.json", "report.html", "grid.csv"} <= names
    table = pd.read_csv(searched.folder / "trials.csv")
    assert {"number", "state", "layer", "layer 2", "combine", "probe", "ridge alpha", "score", "seconds"} <= set(table)
    assert list(table.number) == list(range(40))
    assert set(table.state) == {"complete", "pruned"}  # some trials end after a fold
    assert table.query("probe == 'knn'")["ridge alpha"].isna().all()  # strengths belong to their probe
    best = json.loads((searched.folder / "best.json").read_text())
    assert {"trial", "params", "setting", "inner_score", "test", "cost"} <= set(best)
    assert best["cost"]["parameters"] < best["cost"]["whole"]["parameters"]
    assert json.loads((searched.folder / "provenance.json").read_text())["versions"]["optuna"]


def test_the_front_is_not_dominated_and_costs_grow_with_depth(tmp_path: Path) -> None:
    found = sweep(tmp_path, cost="parameters", sampler="nsga2", trials=24)
    table = found.trials
    assert set(table.state) == {"complete"}  # nothing is pruned where there are two objectives
    by_layer = table.groupby("layer").parameters.first()
    assert by_layer["block.1"] < by_layer["block.2"] < by_layer["block.3"]
    chosen = table.query(f"number == {found.best['trial']}").iloc[0]
    assert chosen.score == table.score.max()
    better = table[(table.score >= chosen.score) & (table.parameters < chosen.parameters)]
    assert better.empty
    assert "Score against cost" in (tmp_path / "report.html").read_text()


def test_the_grid_sampler_tries_every_setting_once(tmp_path: Path) -> None:
    found = sweep(tmp_path, sampler="grid", trials=3, pruner="none")
    settings = found.trials[["layer", "pooling", "probe", "standardise", "ridge alpha", "knn k"]]
    assert len(settings) == 5 * 2 * 2 * 4
    assert not settings.duplicated().any()
    assert len(sweep(tmp_path, sampler="grid", trials=3, pruner="none").trials) == len(settings)


@pytest.mark.parametrize("sampler", ["random", "gp"])
def test_samplers_by_name_and_strengths_between(tmp_path: Path, sampler: str) -> None:
    space = {"probes": {"ridge": {"low": 1e-4, "high": 10}, "knn": {"low": 1, "high": 9}}}
    found = sweep(tmp_path, sampler=sampler, space=space, trials=14)
    assert found.trials["ridge alpha"].dropna().between(1e-4, 10).all()
    assert (found.trials["knn k"].dropna() % 1 == 0).all()


def test_lengths_channels_and_two_encoders_are_searched(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    task = sizes()
    wide = [np.concatenate([x, rng.standard_normal(x.shape)], 0) for x in (*task.train.series, *task.test.series)]
    two = tp.Classification("two", train=(np.stack(wide[:60]), task.y_train), test=(np.stack(wide[60:]), task.y_test))
    a, b = (
        middle("a"),
        tp.load_encoder(nn.Sequential(Middle()), blocks="0.blocks.*", prepare="bs", tokens=PATCH, name="b"),
    )
    space = {
        "lengths": [None, 16],
        "channels": ["concat", "mean"],
        "probes": {"ridge": [0.1]},
        "layers": ["block.0", "block.1"],
    }
    spec = make_sweep_spec(
        {"encoders": ["a", "b"], "tasks": ["two"], "space": space, "sampler": "grid", "resamples": 100,
         "storage": f"journal:{tmp_path}/j.log"}
    )  # fmt: skip
    found = run_sweep(spec, tmp_path, encoders={"a": a, "b": b}, tasks={"two": two})
    assert len(found.trials) == 2 * 2 * 2 * 2
    assert found.best["params"]["layer"] == "block.1"
    assert found.best["params"]["length"] is None  # four patches say more than two
    assert len(list((tmp_path / "features").glob("*/*.zarr"))) == 2 * 2 * 2 + 1


def test_a_trial_without_a_score_fails_and_the_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = Bench.scores

    def some(self: Bench, setting: Any) -> Any:
        if setting.pooling == "max":
            yield np.nan
        elif setting.probe == "knn":
            raise DataError("no such rows")
        else:
            yield from scores(self, setting)

    monkeypatch.setattr(Bench, "scores", some)
    found = sweep(tmp_path, trials=16, sampler="random")
    failed = found.trials.query("state == 'fail'")
    assert set(failed.why) == {"no such rows", "the metric is not defined on the predictions"}
    assert len(found.trials) == 16  # they count: they would fail again
    assert found.best["setting"]["pooling"] == "mean"
    assert len(sweep(tmp_path, trials=16, sampler="random").trials) == 16
    monkeypatch.setattr(Bench, "scores", lambda *_: iter([np.nan]))
    with pytest.raises(DataError, match="no trial of sweep has a score: the metric is not defined"):
        sweep(tmp_path / "none", trials=2)


def test_what_a_dead_process_ran_is_failed_and_run_again(tmp_path: Path) -> None:
    sweep(tmp_path, trials=4)
    study = kept.load(
        make_sweep_spec({"encoders": ["m"], "tasks": ["t"]}),
        kept.Place(f"journal:{tmp_path}/journal.log", "sweep"),
        (0,),
    )
    dead = study.ask()
    dead.suggest_categorical("layer", LAYERS)
    table = sweep(tmp_path, trials=6).trials
    assert table.state.value_counts().get("fail") == 1
    assert table.query(f"number == {dead.number}").state.item() == "fail"
    assert len(table) == 7
    assert table.query("number == 5").layer.item() == dead.params["layer"]


@pytest.mark.integration
def test_a_killed_sweep_runs_only_the_missing_trials(tmp_path: Path) -> None:
    encoder = {"source": "python:test_sweep:build", "name": "m", "blocks": "blocks.*", "prepare": "bs", "tokens": PATCH}
    settings = {
        "encoders": [encoder], "tasks": ["process/k1?n_train=60&n_test=40&length=64"], "space": {"probes": ["ridge"]},
        "trials": 5000, "resamples": 100, "tracking": {"enabled": False}, "sampler": "random", "workers": 2,
    }  # fmt: skip
    config, out = tmp_path / "sweep.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(settings))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "tsprobe.cli", "sweep", str(config), "--out", str(out)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 500
        while len(_complete(out)) < 6:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(1)  # workers end with their parent
    before = _complete(out)
    time.sleep(0.5)
    assert _complete(out) == before
    sys.argv = [
        "tsprobe",
        "sweep",
        str(config),
        "--out",
        str(out),
        "--set",
        f"trials={len(before) + 3}",
        "--set",
        "workers=1",
    ]
    with pytest.raises(SystemExit, match="0"):
        main()
    after = _complete(out)
    assert before.items() <= after.items()
    table = pd.read_csv(out / "trials.csv")
    assert (table.state != "running").all()
    assert table.state.isin(["complete", "pruned"]).sum() == len(before) + 3


def _complete(folder: Path) -> dict[int, str]:
    """Number and state of the trials that ended by themselves."""
    if not (folder / "study.db").exists():
        return {}
    with sqlite3.connect(folder / "study.db", timeout=30) as connection:
        try:
            return dict(connection.execute("SELECT number, state FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"))
        except sqlite3.OperationalError:  # its tables are being made
            return {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "tpee"}, "unknown sampler 'tpee'; did you mean 'tpe'"),
        ({"pruner": "mediann"}, "unknown pruner 'mediann'; did you mean 'median'"),
        ({"storage": "nonsense"}, "journal:FILE"),
        ({"storage": "nosuchdb://here/there"}, "is of no kind that is known"),
        ({"storage": "postgresql://me:secret@127.0.0.1:9/none"}, "me:\\*\\*\\*@127.0.0.1:9/none cannot be used"),
        ({"spaces": {}}, "unknown setting 'spaces'; did you mean 'space'"),
        ({"space": {"pooling": ["mean"]}}, "unknown setting 'pooling'; did you mean 'poolings'"),
        ({"space": {"poolings": ["meen"]}}, "unknown pooling 'meen'; did you mean 'mean'"),
        ({"space": {"poolings": ["mean+clz"]}}, "unknown pooling 'clz'"),
        ({"space": {"layers": ["blok.1", "block.2"]}}, "did you mean 'block.1'"),
        ({"space": {"probes": ["rigde"]}}, "unknown probe 'rigde'; did you mean 'ridge'"),
        ({"space": {"probes": ["attentive"]}}, "no strengths for the probe 'attentive'; it takes ridge, logistic, knn"),
        ({"space": {"probes": {"ridge": [-1]}}}, "positive finite numbers"),
        ({"space": {"probes": {"knn": [1.5]}}}, "whole numbers of neighbours"),
        ({"space": {"probes": {"knn": [1, 999]}}}, "room for 24 at most"),
        ({"space": {"probes": {"ridge": {"low": 1, "high": 0.1}}}}, "low 1 is not below high 0.1"),
        ({"space": {"probes": {"ridge": {"low": 0.1, "high": 1}}}, "compare": "grid"}, "a grid needs lists"),
        ({"space": {"layers": ["block.1"], "probes": {"ridge": [1]}}}, "nothing to search"),
        ({"cost": "parameters", "pruner": "median"}, "cost adds a second"),
        ({"encoders": ["baseline/catch22"]}, "has no layers to search"),
        ({"tasks": ["dense/regimes"]}, "whole series"),
        ({"tasks": ["sizes", "ucr/GunPoint?metric=balanced_accuracy"]}, "one metric, not accuracy, balanced_accuracy"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_error(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    given = {"encoders": ["middle"], "tasks": ["sizes"], "storage": f"journal:{tmp_path}/j.log", "trials": 2} | settings
    with pytest.raises(TsprobeError, match=message) as caught:
        run_sweep(make_sweep_spec(given), tmp_path, encoders={"middle": middle()}, tasks={"sizes": sizes()})
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_by_two_names_is_not_counted_twice(tmp_path: Path) -> None:
    task, encoder = sizes(), middle()
    names = [task.name, f"{task.name}?m=2"]
    spec = make_sweep_spec({"encoders": [encoder.name], "tasks": names, "trials": 1, "tracking": {"enabled": False}})
    with pytest.raises(SpecError, match="are one task, sizes"):
        run_sweep(spec, tmp_path, encoders={encoder.name: encoder}, tasks=dict.fromkeys(names, task))


def test_a_folder_and_a_study_belong_to_one_sweep(tmp_path: Path) -> None:
    sweep(tmp_path / "a", trials=2)
    with pytest.raises(SpecError, match="holds a sweep with another seed; take --fresh"):
        sweep(tmp_path / "a", trials=2, seed=5)
    with pytest.raises(SpecError, match="was begun by another folder"):
        sweep(tmp_path / "b", trials=2, storage=f"journal:{tmp_path}/a/journal.log")
    with pytest.raises(SpecError, match="sizes is not what it was"):
        sweep(tmp_path / "a", sizes(seed=9), trials=2)
    other = sweep(tmp_path / "a", trials=3, seed=5, fresh=True)
    assert list(other.trials.number) == [0, 1, 2]


def test_a_worker_that_dies_is_told_and_what_is_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsprobe.sweep.trials._worker", _dies)
    with pytest.raises(StorageError, match=r"2 of 2 workers ended early \(exit code 7\)"):
        sweep(tmp_path, workers=2)
    monkeypatch.undo()
    assert len(sweep(tmp_path).trials) == 8


def _dies(*_: Any) -> None:
    sys.exit(7)


def test_names_with_markup_stay_names_on_the_page(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    space = {"layers": ["block.0", "block.1"], "probes": {"ridge": [0.1, 1.0]}}
    spec = make_sweep_spec(
        {"name": f"n {evil}", "encoders": [evil, "plain"], "tasks": [f"task {evil}"], "space": space, "trials": 8,
         "resamples": 100, "storage": f"journal:{tmp_path}/j.log"}
    )  # fmt: skip
    encoders = {name: middle(name) for name in (evil, "plain")}
    run_sweep(spec, tmp_path, encoders=encoders, tasks={f"task {evil}": sizes(name=f"task {evil}")})
    page = (tmp_path / "report.html").read_text()
    assert evil not in page
    assert "&lt;img src=x" in page
    assert "\\u003cimg" not in page  # what plotly is given is no tag to it either
    assert "\\u0026lt;img" in page
    assert "default-src 'none'" in page


def test_features_on_a_common_scale_are_an_unscaled_ridge() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 4)) * [1, 10, 0.1, 3]
    y, folds = x @ [1.0, 0.2, 3.0, 0.5], torch.arange(40) % 4
    target, features = base.Target("regression", torch.from_numpy(y)[:, None]), torch.from_numpy(x)[None]
    metric = tp.metrics.get_metric("r2")

    def prediction() -> np.ndarray:
        return (
            ridge.fit_predict(features, target, features, folds, metric, strengths=(0.1,)).prediction[0, :, 0].numpy()
        )

    with base.common_scale():
        common = prediction()
    expected = Ridge(alpha=0.1 * 40 * x.var(0).mean()).fit(x, y).predict(x)
    assert common == pytest.approx(expected, abs=1e-8)
    assert np.abs(prediction() - expected).max() > 0.1


def test_trials_that_were_stopped_stand_after_those_that_were_not() -> None:
    from tsprobe.report.sweep import _rows

    rows = [(0, "pruned", 0.9), (1, "complete", 0.5), (2, "failed", float("nan")), (3, "complete", 0.7)]
    trials = pd.DataFrame(rows, columns=["number", "state", "score"])
    assert [row[0] for row in _rows(trials)] == ["3", "1", "0", "2"]
