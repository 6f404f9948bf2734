"""Imputation: gaps with known values on both sides, the straight line as chance level, an oracle above it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

import tsprobe as tp
from tests.toys import StepsEncoder
from tsprobe.capture.windows import interpolate
from tsprobe.data.gaps import LONGEST, MIN_LENGTH, SHARE, SHORTEST, hidden
from tsprobe.data.panel import as_panel
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks import load_task
from tsprobe.tasks.imputation import ImputationTask, list_tasks, with_gaps

S = 96


@pytest.mark.parametrize("length", [MIN_LENGTH, 65, 150, 1000])
def test_gaps_lie_between_known_steps(length):
    for seed in range(50):
        mask = hidden(np.random.default_rng(seed), length)
        edges = np.diff(np.pad(mask.astype(int), 1))
        widths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
        assert not mask[0]
        assert not mask[-1]
        assert widths.min() >= SHORTEST
        assert widths.max() <= LONGEST
        assert SHARE * length <= mask.sum() < SHARE * length + LONGEST
    assert len({hidden(np.random.default_rng(seed), length).tobytes() for seed in range(50)}) == 50


def waves(n: int, seed: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    period, phase, level = rng.uniform(30, 60, (n, channels, 1)), rng.uniform(0, 6, (n, channels, 1)), 100.0
    return level + 5 * np.sin(2 * np.pi * np.arange(S) / period + phase)


def made(n: int = 30, channels: int = 1, **settings) -> tuple[ImputationTask, tuple[np.ndarray, np.ndarray]]:
    raw = waves(n, 0, channels), waves(n // 2, 1, channels)
    return with_gaps("own", (as_panel(raw[0]), as_panel(raw[1])), **settings), raw


def test_what_is_asked_is_hidden_and_the_answer_is_the_true_value_in_units_of_the_rest():
    task, raw = made(channels=2, steps=10)
    assert (task.family, task.kind, task.metric, task.labels) == (
        "dense",
        "regression",
        "r2",
        ("channel 0", "channel 1"),
    )
    for split, whole in zip(("train", "test"), raw, strict=True):
        panel, at, y = getattr(task, split), getattr(task, f"steps_{split}"), getattr(task, f"y_{split}")
        for seen, full, steps, targets in zip(panel.series, whole.astype(np.float32), at, y, strict=True):
            gap = np.isnan(seen).any(0)
            assert np.isnan(seen[:, gap]).all()  # in all channels at once
            assert gap[steps].all()
            assert len(set(steps.tolist())) == 10
            middle, spread = full[:, ~gap].mean(1), full[:, ~gap].std(1)
            np.testing.assert_allclose(targets, ((full[:, steps].T - middle) / spread), rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(seen[:, ~gap].mean(1), 0, atol=1e-4)
            np.testing.assert_allclose(seen[:, ~gap].std(1), 1, atol=1e-4)


def test_nothing_hidden_is_in_what_is_read():
    _, raw = made()
    other = [x.copy() for x in raw]
    task = with_gaps("own", (as_panel(raw[0]), as_panel(raw[1])))
    for values, panel in zip(other, (task.train, task.test), strict=True):
        for series, seen in zip(values, panel.series, strict=True):
            series[np.isnan(seen)] = 1e6
    changed = with_gaps("own", (as_panel(other[0]), as_panel(other[1])))
    assert changed.train.fingerprint() == task.train.fingerprint()
    assert changed.test.fingerprint() == task.test.fingerprint()
    asked = ~np.isnan(task.y_test)
    assert (changed.y_test[asked] > task.y_test[asked] + 1e4).all()
    np.testing.assert_array_equal(changed.line_test, task.line_test)


class Block(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x):
        if self.what == "noise":
            return torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))
        return x.roll(1, dims=1) if self.what == "late" else x


class Knows(nn.Module):
    """Finds the series in a table by what is left of it, and gives its true values, a token a step."""

    def __init__(self, task: ImputationTask, truth: np.ndarray) -> None:
        super().__init__()
        seen = np.stack([interpolate(s)[0] for panel in (task.train, task.test) for s in panel.series])
        self.register_buffer("seen", torch.from_numpy(seen))
        self.register_buffer("truth", torch.from_numpy(truth.astype(np.float32)))
        self.blocks = nn.ModuleList(map(Block, ("truth", "late", "noise")))

    def forward(self, x):
        x = self.truth[torch.cdist(x, self.seen).argmin(1)][..., None]
        return [block(x) for block in self.blocks][-1]


def test_an_oracle_is_at_the_ceiling_noise_at_the_mean_and_chance_is_the_line():
    task, raw = made(40)
    whole = []
    for full, panel in zip(raw, (task.train, task.test), strict=True):
        for series, seen in zip(full[:, 0], panel.series, strict=True):
            known = series[~np.isnan(seen[0])]
            whole.append((series - known.mean()) / known.std())
    oracle = tp.load_encoder(Knows(task, np.stack(whole)), blocks="blocks.*", prepare="bs", tokens=1, name="oracle")
    study = tp.probe(oracle, task, controls=("chance",), resamples=100)
    rows = study.scores[study.scores.encoder == "oracle"]
    scores = dict(zip(rows.layer, rows.score, strict=True))
    assert scores["block.0"] > 0.999
    assert 0.9 < scores["block.1"] < 0.995  # a step late costs something, not much
    assert abs(scores["block.2"]) < 0.05
    (chance,) = study.scores[study.scores.encoder == "baseline/chance"].score
    filled = np.stack([interpolate(s)[0] for s in task.test.series])
    line = np.take_along_axis(filled, task.steps_test, 1)
    known = ~np.isnan(task.y_test[..., 0])
    assert chance == pytest.approx(r2_score(task.y_test[..., 0][known], line[known]), abs=1e-6)
    assert 0.5 < chance < 0.98


def test_where_the_line_is_worse_than_the_mean_chance_is_the_mean():
    rng = np.random.default_rng(0)
    smooth, rough = waves(40, 3), rng.standard_normal((40, 1, S))
    panel = as_panel(np.concatenate([smooth, rough], 1))
    task = with_gaps("both", (panel, panel))
    train, test = task.guess
    np.testing.assert_array_equal(test[:, 0], task.line_test[..., 0].ravel()[task.rows("test").at])
    np.testing.assert_allclose(test[:, 1], np.nanmean(task.y_train[..., 1]))
    assert train.shape == task.rows("train").y.shape


def test_an_encoder_that_masks_reads_gaps_otherwise_than_one_that_cannot():
    task, _ = made(12)
    both = [StepsEncoder(), StepsEncoder(masks_missing=False)]
    scores = []
    for encoder in both:
        study = tp.probe(encoder, task, controls=("chance",), resamples=100)
        notes = str(study.provenance)
        assert ("masked" in notes) == encoder.facts.masks_missing
        scores.append(study.scores[study.scores.encoder == "toy"].score.to_numpy())
    assert (scores[0] != scores[1]).any()


def test_imputation_by_name():
    task, whole = load_task("imputation/BasicMotions?steps=8&seed=2"), load_task("uea/BasicMotions")
    assert task.name == "imputation/BasicMotions?seed=2&steps=8"
    assert (task.train.n, task.test.n, task.steps_test.shape, len(task.labels)) == (40, 40, (40, 8), 6)
    gap = np.isnan(task.test.series[3])
    left = whole.test.series[3].astype(np.float64)[0][~gap[0]]
    np.testing.assert_allclose(task.test.series[3][0][~gap[0]], (left - left.mean()) / left.std(), atol=1e-4)
    assert load_task("imputation/BasicMotions?steps=8").test.fingerprint() != task.test.fingerprint()
    listed = {info.name: info for info in list_tasks()}
    gunpoint = load_task("imputation/GunPoint?metric=neg_rmse")
    info = listed["imputation/GunPoint"]
    assert (info.n_train, info.n_test, info.length) == (gunpoint.train.n, gunpoint.test.n, (150, 150))
    assert isinstance(gunpoint, ImputationTask)
    generated = load_task("dense/imputation?n_train=5&n_test=4&steps=6&length=100&causal=1")
    assert generated.name == "dense/imputation?n_train=5&n_test=4&length=100&steps=6&causal=1"
    assert (generated.causal, generated.labels, generated.steps_train.shape) == (True, ("value",), (5, 6))
    assert generated.train.missing > 100


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("imputation/ItalyPowerDemand", "a series has 24 steps; gaps need at least 64"),
        ("imputation/GunPoint?steps=0", "steps=0; give at least 1"),
        ("imputation/GunPoint?share=2", "no setting 'share'; there are seed, steps"),
    ],
)
def test_what_cannot_be_imputed(name, complaint):
    with pytest.raises((DataError, SpecError), match=complaint):
        load_task(name)


def test_values_that_were_missing_before_are_not_asked_for():
    x = waves(6, 0, 2)
    x[0, 1] = np.nan  # a whole channel
    x[1, 0, 40:60] = np.nan
    task = with_gaps("own", (as_panel(x), as_panel(x)), steps=S)
    assert np.isnan(task.y_test[0, :, 1]).all()
    asked = task.steps_test[1]
    lost = (asked >= 40) & (asked < 60)
    assert np.isnan(task.y_test[1, lost, 0]).all()
    assert np.isfinite(task.guess[1]).all()
