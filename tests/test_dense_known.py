"""Known answers of every generated dense task: tokens that carry the truth, carry it one step late, or carry noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn

import tsprobe as tp
from tsprobe.data.anomalies import anomalies
from tsprobe.data.events import KINDS, REACH, SPACING, events
from tsprobe.data.panel import as_panel
from tsprobe.data.states import regimes, waves
from tsprobe.errors import SpecError
from tsprobe.metrics import get_metric
from tsprobe.tasks import load_task
from tsprobe.tasks.base import Task
from tsprobe.tasks.dense import ask
from tsprobe.tasks.states import GENERATED

LENGTH = 192


class Carried(nn.Module):
    """A token a step, `[R, S, 1]`: as they come in, one step late, white noise."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, ("truth", "late", "noise")))

    def forward(self, x):
        x = x[..., None]
        return [block(x) for block in self.blocks][-1]


class Block(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x):
        if self.what == "noise":
            seeds = (x[..., 0].abs() @ torch.arange(1.0, x.shape[1] + 1)).tolist()  # a row's own, in any company
            generators = [torch.Generator().manual_seed(int(seed * 100)) for seed in seeds]
            return torch.stack([torch.randn(r.shape, generator=g) for r, g in zip(x, generators, strict=True)])
        return x.roll(1, dims=1) if self.what == "late" else x


@pytest.fixture(scope="module")
def oracle():
    return tp.load_encoder(Carried(), blocks="blocks.*", prepare="bs", tokens=1, name="oracle")


def truths(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every step of training and test series: `[N, S]`, or `[N, S, K]`."""
    how = GENERATED[name]
    made = [how.make(n, length=LENGTH, seed=(0, is_test)).truth for is_test, n in enumerate((10, 8))]
    columns = slice(how.first, how.first + len(how.labels))
    return tuple(t if t.ndim == 2 else t[..., columns] for t in made)


def carried(truth: np.ndarray, classes: int) -> np.ndarray:
    """What the oracle's series are, `[N, C, S]`: one-hot classes, or the values, 0 where there are none."""
    return (np.eye(classes)[truth] if truth.ndim == 2 else np.nan_to_num(truth)).transpose(0, 2, 1).astype(np.float32)


def oracle_task(name: str) -> tuple[Task, tuple[np.ndarray, np.ndarray]]:
    how, both = GENERATED[name], truths(name)
    panels = [as_panel(carried(t, len(how.labels))) for t in both]
    task = ask(name, how.kind, how.metric, panels, [list(t) for t in both], how.labels, steps="all")
    return task, both


def late_by_one(task: Task, both: tuple[np.ndarray, np.ndarray]) -> float:
    """Score of scikit-learn's least squares on the truth of the step before."""
    x, y = [], []
    for split, truth in zip(("train", "test"), both, strict=True):
        before = np.roll(carried(truth, task.n_classes), 1, axis=2).transpose(0, 2, 1)  # [N, S, C]
        steps, rows = getattr(task, f"steps_{split}"), task.rows(split)
        x.append(np.take_along_axis(before, steps[..., None], 1).reshape(-1, before.shape[2])[rows.at])
        y.append(rows.y)
    fitted = np.eye(task.n_classes)[y[0]] if task.kind == "classification" else y[0]
    p = torch.from_numpy(LinearRegression().fit(x[0], fitted).predict(x[1]))
    series = torch.from_numpy(task.rows("test").series)
    return float(get_metric(task.metric)(torch.from_numpy(y[1]), p[None], series=series)[0])


CEILING = {"neg_circular_error": 0.0}


@pytest.mark.parametrize("name", [name for name in GENERATED if name != "imputation"])
def test_truth_scores_at_the_ceiling_a_step_late_as_that_costs_and_noise_at_chance(oracle, name):
    task, both = oracle_task(name)
    study = tp.probe(oracle, task, layers=("block.0", "block.1"), controls=("chance",), resamples=100)
    rows = study.scores[study.scores.encoder == "oracle"]
    scores = dict(zip(rows.layer, rows.score, strict=True))
    (chance,) = study.scores[study.scores.encoder == "baseline/chance"].score
    ceiling = CEILING.get(task.metric, 1.0)
    assert scores["block.0"] == pytest.approx(ceiling, abs=2e-3)
    expected = late_by_one(task, both)
    assert scores["block.1"] == pytest.approx(expected, abs=0.01)
    assert expected < ceiling - 2e-3 or task.metric == "change_f1"  # a change may be found a step late
    assert abs(scores["block.2"] - chance) < 0.1
    assert scores["block.2"] < expected - 0.1


def test_events_are_where_their_offsets_say():
    """About an event the series is the waveform of its kind; in between only the background is there."""
    made = events(200, length=LENGTH, seed=3)
    again = events(200, length=LENGTH, seed=3)
    np.testing.assert_array_equal(made.values, again.values)
    offset, kinds = made.truth[..., 0], made.truth[..., 1:]
    near = ~np.isnan(offset)
    np.testing.assert_array_equal(kinds.sum(-1), near)  # of one kind
    assert np.nanmin(offset) == -REACH
    assert np.nanmax(offset) == REACH
    for row in offset:
        times = np.flatnonzero(row == 0)
        assert (np.diff(times) >= SPACING).all()
        for time in times:
            here = np.arange(max(time - REACH, 0), min(time + REACH + 1, LENGTH))
            np.testing.assert_array_equal(row[here], here - time)
    assert (offset == 0).any(1).all()
    x = made.values[:, 0]
    jump = np.abs(np.diff(x, axis=1, prepend=x[:, :1]))  # the background hardly moves in a step
    quiet = jump[~near].mean()
    strike = KINDS.index("strike")
    onset = (offset == 0) & (kinds[..., strike] == 1)
    assert jump[onset].mean() > 4 * quiet
    before = (offset < 0) & (kinds[..., strike] == 1)
    assert jump[before].mean() < 1.2 * quiet
    for kind in ("bump", "burst"):
        mid = (np.abs(offset) <= 3) & (kinds[..., KINDS.index(kind)] == 1)
        assert jump[mid].mean() > 1.2 * quiet
    shares = kinds[offset == 0].mean(0)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.06)
    with pytest.raises(SpecError):
        events(2, length=32, seed=0)


def test_event_tasks_by_name():
    timing, kinds = (load_task(f"dense/{n}?n_train=6&n_test=4&steps=9") for n in ("events", "event-kinds"))
    assert timing.test.fingerprint() == kinds.test.fingerprint()
    assert (timing.kind, timing.labels, timing.metric) == ("regression", ("offset",), "r2")
    assert (kinds.kind, kinds.labels, kinds.metric) == ("multilabel", KINDS, "auroc")
    assert np.nanmax(np.abs(timing.y_test)) <= REACH
    truth = events(4, length=512, seed=(0, 1)).truth
    for i, at in enumerate(timing.steps_test):
        known = ~np.isnan(timing.y_test[i, :, 0])
        np.testing.assert_array_equal(timing.y_test[i, known, 0], truth[i, at[known], 0])
        np.testing.assert_array_equal(kinds.y_test[i], truth[i, kinds.steps_test[i], 1:])


def test_borders_can_be_scored_beside_regions():
    """The J and the F of DAVIS, on one and the same task."""
    j, f = (load_task(f"dense/regimes?n_train=4&n_test=3&metric={m}") for m in ("jaccard", "change_f1"))
    assert (j.metric, f.metric) == ("jaccard", "change_f1")
    np.testing.assert_array_equal(j.y_test, f.y_test)
    rows = f.rows("test")
    y, series = torch.from_numpy(rows.y), torch.from_numpy(rows.series)
    perfect = torch.nn.functional.one_hot(y, 4).double()[None]
    assert get_metric("change_f1")(y, perfect, series=series) == get_metric("jaccard")(y, perfect, series=series) == 1
    merged = perfect.clone()
    merged[..., 0] = 2  # one state throughout: no border is found
    assert get_metric("change_f1")(y, merged, series=series) == 0


def test_what_is_generated_differs_between_training_and_test():
    for make in (events, anomalies, waves, regimes):
        train, test = (make(3, length=LENGTH, seed=(0, is_test)).values for is_test in (0, 1))
        assert (train != test).mean() > 0.9
