"""Label-free measures against plain definitions and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tsprobe.diagnostics import DIAGNOSTICS, measure
from tsprobe.diagnostics.measures import anisotropy, effective_rank, linear_cka


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_effective_rank_of_known_spectra() -> None:
    orthogonal = torch.linalg.qr(normal(40, 8))[0]
    centred = torch.cat([orthogonal, -orthogonal])  # mean zero, eight equal singular values
    assert effective_rank(centred) == pytest.approx(8, abs=1e-9)
    assert effective_rank(normal(50, 1) @ normal(1, 6)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.ones(5, 3, dtype=torch.float64)) == 0


def test_anisotropy_equals_the_mean_over_pairs() -> None:
    x = normal(20, 4) + 1
    unit = x / x.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).numpy()
    assert anisotropy(x) == pytest.approx(cosines[~np.eye(20, dtype=bool)].mean(), abs=1e-12)


def test_cka_equals_the_u_statistic_summed_over_quadruples() -> None:
    """Song et al. 2012: unbiased HSIC as the mean over four different samples, written out."""
    x, y = normal(7, 3), normal(7, 2, seed=1)
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        values = []
        for i in range(7):
            for j in set(range(7)) - {i}:
                for q in set(range(7)) - {i, j}:
                    for r in set(range(7)) - {i, j, q}:
                        values.append(a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]))
        return float(np.mean(values))

    right = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(right, abs=1e-10)


def test_cka_is_one_under_rotation_and_scale_and_near_zero_for_strangers() -> None:
    x = normal(300, 5)
    rotation = torch.linalg.qr(normal(5, 5, seed=2))[0]
    assert linear_cka(x, 3 * x @ rotation) == pytest.approx(1, abs=1e-9)
    assert abs(linear_cka(x, normal(300, 5, seed=3))) < 0.05  # its standard deviation here is about 0.005


def test_measure_gives_every_diagnostic_and_nan_for_too_few_samples() -> None:
    values = measure(normal(30, 4), normal(30, 4))
    assert set(values) == set(DIAGNOSTICS)
    assert all(np.isfinite(v) for v in values.values())
    assert all(np.isnan(v) for v in measure(normal(3, 4), normal(3, 4)).values())
