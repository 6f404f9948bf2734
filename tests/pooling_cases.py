"""Shapes and masks chosen to break a fused pooling, the paths that must stand them, and the referee in float64."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tsprobe.pooling import Slots, pool
from tsprobe.pooling.reference import pool as define
from tsprobe.types import TokenMap

ALL = ("mean", "max", "min", "std", "first", "last", "cls", "segments3")
# Half types hold x exactly once it is drawn, and all sums are float32: rounding of sums of up to 600 numbers of size 10
# in float32 is below 4e-6 of the largest; the std of tokens far from 0 is the worst of the slots.
TOLERANCE = {"rtol": 4e-6, "atol": 4e-6}

# By the compiler and not by the loop: a loop that its own check refuses must fail the tests, not skip them.
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
ON_CPU = [pytest.param("native", marks=needs_compiler), "blocked torch"]
EVERY_PATH = ["reference", *ON_CPU, pytest.param("triton", marks=needs_triton)]
GPU = "cuda" if torch.cuda.is_available() else "cpu"  # where the kernels run, in triton's interpreter on a CPU


class Case(NamedTuple):
    why: str
    rows: int
    tokens: int
    width: int
    view: Callable[[Tensor], Tensor] = lambda x: x


CASES = (
    Case("one token: std 0, first is last", 1, 1, 8),
    Case("nothing a power of two, tiles not full", 5, 63, 30),
    Case("fewer tokens than segments", 3, 2, 7),
    Case("one dimension", 2, 9, 1),
    Case("a whole number of tiles, no masks within", 2, 64, 16),
    Case("many tiles, a last one of a single token", 2, 257, 33),
    Case("tokens of every second place", 3, 42, 20, lambda x: x[:, ::2]),
    Case("rows in the middle dimension", 12, 3, 20, lambda x: x.transpose(0, 1)),
    Case("a slice of the width: tokens are not adjacent", 2, 11, 24, lambda x: x[:, :, 5:18]),
    Case("one row seen as many: stride 0", 1, 17, 12, lambda x: x.expand(4, -1, -1)),
    Case("one token seen as many: stride 0", 3, 1, 12, lambda x: x.expand(-1, 21, -1)),
)


def draw(case: Case, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(case.tokens)
    x = torch.randn(case.rows, case.tokens, case.width, generator=generator) * 3 + 5
    return case.view(x.to(dtype))


def ragged(rows: int, tokens: int, kind: str, cls: int = 0) -> TokenMap:
    """Row 0 has one real token and row 1 none, where there are so many rows; the others as `kind` says."""
    generator = torch.Generator().manual_seed(7)
    steps = torch.arange(tokens)
    mask = {
        "all": torch.ones(rows, tokens, dtype=torch.bool),
        "padded": steps <= torch.rand(rows, 1, generator=generator) * tokens,
        "scattered": torch.rand(rows, tokens, generator=generator) > 0.4,
    }[kind]
    if kind != "all" and rows > 1:
        mask = mask.clone()
        mask[0] = steps == tokens // 2
        mask[1] = False
    start = steps.expand(rows, tokens) * 4
    return TokenMap(mask, start, start + 4, cls)


def borders(rows: int, tokens: int, segments: int = 3) -> Tensor:
    """Borders that cut through tokens, and begin before the first of them."""
    return torch.linspace(-1.5, tokens * 4, segments + 1).expand(rows, segments + 1)


def referee(x: Tensor, tokens: TokenMap, names: tuple[str, ...], spans: Tensor | None) -> tuple[Tensor, Tensor]:
    return define(x.double(), tokens, Slots.parse(names), None if spans is None else spans.double())


def on_gpu(x: Tensor, tokens: TokenMap, spans: Tensor) -> tuple[Tensor, TokenMap, Tensor]:
    if GPU == "cpu":
        return x, tokens, spans  # keeps strides of 0, which a copy to the GPU would not
    moved = TokenMap(*(t.to(GPU) for t in (tokens.mask, tokens.start, tokens.stop)), tokens.cls)
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=GPU).copy_(x), moved, spans.to(GPU)


def pool_by(path: str, x: Tensor, tokens: TokenMap, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """By the path that is named, on the device where it runs; with the borders of three segments."""
    spans = borders(*x.shape[:2])
    if path == "triton":
        x, tokens, spans = on_gpu(x, tokens, spans)
    pooled, weight = pool(x, tokens, Slots.parse(names), spans, path)
    return pooled.cpu(), weight.cpu()
