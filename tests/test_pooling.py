"""Pooling against numpy in float64, every path on bad input, and windows merged against pooling once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pooling_cases import EVERY_PATH, TOLERANCE, needs_triton, pool_by, ragged
from torch._subclasses.fake_tensor import FakeTensorMode

from tsprobe.errors import EncoderError, SpecError, UnknownNameError
from tsprobe.pooling import Slots, merge_windows, ops, path_used, pool
from tsprobe.types import TokenMap

ALL = ("mean", "max", "min", "std", "first", "last", "segments3")
NAN, INF = float("nan"), float("inf")
# A mean of NaN or infinities is worked out in numpy by triton's interpreter, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:divide by zero encountered")


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


def test_cls_is_taken_from_its_place_or_refused() -> None:
    x = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(5))
    mask = torch.tensor([[False, True, True, True]])
    pooled, _ = pool(x, tokens_of(mask, cls=0), Slots.parse(["cls", "first"]))
    assert torch.equal(pooled[0, 0], x[0, 0])
    assert torch.equal(pooled[0, 1], x[0, 1])
    with pytest.raises(EncoderError, match="no class token"):
        pool(x, tokens_of(mask), Slots.parse(["cls"]))


# ---- bad input, by every path


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_no_rows_no_tokens_no_dimensions(shape: tuple[int, int, int], path: str) -> None:
    """No rows give no rows; rows without a token are zeros of weight 0; the weights do not depend on the width."""
    rows, tokens, width = shape
    names = ("mean", "max", "min", "std", "first", "last")
    pooled, weight = pool_by(path, torch.zeros(shape), ragged(rows, tokens, "all"), names)
    assert pooled.shape == (rows, 6, width)
    assert pooled.eq(0).all()
    assert torch.equal(weight, torch.full((rows, 6), float(tokens)))
    with_cls = pool_by(path, torch.ones(0, 4, 3), ragged(0, 4, "all"), ("cls", "segments3"))
    assert [part.shape for part in with_cls] == [(0, 4, 3), (0, 4)]


@pytest.mark.parametrize("path", EVERY_PATH)
def test_rows_without_a_real_token_are_zeros_of_weight_zero(path: str) -> None:
    """Whatever they hold; the class token alone is no real one and is read all the same."""
    x = torch.full((3, 5, 4), NAN)
    x[:, 1] = 7.0
    x[2, 3] = INF
    tokens = tokens_of(torch.zeros(3, 5, dtype=torch.bool), patch=4, cls=1)
    pooled, weight = pool_by(path, x, tokens, ("cls", *ALL))
    assert pooled[:, 0].eq(7).all()
    assert weight[:, 0].eq(1).all()
    assert pooled[:, 1:].eq(0).all()
    assert weight[:, 1:].eq(0).all()


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinities_stay_in_their_row_and_dimension(dtype: torch.dtype, path: str) -> None:
    names = ("mean", "max", "min", "std", "first", "last")
    x = torch.arange(3 * 40 * 70).remainder(11).view(3, 40, 70).to(dtype)
    clean, _ = pool_by(path, x, ragged(3, 40, "all"), names)
    x[1, 37, 3], x[1, 0, 4], x[1, 39, 5] = NAN, INF, -INF
    x[1, 2:4, 69] = torch.tensor([INF, -INF], dtype=dtype)
    pooled, _ = pool_by(path, x, ragged(3, 40, "all"), names)
    first, last = x[1, 0].float(), x[1, 39].float()
    right = torch.tensor(
        [
            [NAN, NAN, NAN, NAN, first[3], last[3]],
            [INF, INF, 0, NAN, INF, last[4]],
            [-INF, 10, -INF, NAN, first[5], -INF],
            [NAN, INF, -INF, NAN, first[69], last[69]],
        ]
    ).T
    soiled = torch.tensor([3, 4, 5, 69])
    torch.testing.assert_close(pooled[1][:, soiled], right, rtol=0, atol=0, equal_nan=True)
    pooled[1][:, soiled] = clean[1][:, soiled]
    torch.testing.assert_close(pooled, clean, **TOLERANCE)


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_segments_and_masked_tokens_keep_what_is_not_finite_to_themselves(value: float, path: str) -> None:
    x = torch.ones(3, 9, 4)
    x[1, 4, 2] = value
    x[2, 3:] = value
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[2, 3:] = False
    pooled, _ = pool_by(path, x, tokens_of(mask, patch=4), ("mean", "segments3"))
    assert pooled[0].eq(1).all()
    assert pooled[2, :3].eq(1).all()
    assert pooled[2, 3].eq(0).all()  # no real token there
    assert pooled[1][:, [0, 1, 3]].eq(1).all()
    assert torch.equal(pooled[1, 0, 2].nan_to_num(5.0), torch.tensor(value).nan_to_num(5.0))
    assert not pooled[1, 1:, 2].isfinite().any()  # in the other segments too: nothing times it is NaN


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", ["expanded rows", "expanded tokens", "transposed", "every second"])
def test_masks_of_any_strides(kind: str, path: str) -> None:
    generator = torch.Generator().manual_seed(8)
    mask = {
        "expanded rows": (torch.rand(1, 20, generator=generator) > 0.4).expand(6, 20),
        "expanded tokens": (torch.rand(6, 1, generator=generator) > 0.4).expand(6, 20),
        "transposed": (torch.rand(20, 6, generator=generator) > 0.4).T,
        "every second": (torch.rand(6, 40, generator=generator) > 0.4)[:, ::2],
    }[kind]
    x = torch.randn(6, 20, 5, generator=generator)
    found = pool_by(path, x, tokens_of(mask, patch=4), ALL)
    right = pool_by("reference", x.double(), tokens_of(mask.contiguous(), patch=4), ALL)
    for got, wanted in zip(found, right, strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), **TOLERANCE)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_last_dimension_that_is_not_contiguous(path: str) -> None:
    """Of one path or another; those that need adjacent dimensions say so when they are named."""
    x = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(9)).transpose(1, 2)  # strides 45, 1, 9
    narrow = torch.randn(3, 9, 1, generator=torch.Generator().manual_seed(9)).expand(3, 9, 5)  # stride 0
    tokens = ragged(3, 9, "scattered")
    for view in (x, narrow):
        right = pool_by("reference", view.contiguous().double(), tokens, ALL)[0]
        assert path_used(view) == "blocked torch"
        if path in ("native", "triton"):
            with pytest.raises(SpecError, match="does not serve"):
                pool_by(path, view, tokens, ALL)
            continue
        torch.testing.assert_close(pool_by(path, view, tokens, ALL)[0].double(), right, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_integers_are_taken_as_float32_by_the_definition_alone(dtype: torch.dtype) -> None:
    x = torch.arange(90).remainder(7).view(3, 6, 5).to(dtype)
    tokens = ragged(3, 6, "scattered")
    right = pool_by("reference", x.to(torch.float32), tokens, ALL)[0]
    found = pool_by("auto", x, tokens, ALL)[0]
    assert path_used(x) == "reference"
    assert found.dtype == torch.float32
    assert torch.equal(found, right)
    for path in ("native", "blocked torch", "triton"):
        with pytest.raises(SpecError, match="does not serve"):
            pool_by(path, x, tokens, ALL)


@pytest.mark.parametrize("path", ["auto", "reference"])
@pytest.mark.parametrize("make", [torch.Tensor.cfloat, torch.Tensor.to_sparse], ids=["complex", "sparse"])
def test_complex_and_sparse_tokens_are_refused(make: Callable[[torch.Tensor], torch.Tensor], path: str) -> None:
    x = make(torch.ones(2, 3, 4))
    with pytest.raises(EncoderError, match="real numbers in a dense tensor"):
        pool(x, ragged(2, 3, "all"), Slots.parse(["mean"]), path=path)
    with pytest.raises(SpecError, match="does not serve"):
        pool(x, ragged(2, 3, "all"), Slots.parse(["mean"]), path="blocked torch")


@needs_triton
@pytest.mark.parametrize(
    ("capability", "served"),
    [((7, 0), ()), ((7, 5), (torch.float32, torch.float16)), ((8, 0), (torch.float32, torch.float16, torch.bfloat16))],
)
def test_a_gpu_too_old_for_a_type_takes_separate_operations(
    capability: tuple[int, int],
    served: tuple[torch.dtype, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(ops, "_has_triton", functools.cache(ops._has_triton.__wrapped__))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with FakeTensorMode():
            x = torch.empty(2, 3, 4, device="cuda", dtype=dtype)
            caplog.clear()
            assert path_used(x) == ("triton" if dtype in served else "reference")
            assert ("too old for" in caplog.text) == (dtype not in served)
            if dtype not in served:
                with pytest.raises(SpecError, match="'triton' does not serve"):
                    ops._choose(x, "triton")


# ---- windows of one series


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
