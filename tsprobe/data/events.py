"""Generated series with events: short waveforms of known kinds, at known times, over a periodic background.

The background is sin(2πi/p + q) + 0.3 n_i with n_i ~ N(0, 1), p log-uniform in [24, 96] and q uniform. Events come
after gaps of `SPACING` plus an exponential of mean 48 steps, rounded down, so that a time says little about the next; a
series in which none would lie gets one at its middle. With d steps after the time of an event, a kind of equal chance,
a sign of equal chance, and its size a uniform in [1.5, 3], this is added:

| event | waveform |
|---|---|
| bump | a exp(-(d/3)²/2) |
| burst | a cos(2πd/5) exp(-(d/6)²/2) |
| strike | a exp(-d/6) from d = 0 on, 0 before |

The truth of a step is in `[N, S, 4]`: the **offset** from the nearest event in steps, negative before it, NaN farther
than `REACH` from all; then for each kind whether the nearest event is of this kind, 0 for all farther than `REACH`.
Events lie more than twice `REACH` apart, so that only one can be that near, and the offset is linear about each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tsprobe.data.states import States, generator

if TYPE_CHECKING:
    from jaxtyping import Float64

KINDS = ("bump", "burst", "strike")
REACH = 16  # steps on each side of an event: one or two tokens of most encoders
SPACING = 2 * REACH + 1
_PAUSE = 48  # mean steps between events beyond the spacing


def events(n: int, *, length: int, seed: int | tuple[int, ...]) -> States:
    """Series with events, and what is true of their steps. Raises `SpecError` for none, or fewer than 64 steps."""
    rng = generator(n, length, seed)
    values, truth = np.empty((n, 1, length), np.float32), np.zeros((n, length, 1 + len(KINDS)))
    steps = np.arange(length)
    for x, true in zip(values[:, 0], truth, strict=True):
        period, phase = np.exp(rng.uniform(np.log(24), np.log(96))), rng.uniform(0, 2 * np.pi)
        series = np.sin(2 * np.pi * steps / period + phase) + 0.3 * rng.standard_normal(length)
        true[:, 0] = np.nan
        for time in _times(rng, length):
            kind, size = int(rng.integers(len(KINDS))), rng.choice([-1, 1]) * rng.uniform(1.5, 3)
            after = (steps - time).astype(np.float64)
            series += size * _waveform(KINDS[kind], after)
            near = np.abs(after) <= REACH
            true[near, 0] = after[near]
            true[near, 1 + kind] = 1
        x[:] = series
    return States(values, truth)


def _times(rng: np.random.Generator, length: int) -> list[int]:
    time, times = int(rng.exponential(_PAUSE)), []
    while time < length:
        times.append(time)
        time += SPACING + int(rng.exponential(_PAUSE))
    return times or [length // 2]


def _waveform(kind: str, after: Float64[np.ndarray, " S"]) -> Float64[np.ndarray, " S"]:
    if kind == "bump":
        return np.exp(-np.square(after / 3) / 2)
    if kind == "burst":
        return np.cos(2 * np.pi * after / 5) * np.exp(-np.square(after / 6) / 2)
    return np.where(after >= 0, np.exp(-np.maximum(after, 0) / 6), 0)
