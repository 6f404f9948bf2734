"""Metrics against scikit-learn on plain and on resampled data; resampling by weights against real copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as referee

from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.metrics import METRICS, get_metric

# Both sides are float64 sums of at most a few hundred terms of order 1.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
N, K, LEAD, R = 60, 4, (2, 3), 40


def classes(rng):
    """Scores on a coarse grid (ties), one class of K that never occurs."""
    return torch.from_numpy(rng.integers(0, K - 1, N)), torch.from_numpy(rng.integers(0, 5, (*LEAD, N, K)) / 4)


def probabilities(rng):
    """Shares of few votes, so that many confidences are the edge of a bin, such as 1/3, or 1."""
    votes = rng.integers(0, 3, (*LEAD, N, K)) * rng.integers(0, 2, (*LEAD, N, K)) + np.eye(K)[rng.integers(0, K, N)]
    return torch.from_numpy(rng.integers(0, K - 1, N)), torch.from_numpy(votes / votes.sum(-1, keepdims=True))


def labels(rng):
    """Tied scores; label 2 has one class only, label 3 is partly unknown."""
    y = rng.integers(0, 2, (N, K)).astype(float)
    y[:, 2] = 1
    y[::3, 3] = np.nan
    return torch.from_numpy(y), torch.from_numpy(rng.integers(0, 8, (*LEAD, N, K)) / 7)


def values(rng):
    """Targets of very unlike scale; one constant, one partly masked, one known once."""
    y = rng.normal(size=(N, K + 2)) * [1e-9, 1.0, 1e6, 1, 1, 1] + [0, 5, 0, 0, 0, 0]
    p = y + rng.normal(size=(*LEAD, *y.shape)) * y.std(0) / 2
    y[:, 3] = 0.1
    y[rng.random(N) < 0.4, 4] = np.nan
    y[1:, 5] = np.nan
    return torch.from_numpy(y), torch.from_numpy(p)


CASES = {
    "accuracy": classes,
    "balanced_accuracy": classes,
    "neg_ece": probabilities,
    "auroc": labels,
    "r2": values,
    "neg_rmse": values,
}


def expected(name: str, y: np.ndarray, p: np.ndarray) -> float:
    """The same by scikit-learn, for one prediction [N, K], column by column on the known rows."""
    if name == "accuracy":
        return referee.accuracy_score(y, p.argmax(-1))
    if name == "balanced_accuracy":
        found = p.argmax(-1)
        return float(np.mean([(found[y == c] == c).mean() for c in np.unique(y)]))
    if name == "neg_ece":  # not in scikit-learn: the words of Guo et al. (2017), bin by bin
        confidence, hit, total = p.max(-1), p.argmax(-1) == y, 0.0
        for m in range(15):
            rows = (m / 15 < confidence) & (confidence <= (m + 1) / 15)
            total += rows.mean() * abs(hit[rows].mean() - confidence[rows].mean()) if rows.any() else 0
        return -total
    columns = []
    for k in range(y.shape[1]):
        seen = ~np.isnan(y[:, k])
        a, b = y[seen, k], p[seen, k]
        if name == "neg_rmse":
            columns += [-referee.root_mean_squared_error(a, b)] if seen.any() else []
        elif len(np.unique(a)) > 1:
            columns.append(referee.roc_auc_score(a, b) if name == "auroc" else referee.r2_score(a, b))
    return float(np.mean(columns)) if columns else np.nan


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_scikit_learn_and_keeps_leading_axes(name):
    y, p = CASES[name](np.random.default_rng(0))
    score = get_metric(name)(y, p)
    assert score.shape == LEAD
    assert score.dtype == torch.float64
    want = [[expected(name, y.numpy(), p[i, j].numpy()) for j in range(LEAD[1])] for i in range(LEAD[0])]
    assert len({round(v, 6) for row in want for v in row}) > 1  # not one constant
    np.testing.assert_allclose(score, want, **CLOSE)


def test_balanced_accuracy_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    y = rng.integers(0, K, N)
    p = rng.random((N, K))
    score = get_metric("balanced_accuracy")(torch.from_numpy(y), torch.from_numpy(p))
    assert score.item() == pytest.approx(referee.balanced_accuracy_score(y, p.argmax(-1)), rel=1e-12)
    assert score.item() != pytest.approx(referee.accuracy_score(y, p.argmax(-1)), rel=1e-6)


def test_calibration_error_is_that_of_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.functional.classification").multiclass_calibration_error
    rng = np.random.default_rng(3)
    y, p = torch.from_numpy(rng.integers(0, K, N)), torch.from_numpy(rng.dirichlet(np.full(K, 0.5), N))
    score = get_metric("neg_ece")(y, p)
    assert score.item() == pytest.approx(-theirs(p, y, num_classes=K, n_bins=15).item(), rel=1e-6)
    assert score < -0.1
    torch.testing.assert_close(get_metric("neg_ece")(y, p, torch.full((1, N), 2)), score[None])


def test_scores_that_are_no_probabilities_have_no_calibration():
    y, p = probabilities(np.random.default_rng(0))
    metric = get_metric("neg_ece")
    assert metric(y, (p * (1 + 1e-6)).float()).isfinite().all()
    frequencies = torch.nn.functional.one_hot(y, K).double().mean(0).expand(N, K)
    assert metric(y, frequencies).item() == pytest.approx(0, abs=1e-12)
    for wrong in (p * 1.01, 1.5 * p - 0.5 / K):
        with pytest.raises(SpecError, match=r"neg_ece is for probabilities of classes, and these scores .* are none"):
            metric(y, wrong)


@pytest.mark.parametrize("name", CASES)
def test_weights_equal_copies_of_the_samples(name):
    rng = np.random.default_rng(2)
    y, p = CASES[name](rng)
    # Counts far from uniform, so that some resamples lose a class, a label or all the known values of a target.
    counts = rng.multinomial(N, rng.dirichlet(np.full(N, 0.05)), size=R)
    score = get_metric(name)(y, p, torch.from_numpy(counts))
    assert score.shape == (R, *LEAD)
    for r in range(R):
        again = np.repeat(np.arange(N), counts[r])
        want = get_metric(name)(y[again], p[..., again, :])
        torch.testing.assert_close(score[r], want, equal_nan=True, **CLOSE)
        np.testing.assert_allclose(
            score[r, 1, 2], expected(name, y[again].numpy(), p[1, 2, again].numpy()), equal_nan=True, **CLOSE
        )
    assert score.isfinite().any()


@pytest.mark.parametrize(("name", "y"), [("auroc", [0.0, 0, 1]), ("r2", [0.1, 0.1, 0.3])])
def test_a_resample_without_both_classes_or_without_spread_is_nan(name, y):
    y = torch.tensor(y, dtype=torch.float64)[:, None]
    p = torch.tensor([[0.3], [0.1], [0.2]])
    score = get_metric(name)(y, p, torch.tensor([[2, 1, 0], [1, 1, 1], [0, 0, 0]]))
    assert score.isnan().tolist() == [True, False, True]


def test_r2_sees_small_spreads_about_large_means():
    # The weighted sums cancel to noise here: steps of 1e-11 in a range of 1.
    y = torch.tensor([0.0, 1.0, 1.0 + 1e-11, 1.0 + 2e-11], dtype=torch.float64)[:, None]
    p = y + torch.tensor([0.0, 0.0, 1e-11, 0.0], dtype=torch.float64)[:, None]
    score = get_metric("r2")(y, p, torch.tensor([[0, 1, 1, 1]]))
    assert score.item() == pytest.approx(referee.r2_score(y[1:], p[1:]), abs=1e-3)  # 1e-16 is 1e-5 of a step


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_r2_does_not_depend_on_the_scale(scale):
    rng = np.random.default_rng(3)
    y, p = torch.from_numpy(rng.normal(size=(2, N, 1)))
    weights = torch.from_numpy(rng.multinomial(N, np.full(N, 1 / N), size=3))
    for w in (None, weights):
        torch.testing.assert_close(get_metric("r2")(y * scale, p * scale, w), get_metric("r2")(y, p, w), **CLOSE)


@pytest.mark.parametrize(
    ("name", "y", "p", "message"),
    [
        ("accuracy", torch.zeros(3), torch.zeros(3, 2), "class indices"),
        ("accuracy", torch.zeros(3).long(), torch.zeros(4, 2), r"\[\.\.\., 3, classes\]"),
        ("auroc", torch.zeros(3, 2), torch.zeros(3, 1), r"\[\.\.\., 3, 2\]"),
        ("r2", torch.zeros(0, 2), torch.zeros(0, 2), "no samples"),
        ("r2", torch.zeros(2, 1), torch.full((2, 1), torch.nan), "predictions hold NaN"),
    ],
)
def test_bad_input_is_named(name, y, p, message):
    with pytest.raises(DataError, match=message):
        get_metric(name)(y, p)


def test_negative_or_misshapen_weights_are_refused():
    for weights in (-torch.ones(2, 3), torch.ones(2, 4), torch.ones(3)):
        with pytest.raises(DataError, match="non-negative counts"):
            get_metric("accuracy")(torch.zeros(3).long(), torch.zeros(3, 2), weights)


def test_unknown_names_suggest_near_ones():
    with pytest.raises(UnknownNameError, match="balanced_accuracy"):
        get_metric("balanced_acuracy")
    assert all(name == metric.name and metric.chance for name, metric in METRICS.items())
