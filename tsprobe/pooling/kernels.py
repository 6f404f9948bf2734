"""Pooling on the GPU: one read of the tokens gives every statistic. The only file that imports triton.

A program owns a row and a block of dimensions (all of them where a norm or an attention needs whole tokens) and walks
over its tokens in tiles `[TILE, LANES, BLOCK]`. Tiles are reduced along their first axis only, which lies within a
thread, into accumulators `[LANES, BLOCK]`; nothing crosses a thread before the last tile. Each tile gives its own mean
and sum of squared deviations, merged by the parallel variance formula (Chan, Golub and LeVeque 1983); everything is
summed in float32, in an order that depends on shapes and the device alone, without atomics. Where rows and blocks are
too few to fill the chip, the tokens are split over programs and a second, small kernel merges their parts.

Runs in Triton's interpreter too (`TRITON_INTERPRET=1` before triton is imported).
"""

# Triton reads this source itself and knows no star in a tuple and no `and` between a constant and a value.
# ruff: noqa: RUF005, SIM102
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normalise(v, weight, bias, d, keep, D, eps, NORM: tl.constexpr):
    """LayerNorm (1) or RMSNorm (2) of tokens `[TILE * LANES, BLOCK]` whose places past D are 0."""
    if NORM == 1:
        v = tl.where(keep[None, :], v - (tl.sum(v, 1) / D)[:, None], 0.0)
    if NORM:
        v = v * tl.rsqrt(tl.sum(v * v, 1) / D + eps)[:, None]
        v = v * tl.load(weight + d, mask=keep, other=0.0).to(tl.float32)[None, :]
        v += tl.load(bias + d, mask=keep, other=0.0).to(tl.float32)[None, :]
    return v


@triton.jit
def _token(x, t, x_token, weight, bias, d, keep, D, eps, NORM: tl.constexpr):
    """One token, normalised as above (in one dimension: as a tile of one, every thread would hold all of it)."""
    v = tl.load(x + t * x_token + d, mask=keep, other=0.0).to(tl.float32)
    if NORM == 1:
        v = tl.where(keep, v - tl.sum(v, 0) / D, 0.0)
    if NORM:
        v = v * tl.rsqrt(tl.sum(v * v, 0) / D + eps) * tl.load(weight + d, mask=keep, other=0.0).to(tl.float32)
        v += tl.load(bias + d, mask=keep, other=0.0).to(tl.float32)
    return v


@triton.jit
def _scan(mask, mask_token, low, high, SCAN: tl.constexpr):
    """Number, first and last of the real tokens of a part of a row."""
    count = tl.zeros([SCAN], tl.int32)
    first = tl.full([SCAN], 2147483647, tl.int32)
    last = tl.full([SCAN], -1, tl.int32)
    for t0 in range(low, high, SCAN):
        t = t0 + tl.arange(0, SCAN)
        real = tl.load(mask + t.to(tl.int64) * mask_token, mask=t < high, other=0) != 0
        count += real.to(tl.int32)
        first = tl.minimum(first, tl.where(real, t, 2147483647))
        last = tl.maximum(last, tl.where(real, t, -1))
    return tl.sum(count, 0), tl.min(first, 0), tl.max(last, 0)


@triton.jit
def _shares(n, count):
    """1 / count, 1 / n, and the weight of the squared difference of the means; no token counts as one."""
    return 1.0 / tl.maximum(count, 1.0), 1.0 / tl.maximum(n, 1.0), n * count / tl.maximum(n + count, 1.0)


@triton.jit
def _tile(
    x, mask, share, query, weight, bias, x_token, mask_token, share_token, t0, stop, d, keep, D, eps,
    n, total, m2, largest, smallest, segments, top, denominator, attended,
    SPREAD: tl.constexpr, EXTREMES: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, ATTEND: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Merge one tile into the accumulators, n tokens a lane. Without MASKED every token of it is known to be real.

    All lanes then count alike, and numbers are exchanged between threads for none of it.
    """
    # Loaded as a matrix, whose rows the compiler reads in wide pieces; lane and warp then fall on the second axis.
    t = (t0 + tl.arange(0, TILE * LANES)).to(tl.int64)
    at = x + (t * x_token)[:, None] + d[None, :]
    if MASKED:
        real = tl.load(mask + t * mask_token, mask=t < stop, other=0) != 0
        v = tl.load(at, mask=real[:, None] & keep[None, :], other=0.0).to(tl.float32)
    else:
        real = t >= 0
        v = tl.load(at, mask=keep[None, :], other=0.0).to(tl.float32)
    if NORM:
        v = _normalise(v, weight, bias, d, keep, D, eps, NORM)
        if MASKED:
            v = tl.where(real[:, None], v, 0.0)
    v = tl.reshape(v, [TILE, LANES, BLOCK])
    real = tl.reshape(real, [TILE, LANES])
    if MASKED:
        count = tl.sum(real.to(tl.float32), 0)
        of_tile, so_far, apart = _shares(n, count)
        of_tile, so_far, apart = of_tile[:, None], so_far[:, None], apart[:, None]
    else:
        count = TILE
        of_tile, so_far, apart = _shares(n, count)
    s = tl.sum(v, 0)
    if SPREAD:
        mean = s * of_tile
        deviation = v - mean[None, :, :]
        if MASKED:
            deviation = tl.where(real[:, :, None], deviation, 0.0)
        delta = mean - total * so_far
        m2 += tl.sum(deviation * deviation, 0) + delta * delta * apart
    total += s
    n += count
    if EXTREMES:
        if MASKED:
            largest = tl.maximum(largest, tl.max(tl.where(real[:, :, None], v, float("-inf")), 0))
            smallest = tl.minimum(smallest, tl.min(tl.where(real[:, :, None], v, float("inf")), 0))
        else:
            largest = tl.maximum(largest, tl.max(v, 0))
            smallest = tl.minimum(smallest, tl.min(v, 0))
    merged = ()
    for k in tl.static_range(K):
        w = tl.reshape(tl.load(share + t * share_token + k, mask=t < stop, other=0.0), [TILE, LANES])
        merged = merged + (segments[k] + tl.sum(v * w[:, :, None], 0),)
    if ATTEND:
        q = tl.load(query + d, mask=keep, other=0.0).to(tl.float32)
        score = tl.where(real, tl.sum(v * q[None, None, :], 2), float("-inf"))
        higher = tl.maximum(top, tl.max(score, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # no real token yet: exp(-inf - 0) is 0, not NaN
        part = tl.exp(score - safe[None, :])
        old = tl.exp(top - safe)
        denominator = denominator * old + tl.sum(part, 0)
        attended = attended * old[:, None] + tl.sum(part[:, :, None] * v, 0)
        top = higher
    return n, total, m2, largest, smallest, merged, top, denominator, attended


@triton.jit
def _put(out, r, P, place, d, keep, D, value):
    tl.store(out + (r * P + place) * D + d, value, mask=keep)


@triton.jit
def _finish(
    out, totals, r, P, K_ALL, k0, d, keep, D, n, mean, m2, largest, smallest, segments, attended,
    MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr, STD: tl.constexpr,
    SEGMENT: tl.constexpr, ATTENTION: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Write the slots of one row and block; a row without a real token is all zeros."""
    if MEAN >= 0:
        _put(out, r, P, MEAN, d, keep, D, mean)
    if MAX >= 0:
        _put(out, r, P, MAX, d, keep, D, tl.where(n > 0, largest, 0.0))
    if MIN >= 0:
        _put(out, r, P, MIN, d, keep, D, tl.where(n > 0, smallest, 0.0))
    if STD >= 0:
        _put(out, r, P, STD, d, keep, D, tl.sqrt(m2 / tl.maximum(n, 1.0)))
    for k in tl.static_range(K):
        steps = tl.load(totals + r * K_ALL + k0 + k)
        _put(out, r, P, SEGMENT + k0 + k, d, keep, D, segments[k] / tl.where(steps > 0, steps, 1.0))
    if ATTENTION >= 0:
        _put(out, r, P, ATTENTION, d, keep, D, attended)


@triton.jit
def _pool(
    x, mask, share, totals, query, weight, bias, out, parts, scalars,
    x_row, x_token, mask_row, mask_token, T, D, P, K_ALL, k0, cls, blocks, splits, span, eps,
    MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr, STD: tl.constexpr, FIRST: tl.constexpr,
    LAST: tl.constexpr, CLS: tl.constexpr, SEGMENT: tl.constexpr, ATTENTION: tl.constexpr, K: tl.constexpr,
    NORM: tl.constexpr, SPLIT: tl.constexpr, EXACT: tl.constexpr,
    TILE: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    """Pool one part of one row in one block of dimensions; with EXACT all blocks are full."""
    r = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    keep = d < D
    if EXACT:
        keep = tl.full([BLOCK], 1, tl.int1)
    part = tl.program_id(1)
    low = part * span
    high = tl.minimum(low + span, T)
    x += r * x_row
    mask += r * mask_row
    share += r * T * K_ALL + k0
    count, first, last = _scan(mask, mask_token, low, high, SCAN)

    SPREAD: tl.constexpr = STD >= 0
    EXTREMES: tl.constexpr = (MAX >= 0) | (MIN >= 0)
    ATTEND: tl.constexpr = ATTENTION >= 0
    n = tl.zeros([LANES], tl.float32)
    total = tl.zeros([LANES, BLOCK], tl.float32)
    m2 = tl.zeros([LANES, BLOCK], tl.float32)
    largest = tl.full([LANES, BLOCK], float("-inf"), tl.float32)
    smallest = tl.full([LANES, BLOCK], float("inf"), tl.float32)
    segments = ()
    for _ in tl.static_range(K):
        segments = segments + (tl.zeros([LANES, BLOCK], tl.float32),)
    top = tl.full([LANES], float("-inf"), tl.float32)
    denominator = tl.zeros([LANES], tl.float32)
    attended = tl.zeros([LANES, BLOCK], tl.float32)
    if (MEAN >= 0) | SPREAD | EXTREMES | (K > 0) | ATTEND:
        # Padding stands before and after the real tokens as a rule: where they adjoin, whole tiles need no mask.
        adjoin = count == last - first + 1
        whole = tl.where(adjoin, count // (TILE * LANES) * (TILE * LANES), 0)
        # Counted from the first real token: a loop that starts anywhere else hides from the compiler that rows of the
        # matrix are aligned, and it would load single values.
        begin = tl.cast(tl.where(count > 0, first, 0), tl.int64)
        size = last + 1 - first
        x_0, mask_0, share_0 = x + begin * x_token, mask + begin * mask_token, share + begin * K_ALL
        alike = 0.0
        for t0 in range(0, whole, TILE * LANES):
            alike, total, m2, largest, smallest, segments, top, denominator, attended = _tile(
                x_0, mask_0, share_0, query, weight, bias, x_token, mask_token, K_ALL, t0, size, d, keep, D, eps,
                alike, total, m2, largest, smallest, segments, top, denominator, attended,
                SPREAD, EXTREMES, K, NORM, ATTEND, BLOCK, False, TILE, LANES,
            )  # fmt: skip
        n += alike
        for t0 in range(whole, size, TILE * LANES):
            n, total, m2, largest, smallest, segments, top, denominator, attended = _tile(
                x_0, mask_0, share_0, query, weight, bias, x_token, mask_token, K_ALL, t0, size, d, keep, D, eps,
                n, total, m2, largest, smallest, segments, top, denominator, attended,
                SPREAD, EXTREMES, K, NORM, ATTEND, BLOCK, True, TILE, LANES,
            )  # fmt: skip

    all_n = tl.sum(n, 0)
    all_total = tl.sum(total, 0)
    mean = all_total / tl.maximum(all_n, 1.0)
    apart = total / tl.maximum(n, 1.0)[:, None] - mean[None, :]
    all_m2 = tl.sum(m2 + n[:, None] * apart * apart, 0)
    all_largest = tl.max(largest, 0)
    all_smallest = tl.min(smallest, 0)
    if EXTREMES:
        # The hardware's maximum drops NaN. A NaN shows in the sum, and only then are the tokens read for it again.
        if tl.max((all_total != all_total).to(tl.int32), 0) > 0:
            bad = tl.zeros([BLOCK], tl.float32)
            for t in range(first, last + 1):
                if tl.load(mask + tl.cast(t, tl.int64) * mask_token) != 0:
                    v = _token(x, tl.cast(t, tl.int64), x_token, weight, bias, d, keep, D, eps, NORM)
                    bad += tl.where(v != v, 1.0, 0.0)
            all_largest = tl.where(bad > 0, float("nan"), all_largest)
            all_smallest = tl.where(bad > 0, float("nan"), all_smallest)
    merged = ()
    for k in tl.static_range(K):
        merged = merged + (tl.sum(segments[k], 0),)
    all_top = tl.max(top, 0)
    old = tl.exp(top - tl.where(all_top == float("-inf"), 0.0, all_top))
    all_denominator = tl.sum(denominator * old, 0)
    all_attended = tl.sum(attended * old[:, None], 0)

    if CLS >= 0:
        if part == 0:
            v = _token(x, tl.cast(cls, tl.int64), x_token, weight, bias, d, keep, D, eps, NORM)
            _put(out, r, P, CLS, d, keep, D, v)
    at_first = tl.cast(tl.where(count > 0, first, 0), tl.int64)
    at_last = tl.cast(tl.where(count > 0, last, 0), tl.int64)
    row = r
    slots = P
    if SPLIT:  # the same slots, in a part's own row of `parts`
        row = r * splits + part
        slots = 7 + K
        tl.store(scalars + row * 3, count.to(tl.float32))
        tl.store(scalars + row * 3 + 1, all_top)
        tl.store(scalars + row * 3 + 2, all_denominator)
        _put(parts, row, slots, 0, d, keep, D, all_total)
        if SPREAD:
            _put(parts, row, slots, 1, d, keep, D, all_m2)
        if MAX >= 0:
            _put(parts, row, slots, 2, d, keep, D, all_largest)
        if MIN >= 0:
            _put(parts, row, slots, 3, d, keep, D, all_smallest)
        if ATTEND:
            _put(parts, row, slots, 4, d, keep, D, all_attended)
        for k in tl.static_range(K):
            _put(parts, row, slots, 7 + k, d, keep, D, merged[k])
    if FIRST >= 0:
        v = _token(x, at_first, x_token, weight, bias, d, keep, D, eps, NORM)
        v = tl.where(count > 0, v, 0.0)
        if SPLIT:
            _put(parts, row, slots, 5, d, keep, D, v)
        else:
            _put(out, r, P, FIRST, d, keep, D, v)
    if LAST >= 0:
        v = _token(x, at_last, x_token, weight, bias, d, keep, D, eps, NORM)
        v = tl.where(count > 0, v, 0.0)
        if SPLIT:
            _put(parts, row, slots, 6, d, keep, D, v)
        else:
            _put(out, r, P, LAST, d, keep, D, v)
    if not SPLIT:
        attended_mean = all_attended / tl.where(all_denominator > 0, all_denominator, 1.0)
        _finish(out, totals, r, P, K_ALL, k0, d, keep, D, all_n, mean, all_m2, all_largest, all_smallest, merged,
                attended_mean, MEAN, MAX, MIN, STD, SEGMENT, ATTENTION, K)  # fmt: skip


@triton.jit
def _combine(
    parts, scalars, totals, out, D, P, K_ALL, k0, blocks, splits,
    MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr, STD: tl.constexpr, FIRST: tl.constexpr,
    LAST: tl.constexpr, SEGMENT: tl.constexpr, ATTENTION: tl.constexpr, K: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one row in one block of dimensions."""
    r = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    keep = d < D
    s = tl.arange(0, SPLITS)
    there = s < splits
    row = r * splits + s
    count = tl.load(scalars + row * 3, mask=there, other=0.0)
    real = count > 0
    at = parts + (row * (7 + K) * D)[:, None] + d[None, :]
    live = real[:, None] & keep[None, :]
    n = tl.sum(count, 0)
    total = tl.load(at, mask=live, other=0.0)
    mean = tl.sum(total, 0) / tl.maximum(n, 1.0)
    m2 = mean
    largest = mean
    smallest = mean
    attended = mean
    if STD >= 0:
        apart = tl.where(real[:, None], total / tl.maximum(count, 1.0)[:, None] - mean[None, :], 0.0)
        m2 = tl.sum(tl.load(at + D, mask=live, other=0.0) + count[:, None] * apart * apart, 0)
    if MAX >= 0:
        v = tl.load(at + 2 * D, mask=live, other=float("-inf"))
        bad = tl.max((v != v).to(tl.int32), 0) > 0
        largest = tl.where(bad, float("nan"), tl.max(tl.where(v != v, float("-inf"), v), 0))
    if MIN >= 0:
        v = tl.load(at + 3 * D, mask=live, other=float("inf"))
        bad = tl.max((v != v).to(tl.int32), 0) > 0
        smallest = tl.where(bad, float("nan"), tl.min(tl.where(v != v, float("inf"), v), 0))
    if ATTENTION >= 0:
        top = tl.load(scalars + row * 3 + 1, mask=there, other=float("-inf"))
        highest = tl.max(top, 0)
        w = tl.exp(top - tl.where(highest == float("-inf"), 0.0, highest))
        denominator = tl.sum(w * tl.load(scalars + row * 3 + 2, mask=there, other=0.0), 0)
        v = tl.load(at + 4 * D, mask=live, other=0.0)
        attended = tl.sum(v * w[:, None], 0) / tl.where(denominator > 0, denominator, 1.0)
    if FIRST >= 0:
        here = s == tl.min(tl.where(real, s, SPLITS), 0)
        v = tl.load(at + 5 * D, mask=live & here[:, None], other=0.0)
        _put(out, r, P, FIRST, d, keep, D, tl.sum(v, 0))
    if LAST >= 0:
        here = s == tl.max(tl.where(real, s, -1), 0)
        v = tl.load(at + 6 * D, mask=live & here[:, None], other=0.0)
        _put(out, r, P, LAST, d, keep, D, tl.sum(v, 0))
    merged = ()
    for k in tl.static_range(K):
        merged = merged + (tl.sum(tl.load(at + (7 + k) * D, mask=live, other=0.0), 0),)
    _finish(out, totals, r, P, K_ALL, k0, d, keep, D, n, mean, m2, largest, smallest, merged, attended,
            MEAN, MAX, MIN, STD, SEGMENT, ATTENTION, K)  # fmt: skip


@triton.jit
def _count_ties(
    x, mask, largest, smallest, ties, x_row, x_token, mask_row, mask_token, T, D, blocks, splits, span,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many real tokens of a part hold the largest, and how many the smallest value of a dimension."""
    r = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    keep = d < D
    low = tl.program_id(1) * span
    high = tl.minimum(low + span, T)
    top = tl.load(largest + r * D + d, mask=keep, other=0.0)
    bottom = tl.load(smallest + r * D + d, mask=keep, other=0.0)
    tops = tl.zeros([BLOCK], tl.float32)
    bottoms = tl.zeros([BLOCK], tl.float32)
    for t0 in range(low, high, TILE):
        t = (t0 + tl.arange(0, TILE)).to(tl.int64)
        real = tl.load(mask + r * mask_row + t * mask_token, mask=t < high, other=0) != 0
        live = real[:, None] & keep[None, :]
        v = tl.load(x + r * x_row + (t * x_token)[:, None] + d[None, :], mask=live, other=0.0).to(tl.float32)
        tops += tl.sum((live & (v == top[None, :])).to(tl.float32), 0)
        bottoms += tl.sum((live & (v == bottom[None, :])).to(tl.float32), 0)
    row = r * splits + tl.program_id(1)
    _put(ties, row, 2, 0, d, keep, D, tops)
    _put(ties, row, 2, 1, d, keep, D, bottoms)


@triton.jit
def _backward(
    x, mask, share, constant, slope, center, largest, to_largest, smallest, to_smallest, to_segments, out,
    x_row, x_token, mask_row, mask_token, T, D, K, blocks, span,
    SPREAD: tl.constexpr, EXTREMES: tl.constexpr, SEGMENTED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of every token of a part from coefficients `[R, D]` of its row; single tokens are added afterwards."""
    r = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    keep = d < D
    low = tl.program_id(1) * span
    high = tl.minimum(low + span, T)
    at = r * D + d
    # Read here, as in the loop the compiler would read them again and again: for all it knows a store has changed them.
    base = tl.load(constant + at, mask=keep, other=0.0)
    if SPREAD:
        middle = tl.load(center + at, mask=keep, other=0.0)
        rise = tl.load(slope + at, mask=keep, other=0.0)
    if EXTREMES:
        top = tl.load(largest + at, mask=keep, other=0.0)
        bottom = tl.load(smallest + at, mask=keep, other=0.0)
        of_top = tl.load(to_largest + at, mask=keep, other=0.0)
        of_bottom = tl.load(to_smallest + at, mask=keep, other=0.0)
    for t0 in range(low, high, TILE):
        t = (t0 + tl.arange(0, TILE)).to(tl.int64)
        real = tl.load(mask + r * mask_row + t * mask_token, mask=t < high, other=0) != 0
        live = real[:, None] & keep[None, :]
        g = tl.zeros([TILE, BLOCK], tl.float32) + base[None, :]
        if SPREAD | EXTREMES:
            v = tl.load(x + r * x_row + (t * x_token)[:, None] + d[None, :], mask=live, other=0.0).to(tl.float32)
            if SPREAD:
                g += (v - middle[None, :]) * rise[None, :]
            if EXTREMES:
                g += tl.where(v == top[None, :], of_top[None, :], 0.0)
                g += tl.where(v == bottom[None, :], of_bottom[None, :], 0.0)
        if SEGMENTED:
            for k in range(K):
                w = tl.load(share + (r * T + t) * K + k, mask=t < high, other=0.0)
                g += w[:, None] * tl.load(to_segments + (r * K + k) * D + d, mask=keep, other=0.0)[None, :]
        g = tl.where(live, g, 0.0)
        to = out + (r * T * D) + (t * D)[:, None] + d[None, :]
        tl.store(to, g.to(out.dtype.element_ty), mask=(t < high)[:, None] & keep[None, :])
