"""Measures over views against plain definitions, and the views themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tsprobe.diagnostics import CATALOGUE, augment, of_kind
from tsprobe.diagnostics.augment import declared, view
from tsprobe.diagnostics.views import PERMUTATIONS, alignment, dime, infonce, lidar, measure_views

NAMES = of_kind(CATALOGUE, "views")


def views(v: int = 2, n: int = 30, d: int = 5, noise: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(n, d, generator=generator, dtype=torch.float64) + 1
    return base + noise * torch.randn(v, n, d, generator=generator, dtype=torch.float64)


def entropy(matrix: np.ndarray) -> float:
    share = np.linalg.eigvalsh(matrix / np.trace(matrix)).clip(1e-300)
    return -(share * np.log(share)).sum()


def test_lidar_is_the_effective_rank_of_whitened_class_means() -> None:
    x = views(4)
    v, n, d = x.shape
    means = x.numpy().mean(0)
    between = np.cov(means.T)
    within = sum(np.outer(r, r) for r in (x.numpy() - means).reshape(-1, d)) / (v * n) + 1e-4 * np.eye(d)
    values, basis = np.linalg.eigh(within)
    root = basis @ np.diag(values**-0.5) @ basis.T
    share = np.linalg.eigvalsh(root @ between @ root)
    share = share / share.sum()
    assert lidar(x) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_dime_is_a_difference_of_joint_entropies() -> None:
    x = views()
    kernels = []
    for one in x.numpy():
        distance = ((one[:, None] - one[None]) ** 2).sum(-1)
        kernels.append(np.exp(-distance / distance[~np.eye(30, dtype=bool)].mean()))
    generator, chance = torch.Generator().manual_seed(0), []
    for _ in range(PERMUTATIONS):
        order = torch.randperm(30, generator=generator).numpy()
        chance.append(entropy(kernels[0] * kernels[1][np.ix_(order, order)]))
    assert dime(x) == pytest.approx(np.mean(chance) - entropy(kernels[0] * kernels[1]), rel=1e-8)


def test_infonce_and_alignment_by_loops() -> None:
    x = views()
    a, b = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in x.numpy())
    losses = []
    for u, w in ((a, b), (b, a)):
        for i in range(30):
            scores = np.array([math.exp(u[i] @ w[j] / 0.1) for j in range(30)])
            losses.append(-math.log(scores[i] / scores.sum()))
    assert infonce(x) == pytest.approx(math.log(30) - np.mean(losses), rel=1e-9)
    assert alignment(x) == pytest.approx(np.mean([((a[i] - b[i]) ** 2).sum() for i in range(30)]), rel=1e-9)


def test_views_that_agree_say_more_than_strangers() -> None:
    close = measure_views(views(noise=0.01), NAMES)
    strangers = measure_views(torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1)), NAMES)
    assert all(close[name].value > strangers[name].value + 0.3 for name in ("dime", "infonce"))
    assert close["alignment"].value < 0.01 < strangers["alignment"].value
    assert measure_views(views(noise=0), NAMES)["alignment"].value == 0


@pytest.mark.parametrize(
    ("x", "note"),
    [(views(n=3), "3 samples"), (views().fill_(torch.nan), "not finite"), (torch.ones(2, 8, 3), "alike")],
)
def test_what_cannot_be_measured_says_why(x: torch.Tensor, note: str) -> None:
    found = measure_views(x, NAMES)
    assert math.isnan(found["lidar"].value)
    assert note in found["lidar"].note
    assert all(math.isnan(value.value) == bool(value.note) for value in found.values())


def test_views_of_series_keep_shape_and_most_of_the_series() -> None:
    series = np.random.default_rng(0).standard_normal((2, 300)).cumsum(1).astype(np.float32)
    one, other = (view(series, np.random.default_rng(seed), pictures=False) for seed in (1, 2))
    assert one.shape == series.shape
    assert one.dtype == np.float32
    assert not np.array_equal(one, other)
    assert np.array_equal(one, view(series, np.random.default_rng(1), pictures=False))
    assert np.corrcoef(one[0], series[0])[0, 1] > 0.5
    flat = view(np.full((1, 40), 7, np.float32), np.random.default_rng(0), pictures=False)
    assert (flat == 7).all()
    assert view(np.ones((1, 1), np.float32), np.random.default_rng(0), pictures=False).shape == (1, 1)


def test_views_of_pictures_are_crops_with_another_brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.broadcast_to(np.linspace(0.1, 0.5, 16)[:, None], (16, 16))
    picture = np.stack([ramp, ramp.T, np.full((16, 16), 0.4)]).reshape(3, -1).astype(np.float32)
    monkeypatch.setattr(augment, "BRIGHTNESS", 0.0)
    red, green, blue = view(picture, np.random.default_rng(3), pictures=True).reshape(3, 16, 16)
    assert np.allclose(red, red[:, :1])  # rows stay rows, and columns columns
    assert np.allclose(green, green[:1])
    assert np.allclose(blue, 0.4)
    steps = np.diff(red[:, 0])
    assert np.allclose(steps, steps[0], atol=1e-6)  # a ramp, less steep
    assert 0.6**0.5 <= steps[0] * 15 / 0.4 <= 1
    monkeypatch.setattr(augment, "BRIGHTNESS", 0.2)
    assert not np.allclose(view(picture, np.random.default_rng(3), pictures=True)[2], 0.4)
    assert view(np.ones((3, 16), np.float32), np.random.default_rng(0), pictures=True).max() <= 1


def test_how_views_are_made_is_said() -> None:
    assert "stretched" in declared(False)
    assert "brightness" in declared(True)
