"""Pooling against numpy in float64, an awkward case at a time, and windows merged against pooling once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tsprobe.errors import EncoderError, SpecError, UnknownNameError
from tsprobe.pooling import Slots, merge_windows, pool
from tsprobe.types import TokenMap

ALL = ("mean", "max", "min", "std", "first", "last", "segments3")


def tokens_of(mask: torch.Tensor, patch: int = 1, cls: int | None = None) -> TokenMap:
    start = torch.arange(mask.shape[1]).expand(mask.shape) * patch
    return TokenMap(mask, start, start + patch, cls)


def referee(x: np.ndarray, mask: np.ndarray, edges: np.ndarray, patch: int) -> np.ndarray:
    """The same statistics of one row, by numpy in float64."""
    real = x[mask].astype(np.float64)
    if not len(real):
        return np.zeros((9, x.shape[1]))
    start = np.arange(len(x)) * patch
    segments = []
    for low, high in itertools.pairwise(edges):
        share = np.clip(np.minimum(start + patch, high) - np.maximum(start, low), 0, None) * mask
        segments.append(share @ np.where(mask[:, None], x, 0) / share.sum() if share.sum() else np.zeros(x.shape[1]))
    return np.stack([real.mean(0), real.max(0), real.min(0), real.std(0), real[0], real[-1], *segments])


@pytest.mark.parametrize(
    ("rows", "tokens", "width"),
    [
        (1, 1, 1),  # one token: std 0, first is last
        (5, 63, 30),  # nothing a power of two
        (3, 2, 7),  # fewer tokens than segments
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pool_equals_numpy(rows: int, tokens: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(rows, tokens, width, generator=generator) * 3 + 5).to(dtype)
    mask = torch.rand(rows, tokens, generator=generator) > 0.3
    mask[:, 0] |= ~mask.any(1)
    edges = torch.linspace(0, tokens * 4, 4, dtype=torch.float64).expand(rows, 4)
    pooled, _ = pool(x, tokens_of(mask, patch=4), Slots.parse(ALL), edges)
    right = [referee(x[r].double().numpy(), mask[r].numpy(), edges[r].numpy(), 4) for r in range(rows)]
    # float32 sums of some 60 numbers near 5 err by a few units in the last place (6e-8 relative); float64 likewise
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert pooled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(pooled.double().numpy(), np.stack(right), rtol=tolerance, atol=tolerance)


def test_std_keeps_its_digits_far_from_zero() -> None:
    x = torch.randn(1, 4096, 2, generator=torch.Generator().manual_seed(1)) + 1000
    pooled, _ = pool(x, tokens_of(torch.ones(1, 4096, dtype=torch.bool)), Slots.parse(["std"]))
    # E[x²]-E[x]² would be off by about 1e-1 here; two passes in float32 stay at the rounding of the mean, 1e-4
    np.testing.assert_allclose(pooled[0, 0].numpy(), x[0].double().std(0, correction=0).numpy(), rtol=2e-4)


def test_masked_tokens_change_nothing_even_if_not_finite() -> None:
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    edges = torch.linspace(0, 4, 4).expand(2, 4)
    clean, _ = pool(x, tokens_of(mask), Slots.parse(ALL), edges)
    dirty = x.clone()
    dirty[:, 4:] = torch.tensor([float("nan"), float("inf"), -1e30])
    soiled, _ = pool(dirty, tokens_of(mask), Slots.parse(ALL), edges)
    torch.testing.assert_close(soiled, clean, rtol=0, atol=0)


def test_nan_in_a_real_token_stays_in_its_row() -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))
    x[1, 2] = float("nan")
    pooled, _ = pool(x, tokens_of(torch.ones(2, 4, dtype=torch.bool)), Slots.parse(["mean", "max", "std"]))
    assert pooled[0].isfinite().all()
    assert pooled[1].isnan().all()


def test_row_without_a_real_token_is_zero_with_weight_zero() -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[False] * 4, [True] * 4])
    pooled, weight = pool(x, tokens_of(mask), Slots.parse(ALL), torch.linspace(0, 4, 4).expand(2, 4))
    assert pooled[0].eq(0).all()
    assert weight[0].eq(0).all()
    assert weight[1].gt(0).all()


def test_cls_is_taken_from_its_place_or_refused() -> None:
    x = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(5))
    mask = torch.tensor([[False, True, True, True]])
    pooled, _ = pool(x, tokens_of(mask, cls=0), Slots.parse(["cls", "first"]))
    assert torch.equal(pooled[0, 0], x[0, 0])
    assert torch.equal(pooled[0, 1], x[0, 1])
    with pytest.raises(EncoderError, match="no class token"):
        pool(x, tokens_of(mask), Slots.parse(["cls"]))


@pytest.mark.parametrize("cuts", [(0, 7, 20), (0, 1, 2, 20), (0, 20)])
def test_merged_windows_equal_pooling_once(cuts: tuple[int, ...]) -> None:
    """Two series of one channel cut at odd places; one window has no real token at all."""
    generator = torch.Generator().manual_seed(6)
    slots = Slots.parse(ALL)
    whole, parts, weights, owner = [], [], [], []
    for series in (1, 0):
        x = torch.randn(1, 20, 5, generator=generator, dtype=torch.float64) + 10
        mask = torch.rand(1, 20, generator=generator) > 0.3
        mask[0, :2] = False
        edges = torch.linspace(0, 20, 4, dtype=torch.float64)[None]
        whole.append(pool(x, tokens_of(mask), slots, edges)[0][0])
        for low, high in itertools.pairwise(cuts):
            pooled, weight = pool(x[:, low:high], tokens_of(mask[:, low:high]), slots, edges - low)
            parts.append(pooled[0].numpy())
            weights.append(weight[0].numpy())
            owner.append(series)
    merged = merge_windows(np.stack(parts), np.stack(weights), np.array(owner), slots)
    right = torch.stack(whole[::-1]).numpy()
    np.testing.assert_allclose(merged, right, rtol=1e-12, atol=1e-12)  # float64 throughout


def test_names_of_poolings_are_checked() -> None:
    assert Slots.parse(["std"]).kinds == ("std", "mean")  # the mean is kept for merging
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        Slots.parse(["meen"])
    with pytest.raises(SpecError, match="distinct"):
        Slots.parse(["mean", "mean"])
    with pytest.raises(SpecError, match="distinct"):
        Slots.parse([])
    with pytest.raises(SpecError, match="one segments"):
        Slots.parse(["segments2", "segments4"])
