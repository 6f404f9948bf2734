"""The quantile head against a loop over scipy, scikit-learn and numpy, against quantile regression, and at ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import QuantileRegressor, Ridge
from sklearn.preprocessing import StandardScaler

from tsprobe.errors import DataError, SpecError
from tsprobe.forecast_metrics import LEVELS, MEDIAN
from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe, median
from tsprobe.probes.base import Target

G, N, M, H = 2, 120, 40, 3
Q = len(LEVELS)
fit_predict = get_probe("quantile")
MASE, SQL = get_metric("neg_mase"), get_metric("neg_sql")


class Data:
    """Targets whose location and spread depend on the features of the first group; heavy tails, and holes if asked."""

    def __init__(self, width=6, masked=False, units=False, seed=0):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(G, N + M, width)) * rng.gamma(1, 10, width) + 30
        z = (x[0] - x[0].mean(0)) / x[0].std(0)
        y = z[:, :1] * [1.0, 2.0, -1.0] + np.exp(0.7 * z[:, 1:2]) * rng.standard_t(3, (N + M, H))
        if masked:
            y[rng.random(y.shape) < 0.2] = np.nan
            y[5] = np.nan
        self.x, self.y = torch.from_numpy(x).float(), torch.from_numpy(y)
        u = torch.from_numpy(rng.gamma(2, 1, N + M))
        self.units = (u[:N], u[N:]) if units else None
        self.folds = torch.from_numpy(rng.permutation(N) % 4)

    def fit(self, metric=MASE, **kwargs):
        target = Target("forecast", self.y[:N], units=self.units)
        return fit_predict(self.x[:, :N], target, self.x[:, N:], self.folds, metric, **kwargs)


def log_size(r):
    unit = torch.from_numpy(np.abs(r)).nanmedian(0).values.numpy()  # the lower of two in the middle
    size = [np.nanmean(np.abs(row) / unit) if not np.isnan(row).all() else np.nan for row in r]
    return np.log(0.1 + np.array(size))


def median_regression(a, x, y, x_new):
    """The rounded absolute error by scipy's L-BFGS; the corner is rounded within a tenth of the quartiles' distance."""
    d = 0.1

    def loss(w):
        r = y - x @ w[:-1] - w[-1]
        inside = np.abs(r) < d
        value = np.where(inside, r**2 / (2 * d), np.abs(r) - d / 2).sum() + a * len(y) * w[:-1] @ w[:-1] / 2
        pull = np.clip(r / d, -1, 1)
        return value, np.r_[a * len(y) * w[:-1] - pull @ x, -pull.sum()]

    found = minimize(
        loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "gtol": 1e-7}
    )
    return x_new @ found.x[:-1] + found.x[-1]


def one_fit(a, x, y, x_new):
    """A median regression for each column, by least squares in the last, on the rows where it is known."""
    columns = []
    for k, column in enumerate(y.T):
        seen = ~np.isnan(column)
        if k == y.shape[1] - 1:
            columns.append(Ridge(alpha=a * seen.sum(), solver="svd").fit(x[seen], column[seen]).predict(x_new))
        else:
            columns.append(median_regression(a, x[seen], column[seen], x_new))
    return np.stack(columns, 1)


def by_loop(data, g, strength):
    """Forecasts of the training rows, each by the other folds, and of the test rows: `[N, H, Q]` and `[M, H, Q]`."""
    x, y = data.x[g].double().numpy(), data.y[:N].numpy()
    if data.units is not None:
        u = torch.cat(data.units).float().numpy()[:, None]
        x = np.hstack([x.astype(np.float32) * u, u]).astype(np.float64)
    scaler = StandardScaler().fit(x[:N])
    x, x_test = scaler.transform(x[:N]), scaler.transform(x[N:])
    low, middle, high = np.nanquantile(y, [0.25, 0.5, 0.75], axis=0)
    lower_middle = torch.from_numpy(y).nanmedian(0).values.numpy()
    fitted = np.hstack([(y - middle) / (high - low), log_size(y - lower_middle)[:, None]])

    def fit(rows, x_new):
        found = one_fit(strength, x[rows], fitted[rows], x_new)
        return np.hstack([found[:, :H] * (high - low) + middle, found[:, H:]])

    held_out = np.zeros((N, H + 1))
    folds = data.folds.numpy()
    for f in range(4):
        held_out[folds == f] = fit(folds != f, x[folds == f])
    r, z = y - held_out[:, :H], held_out[:, H]
    size = log_size(r)
    seen = ~np.isnan(size)
    slope = max(0.0, np.polyfit(z[seen], size[seen], 1)[0])
    spread = lambda new: np.exp(np.clip(slope * (new - z[seen].mean()), -2, 2))[:, None]  # noqa: E731
    e = r / spread(z)
    out = np.zeros((N, H, Q))
    for f in range(4):
        quantiles = np.nanquantile(e[folds != f], LEVELS, axis=0).T  # [H, Q]
        rows = folds == f
        out[rows] = held_out[rows, :H, None] + spread(z[rows])[..., None] * quantiles
    refit = fit(folds >= 0, x_test)
    test = refit[:, :H, None] + spread(refit[:, H])[..., None] * np.nanquantile(e, LEVELS, axis=0).T
    return out, test


@pytest.mark.parametrize(
    ("width", "masked", "units"), [(6, False, False), (6, True, False), (200, False, False), (6, True, True)]
)
def test_agrees_with_an_explicit_loop_over_scipy_and_numpy(width, masked, units, monkeypatch):
    data = Data(width, masked, units)
    quick = data.fit(SQL, strengths=(0.01, 1.0))
    monkeypatch.setattr(median, "TOLERANCE", 1e-4)
    monkeypatch.setattr(median, "_STEPS", 2000)
    readouts = [data.fit(SQL, strengths=(strength,)) for strength in (0.01, 1.0)]
    for a, (strength, readout) in enumerate(zip((0.01, 1.0), readouts, strict=True)):
        assert (readout.gradient_norm <= 1e-4).all()
        for g in range(G):
            out, test = by_loop(data, g, strength)
            # targets spread over 10; where there are more columns than rows, all rows are in the rounded corner, and
            # gradients of 1e-4 leave more
            atol, rtol = (0.02, 1e-3) if width < N else (0.1, 3e-3)
            np.testing.assert_allclose(readout.prediction[g].view(M, H, Q), test, atol=atol)
            inner = SQL(data.y[:N], torch.from_numpy(out.reshape(N, -1)))
            np.testing.assert_allclose(readout.inner[g, 0], inner, rtol=rtol)
            if width < N:  # where they cannot pass through all rows, fits that are stopped for speed are as good
                np.testing.assert_allclose(quick.inner[g, a], inner, rtol=0.02)


def test_the_strength_is_that_of_the_best_inner_score_and_quantiles_do_not_cross():
    data = Data()
    readout = data.fit()
    assert readout.prediction.shape == (G, M, H * Q)
    assert (readout.inner.gather(1, readout.chosen[:, None])[:, 0] == readout.inner.amax(1)).all()
    assert (readout.prediction.view(G, M, H, Q).diff(dim=-1) >= 0).all()
    assert readout.gradient_norm.shape == (G,)
    assert (readout.gradient_norm > 0).all()


def test_the_prediction_is_that_of_the_chosen_strength(monkeypatch):
    monkeypatch.setattr(median, "_STEPS", 200)  # the way there must not matter
    data = Data()
    both = data.fit(strengths=(10.0, 0.01))
    assert both.chosen[0] == 1
    strong, weak = (data.fit(strengths=(strength,)).prediction[0] for strength in (10.0, 0.01))
    assert (both.prediction[0] - weak).abs().mean() < 0.02
    assert (both.prediction[0] - strong).abs().mean() > 0.2


def test_targets_that_are_mostly_equal_have_a_size_too():
    # More than half of the values are 0, and so are the distance of the quartiles and the median size of residuals.
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(1, N + M, 3)))
    y = torch.where(x[0, :, :1] > 1, x[0, :, :1], 0.0)
    folds = torch.arange(N) % 4
    small, large = (
        fit_predict(x[:, :N], Target("forecast", y[:N] * unit), x[:, N:], folds, MASE).prediction[0] / unit
        for unit in (1.0, 1e6)
    )
    assert small.isfinite().all()
    torch.testing.assert_close(small, large, atol=1e-3, rtol=1e-3)


def test_no_row_is_wider_than_the_limit():
    data = Data()
    data.x[:, N] *= 1000  # far beyond all training rows
    wide = data.fit().prediction[0].view(M, H, Q)
    width = wide[..., -1] - wide[..., 0]
    assert (width.amax(0) / width.amin(0) <= np.exp(4) * 1.001).all()
    assert width[0].max() > 2 * width[1:].mean()


def test_a_gradient_that_has_not_converged_is_told(monkeypatch):
    monkeypatch.setattr(median, "_STEPS", 1)
    few = Data().fit().gradient_norm
    monkeypatch.setattr(median, "_STEPS", 50)
    many = Data().fit().gradient_norm
    assert (few > 2 * median.TOLERANCE).all()
    assert (many <= median.TOLERANCE).all()


def test_groups_do_not_see_each_other_nor_the_chunks_they_are_in(monkeypatch):
    data = Data(masked=True, units=True)
    together = data.fit()
    from tsprobe.probes import base

    monkeypatch.setattr(base, "CHUNK_BYTES", 1)
    torch.testing.assert_close(data.fit().prediction, together.prediction, rtol=1e-9, atol=1e-9)


def sample(n, seed):
    """Linear location and spread: quantile regression is the right model, level by level."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, x[:, :2] @ [[1.0, -0.5], [0.5, 1.0]] + np.exp(0.4 * x[:, 2:3]) * rng.standard_t(4, (n, 2))


def test_is_about_as_good_as_quantile_regression_of_scikit_learn():
    (x, y), (x_test, y_test) = sample(500, 0), sample(4000, 1)
    target = Target("forecast", torch.from_numpy(y))
    head = fit_predict(
        torch.from_numpy(x)[None], target, torch.from_numpy(x_test)[None], torch.arange(500) % 5, SQL
    ).prediction[0]
    regressed = np.zeros((4000, 2, Q))
    for h in range(2):
        for q, level in enumerate(LEVELS):
            model = QuantileRegressor(quantile=level, alpha=0, solver="highs").fit(x, y[:, h])
            regressed[:, h, q] = model.predict(x_test)
    y_test = torch.from_numpy(y_test)
    for metric in (MASE, SQL):
        mine, theirs = metric(y_test, head).item(), metric(y_test, torch.from_numpy(regressed.reshape(4000, -1))).item()
        assert mine > 1.02 * theirs  # scores are negative: a loss not more than 2 percent larger
    constant = fit_predict(
        torch.ones(1, 500, 1), target, torch.ones(1, 4000, 1), torch.arange(500) % 5, SQL
    ).prediction[0]
    assert SQL(y_test, head) > 0.9 * SQL(y_test, constant)  # the features matter


def test_the_median_is_that_of_scikit_learn_where_the_penalty_is_slight(monkeypatch):
    # The rounded corner moves the fit a little: a tenth of the quartiles' distance, of which the errors are a third.
    monkeypatch.setattr(median, "_STEPS", 500)
    (x, y), (x_test, _) = sample(800, 5), sample(200, 6)
    head = fit_predict(
        torch.from_numpy(x)[None], Target("forecast", torch.from_numpy(y)), torch.from_numpy(x_test)[None],
        torch.arange(800) % 5, MASE, strengths=(1e-6,),
    ).prediction[0].view(200, 2, Q)  # fmt: skip
    for h in range(2):
        want = QuantileRegressor(quantile=0.5, alpha=0, solver="highs").fit(x, y[:, h]).predict(x_test)
        assert np.corrcoef(head[:, h, MEDIAN], want)[0, 1] > 0.998
        np.testing.assert_allclose(head[:, h, MEDIAN], want, atol=0.2)


def test_levels_cover_what_they_say():
    (x, y), (x_test, y_test) = sample(1000, 2), sample(4000, 3)
    head = fit_predict(
        torch.from_numpy(x)[None], Target("forecast", torch.from_numpy(y)), torch.from_numpy(x_test)[None],
        torch.arange(1000) % 5, MASE,
    ).prediction[0].view(4000, 2, Q)  # fmt: skip
    below = (torch.from_numpy(y_test)[..., None] <= head).double().mean((0, 1))
    # the deviation of a share of 8000, and that of a quantile of 1000 residuals, are below 0.017
    np.testing.assert_allclose(below, LEVELS, atol=0.05)


def test_without_features_it_is_the_quantiles_of_the_targets():
    data = Data(masked=True)
    constant = torch.full((1, N, 1), 3.0)
    readout = fit_predict(
        constant, Target("forecast", data.y[:N]), torch.full((1, M, 1), 3.0), data.folds, MASE, strengths=(1.0,)
    )
    # folds differ in their mean, and residuals with it: near the quantiles, and the same for all rows
    want = np.nanquantile(data.y[:N].numpy(), LEVELS, axis=0).T
    got = readout.prediction[0].view(M, H, Q)
    assert (got == got[0]).all()
    np.testing.assert_allclose(got[0], want, atol=0.35)


def test_truth_in_the_features_scores_near_zero_and_noise_no_better_than_nothing():
    rng = np.random.default_rng(0)
    n = 400
    y = torch.from_numpy(rng.standard_t(3, (n, H)))
    rotation = torch.from_numpy(rng.normal(size=(H, 5)))
    noise = torch.from_numpy(rng.normal(size=(n, 5)))
    x = torch.stack([y @ rotation, noise, torch.ones(n, 5, dtype=torch.float64)])
    half = n // 2
    readout = fit_predict(x[:, :half], Target("forecast", y[:half]), x[:, half:], torch.arange(half) % 5, MASE)
    oracle, blind, nothing = MASE(y[half:], readout.prediction).tolist()
    assert oracle > -0.05
    assert nothing < -0.8
    assert blind < nothing + 0.02
    inner = readout.inner.amax(1)
    assert inner[1] < inner[2] + 0.02


def test_a_fold_that_alone_knows_a_step_and_steps_that_are_exact():
    data = Data()
    data.y[:N, 0] = torch.where(data.folds == 2, data.y[:N, 0], torch.nan)
    data.y[:, 1] = 4.0
    readout = data.fit()
    assert readout.prediction.isfinite().all()
    np.testing.assert_allclose(readout.prediction.view(G, M, H, Q)[:, :, 1], 4.0, rtol=1e-9)


def test_a_single_huge_target_does_not_move_the_others():
    data, spoiled = Data(), Data()
    spoiled.y[7, 0] = 1e6
    assert (spoiled.fit().prediction - data.fit().prediction).view(G, M, H, Q)[..., MEDIAN].abs().mean() < 0.15


def test_bad_input_is_named():
    data = Data()
    with pytest.raises(SpecError, match="needs a forecast, not regression"):
        fit_predict(data.x[:, :N], Target("regression", data.y[:N]), data.x[:, N:], data.folds, get_metric("r2"))
    with pytest.raises(SpecError, match="'r2' is for regression or multilabel targets, not for forecast"):
        data.fit(get_metric("r2"))
    data.units = (torch.ones(N - 1), torch.ones(M))
    with pytest.raises(DataError, match=r"units of \[119\] and \[40\] rows for 120 and 40"):
        data.fit()
    data.units = (torch.ones(N), torch.full((M,), torch.nan))
    with pytest.raises(DataError, match="units hold NaN"):
        data.fit()
