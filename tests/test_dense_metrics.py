"""Scores of dense tasks against the implementations that others use, and resampling of whole series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import f1_score, jaccard_score

from tsprobe import dense_metrics
from tsprobe.errors import DataError
from tsprobe.metrics import get_metric, mean_known
from tsprobe.stats import paired_gap, resample_counts, score_interval

N, CLASSES, R = 80, 5, 30


def sampled(seed: int = 0):
    """Tied scores; class 3 is never true, class 4 neither true nor predicted."""
    rng = np.random.default_rng(seed)
    p = rng.integers(0, 4, (2, N, CLASSES)) / 4
    p[..., 4] = -1
    return torch.from_numpy(rng.integers(0, 3, N)), torch.from_numpy(p)


def copies(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def test_macro_f1_is_that_of_scikit_learn_on_all_rows_and_on_copies():
    y, p = sampled()
    weights = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (R, N)))
    whole, resampled = get_metric("macro_f1")(y, p), get_metric("macro_f1")(y, p, weights)
    assert resampled.shape == (R, 2)
    for j in range(2):
        guess = p[j].argmax(-1).numpy()
        assert whole[j] == pytest.approx(f1_score(y, guess, average="macro", zero_division=0), abs=1e-12)
        for r in range(R):
            rows = copies(weights[r].numpy())
            expected = f1_score(y.numpy()[rows], guess[rows], average="macro", zero_division=0)
            assert resampled[r, j] == pytest.approx(expected, abs=1e-12)


def test_jaccard_is_that_of_scikit_learn_series_by_series():
    y, p = sampled()
    series = torch.arange(N) // 16  # in short series, not every class occurs
    found = get_metric("jaccard").each(y, p, series)
    assert found.shape == (2, 5)
    classes = set()
    for j in range(2):
        for s in range(5):
            true, guess = y[series == s].numpy(), p[j, series == s].argmax(-1).numpy()
            assert found[j, s] == pytest.approx(jaccard_score(true, guess, average="macro"), abs=1e-12)
            classes.add(len({*true, *guess}))
    assert len(classes) > 1
    assert dense_metrics.jaccard(y, scores(y, CLASSES)) == 1


def test_circular_error_is_the_mean_angle_between():
    rng = np.random.default_rng(0)
    true, said = rng.uniform(-np.pi, np.pi, (2, N, 2))
    length = rng.uniform(0.1, 3, (N, 2, 1))
    y = np.stack([np.cos(true), np.sin(true)], -1)
    p = length * np.stack([np.cos(said), np.sin(said)], -1)
    y[::5, 1] = np.nan
    weights = rng.integers(0, 3, (R, N))
    off = np.abs((said - true + np.pi) % (2 * np.pi) - np.pi)
    metric, shape = get_metric("neg_circular_error"), (N, 4)
    found = metric(torch.from_numpy(y.reshape(shape)), torch.from_numpy(p.reshape(shape)[None]))
    seen = np.arange(N) % 5 > 0
    assert -found[0] == pytest.approx((off[:, 0].mean() + off[seen, 1].mean()) / 2, abs=1e-12)
    resampled = metric(
        torch.from_numpy(y.reshape(shape)), torch.from_numpy(p.reshape(shape)), torch.from_numpy(weights)
    )
    for r in range(R):
        w = weights[r]
        expected = (np.average(off[:, 0], weights=w) + np.average(off[seen, 1], weights=w[seen])) / 2
        assert -resampled[r] == pytest.approx(expected, abs=1e-12)
    nowhere = metric(torch.from_numpy(y.reshape(shape)), torch.zeros(N, 4))
    assert -nowhere == pytest.approx(np.pi / 2)


def anomalies(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(60, 400))
    y = np.zeros(n)
    for start in rng.integers(0, n - 12, 3).tolist():
        y[start : start + int(rng.integers(1, 12))] = 1
    y[-1] = seed % 2
    s = rng.standard_normal(n) + 2 * y
    s = np.round(s * 2) / 2 if seed % 3 == 0 else s  # many ties
    return torch.from_numpy(y)[:, None], torch.from_numpy(s)[:, None]


# generate_curve(y, s, slidingWindow=20, version="opt") of the package vus 0.0.6, by the authors of the measure
VUS = (0.2055660523, 0.6216265162, 0.6625538655, 0.5509987522, 0.7695861542, 0.5819387067)


@pytest.mark.parametrize("seed", range(6))
def test_vus_pr_is_that_of_its_authors(seed):
    y, s = anomalies(seed)
    more = torch.stack([s, torch.zeros_like(s), s])
    found = dense_metrics.vus_pr(y, more)
    np.testing.assert_allclose(found[[0, 2]], VUS[seed], atol=1e-9)
    assert found[1] < found[0]


def test_vus_pr_of_perfect_scores_masked_steps_and_none():
    y, _ = anomalies(2)
    assert dense_metrics.vus_pr(y, y[None]) == 1
    single = torch.zeros(50, 1).double()
    single[20:30] = 1
    shaped = torch.arange(50).sub(24.5).abs().neg()[None, :, None].double()  # rises towards the anomaly
    assert dense_metrics.vus_pr(single, shaped) > 0.9
    assert dense_metrics.vus_pr(single, -shaped) < 0.2
    masked, kept = single.clone(), torch.arange(50) % 4 > 0
    masked[~kept] = torch.nan
    assert dense_metrics.vus_pr(masked, shaped).equal(dense_metrics.vus_pr(single[kept], shaped[:, kept]))
    assert dense_metrics.vus_pr(torch.zeros(50, 1), shaped).isnan().all()


def states(changes: list[int], n: int, classes: int = 3) -> torch.Tensor:
    """State by state in turn, `[n]`."""
    return (torch.arange(n)[:, None] >= torch.tensor(changes, dtype=torch.long)).sum(1) % classes


def scores(state: torch.Tensor, classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(state, classes).double()[None]


@pytest.mark.parametrize(
    ("true", "found", "n", "expected"),  # covering() of claspy 0.2.8, the code of van den Burg's TCPDBench
    [
        ([10, 20], [10, 30], 45, 2 / 3),
        ([], [10], 40, 0.75),
        ([3, 17, 18], [5, 18], 30, 0.8358974359),
        ([7], [], 20, 0.545),
    ],
)
def test_covering_is_that_of_tcpdbench(monkeypatch, true, found, n, expected):
    monkeypatch.setattr(dense_metrics, "_states", lambda p: p.argmax(-1))  # the rest of it is checked below
    both = torch.cat([scores(states(found, n)), scores(states(true, n))])
    assert dense_metrics.covering(states(true, n), both).tolist() == pytest.approx([expected, 1])


def test_a_single_step_in_another_state_is_no_run():
    truth = states([40], 100)
    flicker = truth.clone()
    flicker[[10, 60]] = 2
    assert dense_metrics.covering(truth, scores(flicker)) == 1
    assert dense_metrics.change_f1(truth, scores(flicker)) == 1
    assert dense_metrics.margin(100) == 2
    assert dense_metrics.margin(10) == 1


def test_change_f1_is_that_of_sktime_where_changes_lie_apart():
    from sktime.performance_metrics.detection import WindowedF1Score

    rng = np.random.default_rng(0)
    for _ in range(40):
        n = 300
        true, found = (np.sort(rng.choice(np.arange(1, 14), rng.integers(1, 6), replace=False)) * 20 for _ in range(2))
        found = found + rng.integers(-6, 7, len(found))
        reach = dense_metrics.margin(n)
        frames = [pd.DataFrame({"ilocs": c}) for c in (true, found)]
        # theirs leaves out a change that is early by the whole margin
        theirs = WindowedF1Score(margin=reach)(*frames)
        early = any(t - f == reach for t in true for f in found)
        if not early:
            assert dense_metrics._f1(true.tolist(), found.tolist(), reach) == pytest.approx(theirs)


def test_changes_are_matched_one_to_one_as_well_as_can_be():
    rng = np.random.default_rng(1)
    for _ in range(100):
        true, found = (np.sort(rng.choice(60, rng.integers(1, 9), replace=False)) for _ in range(2))
        fits = np.abs(true[:, None] - found[None]) <= 4
        pairs = fits[linear_sum_assignment(~fits)].sum()
        assert dense_metrics._f1(true.tolist(), found.tolist(), 4) == pytest.approx(
            2 * pairs / (len(true) + len(found))
        )
    assert dense_metrics._f1([], [], 4) == 1
    assert dense_metrics._f1([5], [], 4) == 0 == dense_metrics._f1([], [5], 4)


def test_change_points_of_states():
    truth = states([30, 70], 100)
    late = torch.cat([scores(states([32, 70], 100)), scores(states([33, 70], 100)), scores(states([30], 100))])
    assert dense_metrics.change_f1(truth, late).tolist() == pytest.approx([1, 0.5, 2 / 3])


def test_scores_of_series_are_averaged_over_those_that_have_one():
    (y, s), metric = anomalies(1), get_metric("vus_pr")
    z, t = anomalies(2)
    none = torch.zeros(9, 1).double()
    together = torch.cat([y, none, z]), torch.cat([s, none, t])[None]
    series = torch.tensor([4] * len(y) + [7] * 9 + [9] * len(z))
    each = metric.each(*together, series)
    np.testing.assert_allclose(each, [[VUS[1], np.nan, VUS[2]]], atol=1e-9)
    assert metric(*together, series=series)[0] == pytest.approx((VUS[1] + VUS[2]) / 2)
    weighted = mean_known(torch.arange(3), each[..., None], torch.tensor([[2, 1, 1], [0, 5, 3], [0, 1, 0]]))
    np.testing.assert_allclose(weighted[:, 0], [(2 * VUS[1] + VUS[2]) / 3, VUS[2], np.nan], atol=1e-9)
    with pytest.raises(DataError, match="needs to be told the series of each step"):
        metric(*together)
    with pytest.raises(DataError, match="weigh its notes of each series"):
        metric(*together, torch.ones(2, len(series)), series=series)


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_a_series_of_equal_steps_counts_as_one_sample(name):
    """Steps that say the same again change neither the interval nor the p-value."""
    rng = np.random.default_rng(3)
    y = torch.from_numpy(rng.integers(0, 3, N))
    good, bad = (torch.from_numpy(rng.standard_normal((2, N, 3))) + lift * scores(y) for lift in (1.2, 1))
    counts, metric = resample_counts(N, 200, seed=0), get_metric(name)
    plain = paired_gap(metric, y, good, bad, counts)
    steps = torch.arange(N).repeat_interleave(7)
    clustered = paired_gap(metric, y[steps], good[:, steps], bad[:, steps], counts, clusters=steps)
    assert clustered.value == pytest.approx(plain.value)
    assert (clustered.low, clustered.high, clustered.p_value) == pytest.approx((plain.low, plain.high, plain.p_value))
    as_if_apart = paired_gap(metric, y[steps], good[:, steps], bad[:, steps], resample_counts(7 * N, 200, seed=0))
    assert as_if_apart.high - as_if_apart.low < (plain.high - plain.low) / 2
    assert as_if_apart.p_value < plain.p_value
    expected = score_interval(metric, y, good, counts)
    assert score_interval(metric, y[steps], good[:, steps], counts, clusters=steps) == pytest.approx(expected)


def test_one_series_has_no_interval():
    y, p = sampled()
    one = torch.zeros(N, dtype=torch.long)
    gap = paired_gap(get_metric("macro_f1"), y, p[:1], p[1:], resample_counts(1, 100, seed=0), clusters=one)
    assert np.isnan([gap.low, gap.high]).all()
    assert gap.p_value > 0.2
    assert np.isnan(score_interval(get_metric("macro_f1"), y, p, resample_counts(1, 100, seed=0), clusters=one)).all()
