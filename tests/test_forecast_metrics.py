"""Forecast metrics against gluonts, on targets with holes, ties and forecasts that hit; and on resampled rows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from tsprobe.errors import DataError
from tsprobe.forecast_metrics import LEVELS, MEDIAN
from tsprobe.metrics import get_metric

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gluonts' imports warn about themselves
    from gluonts.ev import metrics as ev
    from gluonts.evaluation import metrics as evaluation

N, H, LEAD, R = 30, 4, (2, 3), 20
NAMES = ("neg_mase", "neg_sql", "neg_wql")


def case(seed=0):
    """Values on a coarse grid (ties between levels, and forecasts that are exact), a fifth missing, one row wholly."""
    rng = np.random.default_rng(seed)
    y = rng.integers(-6, 7, (N, H)) / 4
    y[rng.random((N, H)) < 0.2] = np.nan
    y[3] = np.nan
    p = np.sort(rng.integers(-6, 7, (*LEAD, N, H, len(LEVELS))) / 4, -1)
    return torch.from_numpy(y), torch.from_numpy(p.reshape(*LEAD, N, H * len(LEVELS)))


def by_gluonts(name, y, p):
    """`gluonts.ev` on a masked label; the seasonal error is 1, as targets are in its unit."""
    p = p.reshape(*p.shape[:-1], -1, len(LEVELS))
    data = {str(level): p[..., q] for q, level in enumerate(LEVELS)}
    data |= {"label": np.ma.masked_invalid(y), "seasonal_error": np.ones((len(y), 1))}
    metric = {
        "neg_mase": ev.MASE(),
        "neg_sql": ev.AverageMeanScaledQuantileLoss(quantile_levels=LEVELS),
        "neg_wql": ev.MeanWeightedSumQuantileLoss(quantile_levels=LEVELS),
    }[name](axis=None)
    metric.update(data)
    return -float(metric.get())


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_gluonts_and_keeps_leading_axes(name):
    y, p = case()
    score = get_metric(name)(y, p)
    assert score.shape == LEAD
    assert score.dtype == torch.float64
    want = [[by_gluonts(name, y.numpy(), p[i, j].numpy()) for j in range(LEAD[1])] for i in range(LEAD[0])]
    np.testing.assert_allclose(score, want, rtol=1e-12)
    assert len(set(score.flatten().tolist())) == 6


def test_mase_is_that_of_the_evaluator_where_nothing_is_missing():
    y, p = case()
    y = y.nan_to_num(nan=0.5)
    median = p[0, 0].view(N, H, -1)[..., MEDIAN]
    rows = [evaluation.mase(a, b, 1.0) for a, b in zip(y.numpy(), median.numpy(), strict=True)]
    assert get_metric("neg_mase")(y, p[0, 0]).item() == pytest.approx(-np.mean(rows), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_resamples_and_a_row_without_a_target_counts_nothing(name):
    y, p = case(1)
    rng = np.random.default_rng(2)
    draws = rng.integers(0, N, (R, N))
    weights = torch.from_numpy(np.stack([np.bincount(d, minlength=N) for d in draws]))
    score = get_metric(name)(y, p, weights)
    assert score.shape == (R, *LEAD)
    want = torch.stack([get_metric(name)(y[d], p[..., d, :]) for d in draws])
    torch.testing.assert_close(score, want, rtol=1e-12, atol=1e-12)
    nothing = torch.zeros(1, N)
    nothing[0, 3] = 1
    assert get_metric(name)(y, p, nothing).isnan().all()


@pytest.mark.parametrize("name", ["neg_sql", "neg_wql"])
def test_the_true_quantiles_score_best(name):
    # Of a standard normal: levels that are moved, spread or narrowed all lose.
    y = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(LEVELS, dtype=torch.float64))
    forecasts = torch.stack([true, true + 0.1, true * 1.15, true * 0.85])[:, None].expand(-1, len(y), -1)
    scores = get_metric(name)(y, forecasts)
    assert scores.argmax() == 0


def test_one_value_for_all_levels_scores_its_absolute_error():
    y, p = case()
    point = p.view(*LEAD, N, H, -1)[..., :1].expand(*LEAD, N, H, len(LEVELS)).flatten(-2)
    torch.testing.assert_close(get_metric("neg_sql")(y, point), get_metric("neg_mase")(y, point))
    assert get_metric("neg_wql")(y, torch.zeros(N, H * len(LEVELS))).item() == pytest.approx(-1)


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 9), r"where \[N, H\] are due"),
        (torch.zeros(3, 2), torch.zeros(3, 2), r"\[\.\.\., 3, 2 steps x 9 levels\]"),
        (torch.zeros(0, 2), torch.zeros(0, 18), r"where \[N, H\] are due"),
        (torch.zeros(2, 1), torch.full((2, 9), torch.nan), "forecasts hold NaN"),
    ],
)
def test_bad_input_is_named(y, p, message):
    with pytest.raises(DataError, match=message):
        get_metric("neg_sql")(y, p)


def test_misshapen_weights_are_refused():
    y, p = case()
    for weights in (-torch.ones(2, N), torch.ones(2, N + 1), torch.ones(N)):
        with pytest.raises(DataError, match="non-negative counts"):
            get_metric("neg_mase")(y, p, weights)
