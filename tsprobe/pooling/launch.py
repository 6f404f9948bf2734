"""Launching of the kernels: sizes of tiles, splits over tokens, memory for the parts. Imported only when they run."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tsprobe.pooling import kernels
from tsprobe.pooling.kinds import Kind
from tsprobe.pooling.norm import Norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float

SEGMENTS = 8  # segments a read: each needs an accumulator, and more of them would leave the registers
WHOLE = 8192  # the widest token that one program can hold, as a norm or an attention needs
SPLITS = 256  # the most parts of a row: the second kernel holds one value of each
FUSED = {"enable_fp_fusion": True}  # products and sums in one instruction; said, as triton's default is changing
REGISTERS = 65_536  # of a multiprocessor
FILL = 4  # programs of four warps that a multiprocessor is to run at once: 64 kilobytes of tokens are then under way


class Plan(NamedTuple):
    """How the work is cut. `tile` x `lanes` tokens of `block` dimensions are read at a time, in so many `registers`."""

    tile: int
    lanes: int
    block: int
    warps: int
    registers: int
    blocks: int
    splits: int
    span: int


def plan(x: Float[Tensor, "R T D"], *, norm: bool = False, query: bool = False, segments: int = 0) -> Plan:
    """A plan that depends on shape, type and device alone, so that results do not change from run to run.

    With a norm or a query a program must hold all dimensions of a token.
    """
    rows, tokens, width = x.shape
    if norm or query:
        block, lanes = _power(max(16, width)), 1
        tile = max(2, min(8, 8192 // block))
        warps = min(16, max(4, block // 256))
    else:
        # 256 adjacent bytes of a token; the 8,192 values of a tile are 64 registers a thread in float32
        block = min(_power(max(16, width)), 256 // x.element_size())
        # each segment has accumulators, which leave few registers for tokens
        lanes, tile, warps = min(32, 1024 // block), 4 if segments > 2 else 8, 4
    # Left to itself the compiler takes 168 a thread, and a multiprocessor then runs three programs where it could four.
    # With both a norm and a query, or some segments, it would have to spill them.
    registers = 255 if (norm and query) or segments > 2 else REGISTERS // (FILL * 4 * 32)
    blocks = _ceil(width, block)
    step = tile * lanes
    splits = _splits(rows * blocks, _programs(x.device.index, warps * registers), tokens // (4 * step))
    span = max(1, _ceil(_ceil(tokens, splits), step) * step)
    return Plan(tile, lanes, block, warps, registers, blocks, max(1, _ceil(tokens, span)), span)


@functools.lru_cache(1024)  # asked for at every layer of every batch
def _splits(work: int, programs: int, most: int) -> int:
    """The fewest parts of a row, up to `most`, that keep the chip busy to nine tenths; else those that do so best.

    Programs run in waves of as many as fill the chip, and a last wave of few takes as long as a whole one.
    """

    def busy(splits: int) -> float:
        return min(0.9, work * splits / (_ceil(work * splits, programs) * programs))

    return max(range(1, max(1, min(SPLITS, most)) + 1), key=lambda splits: (busy(splits), -splits))


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


@functools.cache
def _programs(device: int | None, registers: int) -> int:
    """How many programs fill the chip, of so many registers times warps; one where they are only interpreted."""
    if not torch.cuda.is_available():
        return 1
    return resident(registers) * torch.cuda.get_device_properties(device or 0).multi_processor_count


def resident(registers: int) -> int:
    """Programs that a multiprocessor runs at once."""
    return max(1, REGISTERS // (32 * registers))


def _limits(x: Tensor, how: Plan) -> dict[str, int]:
    """Registers of a thread, a word that only compilers for NVIDIA's chips know."""
    return {"maxnreg": how.registers} if x.is_cuda and torch.version.cuda else {}


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def pool(
    x: Float[Tensor, "R T D"],
    mask: Bool[Tensor, "R T"],
    share: Float[Tensor, "R T K"] | None,
    kinds: Sequence[int],
    cls: int,
    *,
    norm: Norm | None = None,
    query: Float[Tensor, " D"] | None = None,
) -> Float[Tensor, "R P D"]:
    """Slots of the given kinds (numbers of `Kind`) in float32; with a query one more behind them, attention.

    More than `SEGMENTS` segments take a further read for each `SEGMENTS` of them.
    """
    slots = len(kinds) + (query is not None)
    out = torch.empty(x.shape[0], slots, x.shape[2], dtype=torch.float32, device=x.device)
    if not x.numel():
        return out.zero_()
    places = {kind: kinds.index(kind) if kind in kinds else -1 for kind in Kind}
    attention = len(kinds) if query is not None else -1
    share = out if share is None else share.to(torch.float32).contiguous()
    segments = share.shape[2] if Kind.SEGMENT in kinds else 0
    how = plan(x, norm=norm is not None, query=query is not None, segments=min(segments, SEGMENTS))
    totals = share.sum(1) if segments else out
    work = Work(x, mask, share, totals, out, _vectors(x, norm, query), segments, cls, norm)
    for k0 in range(0, max(1, segments), SEGMENTS):
        with _on(x):
            _read(work, how, places, attention, k0)
        places = dict.fromkeys(places, -1) | {Kind.SEGMENT: places[Kind.SEGMENT]}
        attention = -1
    return out


def _on(x: Tensor) -> AbstractContextManager[object]:
    """The GPU that holds `x`: triton launches on the current one, whatever its arguments."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _vectors(x: Tensor, norm: Norm | None, query: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, weight and bias; anything stands for what is not read."""
    if norm is None:
        return (x if query is None else query.contiguous(), x, x)
    weight = x.new_ones(x.shape[2]) if norm.weight is None else norm.weight.contiguous()
    bias = x.new_zeros(x.shape[2]) if norm.bias is None else norm.bias.contiguous()
    return (x if query is None else query.contiguous(), weight, bias)


class Work(NamedTuple):
    """What one call reads and writes; `vectors` are query, weight and bias."""

    x: Tensor
    mask: Tensor
    share: Tensor
    totals: Tensor
    out: Tensor
    vectors: tuple[Tensor, Tensor, Tensor]
    segments: int
    cls: int
    norm: Norm | None


def _read(work: Work, how: Plan, places: dict[Kind, int], attention: int, k0: int) -> None:
    """One read of the tokens: the kernel, and the merge of its parts where rows are split."""
    x, mask, share, totals, out, vectors, segments, cls, norm = work
    rows, tokens, width = x.shape
    k = min(SEGMENTS, segments - k0)
    split = how.splits > 1
    parts = out.new_empty(rows * how.splits, 7 + k, width) if split else out
    scalars = out.new_empty(rows * how.splits, 3) if split else out
    fixed = {kind.name: places[kind] for kind in Kind if kind != Kind.CLS} | {"K": k, "ATTENTION": attention}
    bits = mask.view(torch.uint8)
    kernels._pool[(rows * how.blocks, how.splits)](
        *(x, bits, share, totals, *vectors, out, parts, scalars),
        *(x.stride(0), x.stride(1), mask.stride(0), mask.stride(1), tokens, width, out.shape[1], segments, k0, cls),
        *(how.blocks, how.splits, how.span, norm.eps if norm else 0.0),
        **fixed,
        CLS=places[Kind.CLS],
        NORM={"layer": 1, "rms": 2}[norm.kind] if norm else 0,
        SPLIT=split,
        EXACT=width % how.block == 0,
        TILE=how.tile,
        LANES=how.lanes,
        BLOCK=how.block,
        SCAN=min(4096, _power(max(16, min(tokens, how.span)))),
        num_warps=how.warps,
        **_limits(x, how),
        **FUSED,
    )
    if split:
        block = min(how.block, max(16, 8192 // _power(how.splits)))
        blocks = _ceil(width, block)
        kernels._combine[(rows * blocks,)](
            *(parts, scalars, totals, out, width, out.shape[1], segments, k0, blocks, how.splits),
            **fixed,
            SPLITS=_power(how.splits),
            BLOCK=block,
            **FUSED,
        )


def backward(
    x: Float[Tensor, "R T D"],
    mask: Bool[Tensor, "R T"],
    share: Float[Tensor, "R T K"] | None,
    coefficients: dict[str, Tensor],
) -> Float[Tensor, "R T D"]:
    """Gradient of the tokens from the coefficients `[R, D]` of each row that `gradient.coefficients` gives."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not out.numel():
        return out
    with _on(x):
        _read_backward(x, mask, share, coefficients, out)
    return out


def _read_backward(x: Tensor, mask: Tensor, share: Tensor | None, c: dict[str, Tensor], out: Tensor) -> None:
    rows, tokens, width = x.shape
    how = plan(x)
    step = how.tile * how.lanes
    grid, sizes = (rows * how.blocks, how.splits), (how.blocks, how.span)
    strides = (x.stride(0), x.stride(1), mask.stride(0), mask.stride(1), tokens, width)
    bits = mask.view(torch.uint8)
    none = c["constant"]
    to_largest, to_smallest = c.get("to_largest", none), c.get("to_smallest", none)
    if "largest" in c:
        ties = none.new_empty(rows * how.splits, 2, width)
        kernels._count_ties[grid](
            *(x, bits, c["largest"], c["smallest"], ties, *strides, how.blocks, how.splits, how.span),
            TILE=step,
            BLOCK=how.block,
            **FUSED,
        )
        number = ties.view(rows, how.splits, 2, width).sum(1).clamp(min=1)
        to_largest, to_smallest = to_largest / number[:, 0], to_smallest / number[:, 1]
    kernels._backward[grid](
        *(x, bits, none if share is None else share.to(torch.float32).contiguous(), none),
        *(c.get("slope", none), c.get("center", none), c.get("largest", none), to_largest),
        *(c.get("smallest", none), to_smallest, c.get("to_segments", none), out, *strides),
        *(0 if share is None else share.shape[2], *sizes),
        SPREAD="slope" in c,
        EXTREMES="largest" in c,
        SEGMENTED="to_segments" in c,
        TILE=step,
        BLOCK=how.block,
        **FUSED,
    )
