"""Anomalies put into series that have none, and generated series to put them into.

| anomaly | what is done to w steps, w uniform in [8, 32] |
|---|---|
| burst | N(0, 1) noise is added, in standard deviations of the series |
| shift | ±[1, 2] standard deviations are added, at random |
| stuck | the value of the step before is kept |
| reversed | the steps run backwards, upside down about their mean |
| hurried | the steps run twice as fast: every other one of 2w (with what follows), so that nothing is repeated |

A generated series is sin(2πi/p + q) + b sin(4πi/p + r) + 0.1 n_i, p log-uniform in [12, 48], b uniform in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tsprobe.data.states import States, generator

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64, Shaped

KINDS = ("burst", "shift", "stuck", "reversed", "hurried")
SHORTEST, LONGEST = 8, 32


def anomalies(n: int, *, length: int, seed: int | tuple[int, ...]) -> States:
    """Periodic series with one or two anomalies each, and which steps belong to one, `[N, S, 1]` of 0 and 1.

    Raises `SpecError` for no series, or fewer than 64 steps.
    """
    rng = generator(n, length, seed)
    values, truth = np.empty((n, 1, length), np.float32), np.zeros((n, length, 1))
    time = np.arange(length)
    for x, label in zip(values[:, 0], truth[..., 0], strict=True):
        period = np.exp(rng.uniform(np.log(12), np.log(48)))
        first, second = rng.uniform(0, 2 * np.pi, 2)
        clean = np.sin(2 * np.pi * time / period + first)
        clean += rng.uniform(0, 1) * np.sin(4 * np.pi * time / period + second) + 0.1 * rng.standard_normal(length)
        for _ in range(int(rng.integers(1, 3))):
            clean, where = inject(rng, clean)
            label[where] = 1
        x[:] = clean
    return States(values, truth)


def inject(
    rng: np.random.Generator, x: Shaped[np.ndarray, " S"]
) -> tuple[Float64[np.ndarray, " S"], Int64[np.ndarray, " w"]]:
    """A copy of a series of at least 64 steps with one anomaly of a random kind, and its steps."""
    width = int(rng.integers(SHORTEST, LONGEST + 1))
    start = int(rng.integers(1, len(x) - width))
    kind = KINDS[int(rng.integers(len(KINDS)))]
    out, here = x.astype(np.float64), slice(start, start + width)
    spread = float(out.std())
    if kind == "burst":
        out[here] += spread * rng.standard_normal(width)
    elif kind == "shift":
        out[here] += spread * rng.uniform(1, 2) * rng.choice([-1, 1])
    elif kind == "stuck":
        out[here] = out[start - 1]
    elif kind == "reversed":
        out[here] = 2 * out[here].mean() - out[here][::-1]
    else:
        source = start + 2 * np.arange(width)
        out[here] = x[np.where(source < len(x), source, 2 * (len(x) - 1) - source)]
    return out, np.arange(start, start + width)
