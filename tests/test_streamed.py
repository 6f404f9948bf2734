"""A study without kept features says what a study with kept features says, and reads its series once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toys import StepsEncoder

import tsprobe as tp
from tsprobe.capture import Reading, reading
from tsprobe.errors import SpecError
from tsprobe.probes import statistics
from tsprobe.study import make_spec, streamed
from tsprobe.study.streamed import Passes
from tsprobe.tasks.base import Task

N, M = 70, 40
POOLINGS = ("mean", "std", "segments2")
READINGS = {split: Reading(POOLINGS) for split in ("train", "test")}


@pytest.fixture(autouse=True)
def few_rows_wait(monkeypatch):
    monkeypatch.setattr(statistics, "BUFFERED", 24)


def task(kind: str = "regression") -> Task:
    """Ragged series of two channels with gaps, some read in windows; targets with unlike gaps of their own."""
    rng = np.random.default_rng(0)
    series = [rng.standard_normal((2, int(s))).astype(np.float32) for s in rng.integers(8, 60, N + M)]
    level = rng.standard_normal((N + M, 2))
    for x, y in zip(series, level, strict=True):
        x[0] += y[0]
        x[1, : x.shape[1] // 2] += y[1]
        x[1, 3] = np.nan
    if kind == "classification":
        y = (level[:, 0] > 0).astype(int) + (level[:, 1] > 0)
        return tp.Classification(kind, train=(series[:N], y[:N]), test=(series[N:], y[N:]))
    if kind == "multilabel":
        return tp.MultiLabel(kind, train=(series[:N], level[:N] > 0), test=(series[N:], level[N:] > 0))
    y = level + 0.1 * rng.standard_normal(level.shape)
    y[rng.random(N + M) < 0.2, 0] = np.nan
    return tp.Regression(kind, train=(series[:N], y[:N]), test=(series[N:], y[N:]))


def study(features: str, kind: str = "regression", out: Path | None = None, **settings: object) -> tp.Study:
    settings = {
        "poolings": POOLINGS,
        "seeds": (0, 1),
        "controls": (),
        "resamples": 200,
        "features": features,
    } | settings
    return tp.probe(StepsEncoder(context=24), task(kind), tracking={"enabled": False}, out=out, **settings)


def test_both_ways_give_the_same_study_of_a_regression(tmp_path: Path) -> None:
    kept, found = study("kept", out=tmp_path / "kept"), study("statistics", out=tmp_path / "found")
    assert list((tmp_path / "kept" / "features").iterdir())
    assert not (tmp_path / "found" / "features").exists()
    assert len(kept.scores) == 3 * 3 * 2  # layers, poolings, seeds
    for name in ("scores", "verdicts", "diagnostics"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(kept, name), rtol=1e-6)
    for mine, theirs in zip(found.tree.leaves, kept.tree.leaves, strict=True):
        assert set(mine.data_vars) == set(theirs.data_vars)
        for variable in ("inner", "strength", "score"):
            np.testing.assert_allclose(mine[variable], theirs[variable], rtol=1e-6)
            assert len(np.unique(mine[variable])) > 2
    notes = json.loads(next((tmp_path / "found").rglob("details.json")).read_text())["notes"]
    assert {k: notes["train"][k] for k in ("series", "features", "inner")} == {
        "series": N, "features": "statistics", "inner": "r2",
    }  # fmt: skip
    assert notes["test"]["series"] == M
    assert notes["train"]["missing_values"] == N


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_classes_and_labels_are_chosen_by_the_r2_of_their_codes(kind: str, tmp_path: Path) -> None:
    found = study("statistics", kind, out=tmp_path / "found")
    kept = study("kept", kind)
    notes = json.loads(next((tmp_path / "found").rglob("details.json")).read_text())["notes"]
    assert notes["train"]["inner"] == statistics.CODED_R2
    (mine,), (theirs,) = found.tree.leaves, kept.tree.leaves
    assert (mine["inner"] < theirs["inner"]).all()  # an R2, not a share of hits
    same = (mine["strength"] == theirs["strength"]).to_numpy()
    assert same.any()
    np.testing.assert_allclose(mine["score"].to_numpy()[same], theirs["score"].to_numpy()[same], atol=1e-12)
    assert (mine["score"] - theirs["score"]).max() < 0.15


@pytest.fixture
def passes_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of series of every batch that any encoder is given."""
    counted: list[int] = []
    load = reading.load

    def counting(panel, windows, **how):
        counted.append(len(windows))
        return load(panel, windows, **how)

    monkeypatch.setattr(reading, "load", counting)
    return counted


def test_one_pass_over_each_panel_serves_all_and_a_finished_study_reads_nothing(passes_made, tmp_path: Path) -> None:
    first = study("statistics", out=tmp_path / "found")
    windows = sum(passes_made)
    notes = json.loads(next((tmp_path / "found").rglob("details.json")).read_text())["notes"]
    assert windows == notes["train"]["windows"] + notes["test"]["windows"]
    again = study("statistics", out=tmp_path / "found")
    assert sum(passes_made) == windows
    pd.testing.assert_frame_equal(again.scores, first.scores)
    study("kept", out=tmp_path / "found")  # another question: nothing of the first is taken for its answer
    assert sum(passes_made) == 2 * windows


def test_seeds_with_the_same_folds_share_their_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    of = statistics.RidgeStatistics.of
    monkeypatch.setattr(statistics.RidgeStatistics, "of", lambda *a, **k: (made.append(a), of(*a, **k))[1])
    data = task()
    folds = {0: data.folds(5, 0), 1: data.folds(5, 1), 7: data.folds(5, 0)}
    found = streamed.read(
        Passes(StepsEncoder(), data, READINGS, POOLINGS, None, folds), np.arange(N), lambda steps: None
    )
    assert len(made) == 3 * 2  # poolings, folds
    assert set(found.cells) == {(p, s) for p in POOLINGS for s in folds}
    for pooling in POOLINGS:
        np.testing.assert_array_equal(found.cells[pooling, 0].inner, found.cells[pooling, 7].inner)
        assert (found.cells[pooling, 0].inner != found.cells[pooling, 1].inner).any()


def test_layers_of_unlike_width_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Widening(StepsEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.module.blocks[1] = torch.nn.Linear(6, 9)
            self.module.blocks[2] = torch.nn.Linear(9, 6)

    tables = [
        tp.probe(Widening(), task(), controls=(), resamples=200, tracking={"enabled": False}, features=way).scores
        for way in ("kept", "statistics")
    ]
    assert tables[0].layer.tolist() == ["block.0", "block.1", "block.2"]
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)


def passes(n: int = N, **more: object) -> Passes:
    data = task()
    return Passes(StepsEncoder(), data, READINGS, POOLINGS, None, {0: data.folds(5, 0)})


def test_auto_takes_statistics_where_they_are_smaller_than_features_above_the_limit(monkeypatch) -> None:
    how = passes()
    kept = 4 * N * 3 * 4 * 6 * 2  # bytes, rows, layers, slots, width, channels
    block = next(how.blocks("train"))
    assert streamed.statistics_bytes(how, block) == 8 * (5 * 2) * 3 * (2 * 12**2 + 24**2)  # folds x masks, segments: 24
    assert streamed.statistics_bytes(how, block) > kept
    monkeypatch.setattr(streamed, "KEPT_BYTES", kept - 1)
    assert not streamed.pays(how)  # above the limit, and yet smaller than statistics
    monkeypatch.setattr(streamed, "statistics_bytes", lambda passes, block: kept - 1)
    assert streamed.pays(how)
    monkeypatch.setattr(streamed, "KEPT_BYTES", kept)
    assert not streamed.pays(how)


def test_small_panels_are_not_asked_for_their_widths(passes_made) -> None:
    assert not streamed.pays(passes())
    assert not passes_made


def test_auto_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(streamed, "pays", lambda passes: True)
    study("auto", out=tmp_path / "a")
    assert not (tmp_path / "a" / "features").exists()
    study("auto", out=tmp_path / "b", probes=("ridge", "knn"))  # knn needs its neighbours
    assert (tmp_path / "b" / "features").exists()


def test_statistics_with_another_probe_are_a_mistake() -> None:
    settings = {"encoders": ["x"], "tasks": ["y"], "features": "statistics"}
    assert make_spec(settings).features == "statistics"
    message = "setting 'features': only ridge can do without kept features, not knn or logistic; take auto or kept"
    with pytest.raises(SpecError, match=message):
        make_spec(settings | {"probes": ["knn", "ridge", "logistic"]})
    with pytest.raises(SpecError, match="features"):
        make_spec(settings | {"features": "stream"})
