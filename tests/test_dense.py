"""Dense tasks: known answers through a whole study, the user's own labels, and bad input."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import nn

import tsprobe as tp
from tests.test_steps import SummedEncoder
from tests.toys import StepsEncoder
from tsprobe.capture import Reading, Steps
from tsprobe.data.panel import as_panel
from tsprobe.data.states import REGIMES, STATE, regimes, waves
from tsprobe.embed import best_layer
from tsprobe.encoders.baselines import WINDOW, windows
from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.metrics import get_metric
from tsprobe.tasks import Dense, load_task
from tsprobe.tasks.base import Task
from tsprobe.tasks.dense import ask

PATCH, TOKENS, CLASSES = 4, 16, 3
OFF = {"enabled": False}
SETTINGS = {"controls": ("chance",), "resamples": 100}


class Block(nn.Module):
    """Passes its tokens on, one token later, or replaced by white noise."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x):
        if self.what == "noise":
            return torch.randn(x.shape, generator=torch.Generator().manual_seed(int(x[:, 0].abs().sum() * 1e4)))
        return x.roll(1, dims=1) if self.what == "shift" else x


class Oracle(nn.Module):
    """The truth is one-hot in the tokens, which are patches of the series; then it is late, then gone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, ("pass", "shift", "noise")))

    def forward(self, x):
        x = nn.functional.one_hot(x.reshape(len(x), -1, PATCH).long()[..., 0], CLASSES + 1).float()
        x = x + 1e-3 * torch.arange(x.shape[1])[:, None]  # what a token may know of its place
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def oracle():
    return tp.load_encoder(Oracle(), blocks="blocks.*", prepare="bs", tokens=PATCH, name="oracle")


def patches(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Series whose value is their class, `[N, S]` twice: one class a patch, and the next is the same more often."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (n, TOKENS))
    for t in range(1, TOKENS):
        labels[:, t] = np.where(rng.random(n) < 0.6, labels[:, t - 1], labels[:, t])
    labels = labels.repeat(PATCH, 1)
    return labels.astype(np.float32), labels


def oracle_task(**settings: object) -> Task:
    return Dense("oracle-task", patches(60, 0), patches(40, 1), steps=TOKENS, metric="accuracy", **settings)


def layer_scores(study) -> dict[str, float]:
    rows = study.scores[study.scores.encoder == "oracle"]
    return dict(zip(rows.layer, rows.score, strict=True))


def at_ends(labels: np.ndarray) -> np.ndarray:
    """Labels at the last step of each patch only."""
    told = labels.astype(object)
    told[:, np.arange(labels.shape[1]) % PATCH != PATCH - 1] = None
    return told


def test_truth_scores_at_the_ceiling_late_truth_as_the_shift_costs_and_noise_at_chance(oracle):
    (x, y), (x_test, y_test) = patches(60, 0), patches(40, 1)
    task = Dense("ends", (x, at_ends(y)), (x_test, at_ends(y_test)), metric="accuracy", causal=True)
    assert task.steps_test.tolist() == [list(range(PATCH - 1, 64, PATCH))] * 40
    study = tp.probe(oracle, task, **SETTINGS)
    scores = layer_scores(study)
    tokens = y_test[:, ::PATCH]
    assert scores["block.0"] == 1
    assert scores["block.1"] == pytest.approx((np.roll(tokens, 1, 1) == tokens).mean())
    assert 0.5 < scores["block.1"] < 0.85
    assert abs(scores["block.2"] - 1 / CLASSES) < 0.08
    (row,) = study.verdicts[study.verdicts.encoder == "oracle"].to_dict("records")
    keys = ("family", "chosen_layer", "final_layer", "verdict")
    assert tuple(row[key] for key in keys) == ("dense", "block.0", "block.2", "hidden")
    assert set(study.scores.pooling) == {"causal"}
    (chance,) = study.scores[study.scores.encoder == "baseline/chance"].score
    assert abs(chance - 1 / CLASSES) < 0.08


def test_labels_are_carried_from_the_training_steps_to_those_that_look_alike(oracle):
    (x, y), (x_test, y_test) = patches(60, 0), patches(40, 1)
    task = Dense("ends", (x, at_ends(y)), (x_test, at_ends(y_test)), metric="jaccard", causal=True)
    study = tp.probe(oracle, task, probes=("correspondence",), **SETTINGS)
    scores, tokens = layer_scores(study), y_test[:, ::PATCH]
    late = np.mean([jaccard_score(t, np.roll(t, 1), average="macro") for t in tokens])
    assert scores["block.0"] == 1
    assert scores["block.1"] == pytest.approx(late, abs=1e-6)
    assert scores["block.2"] < 1 / CLASSES
    (row,) = study.verdicts[study.verdicts.encoder == "oracle"].to_dict("records")
    assert (row["metric"], row["verdict"], row["final_layer"]) == ("jaccard", "hidden", "block.2")
    assert row["gap_low"] > 0.5


def test_between_tokens_the_nearer_one_decides(oracle):
    scores = layer_scores(tp.probe(oracle, oracle_task(), **SETTINGS))
    assert scores["block.0"] > 0.98  # steps are half a step off the middle of their patch


def test_intervals_are_those_of_series_not_of_steps(oracle):
    """Steps asked twice tell nothing new: all but the rows are as with each step once."""
    once = oracle_task()
    twice = Task(**{
        **{f: getattr(once, f) for f in ("family", "kind", "metric", "train", "test", "labels")}, "name": "twice",
        **{f: np.concatenate([getattr(once, f)] * 2, 1) for f in ("y_train", "y_test", "steps_train", "steps_test")},
    })  # fmt: skip
    study = tp.probe(oracle, [once, twice], **SETTINGS)
    gaps = study.verdicts[study.verdicts.encoder == "oracle"][["gap", "gap_low", "gap_high", "p_value"]].to_numpy()
    np.testing.assert_allclose(gaps[0], gaps[1], atol=1e-6)


def test_steps_without_a_label_are_neither_learnt_nor_scored(oracle):
    """Labels that are wrong but masked change nothing."""
    (x, y), (x_test, y_test) = patches(60, 0), patches(40, 1)
    rng = np.random.default_rng(5)
    hidden = rng.random(y.shape) < 0.5
    marked = np.where(hidden, -7, y)
    told = np.where(hidden, None, y.astype(object))
    tasks = [
        Dense(name, (x, labels), (x_test, y_test), steps=8, no_label=no_label)
        for name, labels, no_label in (("marked", marked, -7), ("told", told, None))
    ]
    assert tasks[0].labels == tasks[1].labels == ("0", "1", "2")
    np.testing.assert_array_equal(tasks[0].y_train, tasks[1].y_train)
    kept = np.take_along_axis(hidden, tasks[0].steps_train, 1)
    assert not kept.any()


def test_an_encoder_of_one_vector_a_series_is_left_out_with_the_reason():
    task = Dense("own", patches(20, 0), patches(20, 1), steps=4)
    summed_study = tp.probe(SummedEncoder("block.1"), task, controls=("chance",), resamples=100)
    assert set(summed_study.scores.encoder) == {"baseline/chance"}
    (left,) = summed_study.provenance["left_out"]
    assert left["encoder"] == "summed"
    assert left["reason"].startswith("not applicable: summed has one token for a whole series")
    other = tp.probe(SummedEncoder("block.0"), task, controls=("chance",), resamples=100)
    assert set(other.scores[other.scores.encoder == "summed"].layer) == {"block.0"}  # the other one knows of no steps


def test_a_study_is_resumed_and_tasks_of_the_same_steps_share_features(oracle, tmp_path):
    spec = {"controls": ("chance",), "resamples": 100, "tracking": OFF, "layers": ("embedding", "norm")}
    names = ["dense/state?n_train=20&n_test=20&length=64", "dense/phase?n_train=20&n_test=20&length=64"]
    encoder = tp.load_encoder("zoo/forecasting")
    first = tp.probe(encoder, names, out=tmp_path / "study", **spec)
    folders = list((tmp_path / "study" / "features").glob("zoo*"))
    assert {len(list(folder.glob("*.zarr"))) for folder in folders} == {2}
    again = tp.probe(encoder, names, out=tmp_path / "study", **spec)
    assert again.scores.equals(first.scores)


def test_features_need_not_be_kept(tmp_path):
    """Both ways give one study, of values that are partly masked, at other steps in training than in the test."""
    made = [waves(n, length=64, seed=n) for n in (20, 15)]
    truths = [list(m.truth) for m in made]
    truths[0][3][:] = np.nan
    truths[0][4][:, 1] = np.nan
    task = ask("own", "regression", "r2", [as_panel(m.values) for m in made], truths, STATE, steps=(12, 9))
    found = {
        way: tp.probe(StepsEncoder(), task, features=way, controls=("chance",), out=tmp_path / way, tracking=OFF)
        for way in ("kept", "statistics")
    }
    assert list((tmp_path / "kept" / "features").glob("toy*"))
    assert not list((tmp_path / "statistics" / "features").glob("toy*"))
    for table in ("scores", "verdicts", "diagnostics"):
        mine, theirs = (getattr(found[way], table) for way in ("statistics", "kept"))
        pd.testing.assert_frame_equal(mine, theirs, rtol=1e-5, atol=1e-7)
    assert len(found["kept"].diagnostics)


def test_a_baseline_sees_the_surroundings_of_a_step_and_in_a_causal_task_its_past():
    series = [np.arange(100.0)[None].repeat(2, 0), np.arange(5.0)[None].repeat(2, 0)]
    at = np.array([[50, 99], [0, 4]])
    for causal, first in ((False, 50 - WINDOW // 2), (True, 51 - WINDOW)):
        found = windows(series, Steps(at, causal))
        assert [w.shape for w in found] == [(2, WINDOW)] * 4
        np.testing.assert_array_equal(found[0][0], np.clip(np.arange(first, first + WINDOW), 0, 99))
        assert found[1].max() == 99
        assert set(found[2][0].tolist()) == ({0} if causal else set(range(5)))  # the ends are kept
    assert windows(series, Steps(at, True))[3][0, -1] == 4


def test_other_steps_are_other_features(oracle, tmp_path):
    at = np.arange(8).reshape(2, 4)
    assert repr(Steps(at)) != repr(Steps(at + 1)) != repr(Steps(at + 1, causal=True))
    assert repr(Reading(("steps4",), steps=Steps(at))) == repr(Reading(("steps4",), steps=Steps(at.copy())))


def test_folds_keep_the_steps_of_a_series_together(oracle):
    task = oracle_task()
    folds = task.folds(5, 0)
    assert folds.shape == (60,)
    assert np.bincount(folds).tolist() == [12] * 5
    rows = task.rows("train")
    assert (folds[rows.series].reshape(60, -1) == folds[:, None]).all()


def test_the_users_own_values_ragged():
    rng = np.random.default_rng(0)
    series = [rng.standard_normal((2, n)) for n in (30, 12, 50)]
    values = [s.T.copy() for s in series]  # [S, K]
    values[0][:, 1] = np.nan
    task = Dense("own", (series, values), (series, values), kind="regression", steps=20, labels=("a", "b"))
    assert task.steps_train.shape == (3, 20)
    assert task.y_train.shape == (3, 20, 2)
    assert task.labels == ("a", "b")
    assert np.isnan(task.y_train[1, 12:]).all()  # twelve steps only
    assert (task.steps_train[1, :12] == np.arange(12)).all()
    rows = task.rows("train")
    assert len(rows.at) == 20 + 12 + 20
    np.testing.assert_allclose(rows.y[20:32], series[1].T)
    assert task.metric == "r2"
    assert "20 steps of each asked about" in task.description


X, Y = patches(6, 0)


@pytest.mark.parametrize(
    ("train", "settings", "complaint"),
    [
        ((X, Y[:, :-1]), {}, r"training series 0 has 64 steps but labels of shape \[63\]|train series 0 has 64 steps"),
        ((X, Y[:5]), {}, "6 train series but labels of 5"),
        ((X, np.zeros_like(Y)), {}, "1 classes at the training steps"),
        ((X, np.full(Y.shape, np.nan)), {}, "0 classes at the training steps"),
        ((X, np.where(Y == 2, 0, Y)), {}, "test labels 2 do not occur in training"),
        ((X, Y), {"steps": 0}, "steps=0; give a number"),
        ((X, Y), {"steps": "some"}, "or 'all'"),
        ((X, Y), {"kind": "segmentation"}, "kind 'segmentation'; there are"),
        ((X, Y[..., None].repeat(2, -1)), {}, r"has labels \[64, 2\]; classes are \[S\]"),
        ((X, Y + np.inf), {"kind": "regression"}, "infinite training label"),
        ((X, np.full(Y.shape, "a")), {"kind": "regression"}, "are not numbers"),
        ((X, Y), {"kind": "multilabel"}, "are 0 or 1"),
        ((X, Y[..., None].repeat(2, -1) * 1.0), {"kind": "regression", "labels": ("a",)}, "1 label names for 2"),
        ((X, np.full(Y.shape, np.nan)), {"kind": "regression"}, "no training step has the value"),
        (X, {}, "must be a pair"),
    ],
)
def test_labels_that_do_not_fit_are_refused(train, settings, complaint):
    test = (X, Y)
    if settings.get("kind") == "regression" and np.ndim(train[1]) == 3:
        test = (X, Y[..., None].repeat(2, -1) * 1.0)
    with pytest.raises((DataError, SpecError), match=complaint):
        Dense("own", train, test, **settings)


def test_constant_series_score_at_chance(oracle):
    _, y = patches(40, 0)
    task = Dense("constant", (np.ones_like(X.repeat(7, 0)[:40]), y), (np.ones_like(y) * 1.0, y), metric="accuracy")
    scores = layer_scores(tp.probe(oracle, task, **SETTINGS))
    assert abs(scores["block.0"] - 1 / CLASSES) < 0.1


def test_generated_states_are_what_they_say():
    made = regimes(40, length=512, seed=1)
    assert made.values.shape == (40, 1, 512)
    assert set(np.unique(made.truth)) == set(range(len(REGIMES)))
    for state in range(len(REGIMES)):
        here = made.values[:, 0][made.truth == state]
        assert abs(here.mean()) < 0.15
        assert abs(here.var() - 1) < 0.15
    changes = (np.diff(made.truth, axis=1) != 0).sum(1)
    assert changes.min() >= 2
    drift = waves(5, length=256, seed=3)
    cos, sin, frequency, amplitude, level = np.moveaxis(drift.truth, -1, 0)
    np.testing.assert_allclose(cos**2 + sin**2, 1)
    rest = drift.values[:, 0] - level - 2**amplitude * cos
    assert 0.08 < rest.std() < 0.12
    angle = np.unwrap(np.arctan2(sin, cos), axis=1)
    np.testing.assert_allclose(np.diff(angle, axis=1) / (2 * np.pi), 2 ** frequency[:, :-1], atol=1e-9)
    assert np.exp2(frequency).max() <= 1 / 8
    assert np.exp2(frequency).min() >= 1 / 64


def test_generated_tasks_by_name():
    task = load_task("dense/regimes?n_train=10&n_test=8&steps=12&length=100&causal=1")
    assert task.name == "dense/regimes?n_train=10&n_test=8&length=100&steps=12&causal=1"
    assert (task.family, task.causal, task.steps_test.shape) == ("dense", True, (8, 12))
    assert task.fingerprint() != load_task(task.name.replace("&causal=1", "")).fingerprint()
    phase, state = (load_task(f"dense/{n}?n_train=10&n_test=8") for n in ("phase", "state"))
    assert phase.train.fingerprint() == state.train.fingerprint()
    np.testing.assert_array_equal(phase.y_test, state.y_test[..., :2])
    with pytest.raises(UnknownNameError):
        load_task("dense/regime")
    for wrong in ("regimes?n=3", "regimes?steps=many", "regimes?steps=0", "regimes?causal=2", "state?length=10"):
        with pytest.raises(SpecError):
            load_task(f"dense/{wrong}")
    assert json.dumps(task.description)
    assert get_metric(task.metric).name == "macro_f1"


def test_dense_tasks_stand_beside_others_in_one_study(oracle):
    """Poolings are for whole series; every probe that takes the kind reads steps."""
    (x, y), (x_test, y_test) = patches(30, 0), patches(30, 1)
    whole = tp.Classification("whole", train=(x, y[:, -1]), test=(x_test, y_test[:, -1]))
    dense = tp.Dense("steps", train=(x, y), test=(x_test, y_test), steps=6)
    study = tp.probe(oracle, [whole, dense], poolings=("mean", "last"), probes=("ridge", "logistic", "knn"), **SETTINGS)
    mine = study.scores[study.scores.encoder == "oracle"]
    assert set(mine[mine.task == "whole"].pooling) == {"mean", "last"}
    assert set(mine[mine.task == "steps"].pooling) == {"steps"}
    best = mine[(mine.task == "steps") & (mine.layer == "block.0")]
    assert dict(zip(best.probe, best.score > 0.95, strict=True)) == {"ridge": True, "logistic": True, "knn": True}


def test_what_dense_tasks_do_not_go_with(oracle):
    task = oracle_task()
    with pytest.raises(SpecError, match="dense tasks read steps by themselves"):
        tp.probe(oracle, task, poolings=("steps8",), **SETTINGS)
    with pytest.raises(SpecError, match="asks about steps, and embed gives one vector a series"):
        best_layer(oracle, task, Reading())
    with pytest.raises(DataError, match="steps for one split only"):
        dataclasses.replace(task, steps_test=None, y_test=task.y_test[:, 0])
    whole = tp.Classification("whole", train=(X, Y[:, 0]), test=(X, Y[:, 0]), metric="covering")
    with pytest.raises(DataError, match="needs to be told the series of each step"):
        tp.probe(oracle, whole, **SETTINGS)


TABLE = """series,x,y,label
a,1,2,up
a,1.5,,up
a,0,1,
b,3,1,down
b,2,2,up
"""


def folder(path, train: str = TABLE, test: str = TABLE):
    for name, text in (("train.csv", train), ("test.csv", test)):
        (path / name).write_text(text)
    return path


def test_a_folder_of_two_tables(tmp_path):
    task = load_task(folder(tmp_path))
    assert task.labels == ("down", "up")
    assert [s.shape for s in task.train.series] == [(2, 3), (2, 2)]
    assert task.train.missing == 1
    assert task.steps_train.tolist() == [[0, 1], [0, 1]]
    assert task.y_train.tolist() == [[1, 1], [0, 1]]
    values = TABLE.replace("label", "target.depth").replace("up", "1").replace("down", "-2.5")
    task = load_task(folder(tmp_path, values, values))
    assert (task.kind, task.labels) == ("regression", ("target.depth",))
    assert task.y_train[..., 0].tolist() == [[1, 1], [-2.5, 1]]
    grouped = "".join(f"{line},{g}\n" for line, g in zip(TABLE.split(), ("group", *"ppppp"), strict=True))
    assert load_task(folder(tmp_path, grouped, grouped)).groups.tolist() == ["p", "p"]


@pytest.mark.parametrize(
    ("train", "test", "complaint"),
    [
        (TABLE, TABLE.replace("series", "name"), "unlike columns"),
        (TABLE.replace("series", "name"), TABLE.replace("series", "name"), "a column series is due"),
        (TABLE.replace("label", "kind"), TABLE.replace("label", "kind"), "and label or target columns"),
        (TABLE.replace("b,3", "c,3").replace("b,2", "a,2"), TABLE, "must stand together"),
        (TABLE.replace("b,3", ",3"), TABLE, "row 5 names no series"),
        (TABLE.replace("1.5", "much"), TABLE, "column 'x' is not numbers"),
        ("series,label\na,b\na,c\n", "series,label\na,b\na,c\n", "no column is a channel"),
        ("", TABLE, "train.csv cannot be read"),
        (TABLE.replace("down", "up"), TABLE, "1 classes at the training steps"),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path, train, test, complaint):
    with pytest.raises(DataError, match=complaint):
        load_task(folder(tmp_path, train, test))
