"""Intervals, p-values, corrections and choices against outside referees and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from tsprobe.metrics import get_metric
from tsprobe.stats import Gap, choose, holm, paired_gap, resample_counts, score_interval, verdict


def scores_for(classes: torch.Tensor) -> torch.Tensor:
    """Predictions `[1, N, 2]` whose argmax is the class."""
    return torch.nn.functional.one_hot(classes, 2).float()[None]


def test_interval_agrees_with_scipy_bootstrap() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(200) < 0.7).astype(int)
    y = torch.ones(200, dtype=torch.int64)
    low, high = score_interval(
        get_metric("accuracy"), y, scores_for(torch.from_numpy(right)), resample_counts(200, 4000, seed=0)
    )
    referee = scipy_stats.bootstrap(
        (right,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # both are Monte Carlo estimates on a grid of 1/200; two runs of scipy's own differ by up to one step
    assert low == pytest.approx(referee.low, abs=0.0101)
    assert high == pytest.approx(referee.high, abs=0.0101)


def test_p_value_agrees_with_the_exact_sign_test() -> None:
    """For accuracy, swapping pairs is a sign test on the samples where exactly one of the two is right."""
    y = torch.ones(60, dtype=torch.int64)
    chosen, final = torch.ones(60, dtype=torch.int64), torch.ones(60, dtype=torch.int64)
    final[:9] = 0  # nine samples that only `chosen` gets right
    chosen[9:12] = 0  # three that only `final` gets right
    gap = paired_gap(
        get_metric("accuracy"), y, scores_for(chosen), scores_for(final), resample_counts(60, 20000, seed=0)
    )
    exact = scipy_stats.binomtest(9, 12, alternative="greater").pvalue
    assert gap.value == pytest.approx(6 / 60)
    assert gap.p_value == pytest.approx(exact, abs=0.006)  # 3 standard errors of 20,000 draws at p = 0.07


def test_equal_predictions_have_no_gap_and_no_significance() -> None:
    y = torch.tensor([0, 1] * 20)
    same = scores_for(torch.tensor([0, 1, 1, 1] * 10))
    gap = paired_gap(get_metric("accuracy"), y, same, same, resample_counts(40, 500, seed=0))
    assert gap == Gap(0.0, 0.0, 0.0, 1.0)


def test_large_gap_is_significant_and_its_interval_excludes_zero() -> None:
    y = torch.ones(100, dtype=torch.int64)
    bad = torch.ones(100, dtype=torch.int64)
    bad[:40] = 0
    gap = paired_gap(get_metric("accuracy"), y, scores_for(y), scores_for(bad), resample_counts(100, 999, seed=0))
    assert gap.value == pytest.approx(0.4)
    assert gap.low > 0.25
    assert gap.p_value == pytest.approx(1 / 1000)


def test_holm_agrees_with_a_hand_worked_case() -> None:
    # Holm 1979: sorted .005 .01 .03 .04 times 4 3 2 1, then made monotone
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    assert holm([]).size == 0


def test_choice_prefers_the_final_layer_among_equals_then_the_deeper() -> None:
    inner = np.array([[[0.7, 0.9]], [[0.9, 0.1]], [[0.5, 0.9]]])  # [3 layers, 1 pooling, 2 probes]
    assert choose(inner, final=2) == ((2, 0, 1), (2, 0, 1))
    assert choose(inner, final=0) == ((0, 0, 1), (0, 0, 1))  # a deeper layer is equal, and past the final one
    inner[2] = 0.2
    assert choose(inner, final=2) == ((1, 0, 0), (2, 0, 0))
    inner[1] = np.nan
    assert choose(inner, final=2)[0] == (0, 0, 1)


@pytest.mark.parametrize(
    ("gap", "p", "same", "expected"),
    [
        (Gap(0.1, 0.05, 0.15, 0.001), 0.01, False, "hidden"),
        (Gap(0.1, 0.05, 0.15, 0.001), 0.06, False, "undecided"),  # not after Holm
        (Gap(0.1, -0.01, 0.2, 0.02), 0.02, False, "undecided"),
        (Gap(-0.02, -0.05, 0.01, 0.9), 1.0, False, "exposed"),  # nothing above the margin can be gained
        (Gap(0.03, -0.01, 0.05, 0.2), 0.2, True, "exposed"),
    ],
)
def test_verdicts(gap: Gap, p: float, same: bool, expected: str) -> None:
    assert verdict(gap, p, same_layer=same, level=0.05, margin=0.02) == expected


def test_resamples_are_seeded_and_count_to_n() -> None:
    counts = resample_counts(17, 100, seed=3)
    assert counts.sum(1).eq(17).all()
    assert torch.equal(counts, resample_counts(17, 100, seed=3))
    assert not torch.equal(counts, resample_counts(17, 100, seed=4))
