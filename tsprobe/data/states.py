"""Generated series whose state is known at every step: regimes that switch, and waves that drift.

**Regimes.** A series goes through states that last `shortest` to `longest` steps each, uniformly, and are followed by
any other state, all equally likely. Every state has mean 0 and variance 1, so that neither level nor spread tells it:

| state | values |
|---|---|
| noise | n_i ~ N(0, 1) |
| drift | x_i = 0.95 x_{i-1} + sqrt(1 - 0.95²) n_i |
| slow wave | sqrt(1.8) sin(2π i / p + q), p log-uniform in [16, 24], plus sqrt(0.1) n_i |
| fast wave | the same, p in [6, 9] |

**Waves.** x_i = l_i + a_i cos(φ_i) + 0.1 n_i with φ_i = q + 2π Σ f_j over the steps j < i. Level l in about [-2, 2],
amplitude a in [0.5, 2] and frequency f in [1/64, 1/8] cycles a step (the last two in logarithm) go along smooth curves,
each of its own: a mean of three cosines of a random phase and 0.5, 1 and 2 periods to a series, in equal shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.errors import SpecError

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64

REGIMES = ("noise", "drift", "slow wave", "fast wave")
STATE = ("phase_cos", "phase_sin", "log2_frequency", "log2_amplitude", "level")
_SHORTEST, _LONGEST = 48, 144  # steps of a regime: several tokens of most encoders
MIN_LENGTH = 64


@dataclass(frozen=True, eq=False)
class States:
    """N series, and what is true of each of their steps: `[N, S]` classes, or `[N, S, K]` values."""

    values: Float32[np.ndarray, "N 1 S"]
    truth: Int64[np.ndarray, "N S"] | Float64[np.ndarray, "N S K"]


def regimes(n: int, *, length: int, seed: int | tuple[int, ...]) -> States:
    """Series that switch between `REGIMES`. Raises `SpecError` for none, or a length below 64 steps."""
    rng = generator(n, length, seed)
    values, truth = np.empty((n, 1, length), np.float32), np.empty((n, length), np.int64)
    for x, states in zip(values[:, 0], truth, strict=True):
        begin = -int(rng.integers(_SHORTEST))  # the first regime has begun before the series
        state = int(rng.integers(len(REGIMES)))
        while begin < length:
            stop = begin + int(rng.integers(_SHORTEST, _LONGEST + 1))
            here = slice(max(begin, 0), min(stop, length))
            x[here] = _regime(rng, state, max(here.stop - here.start, 0))
            states[here] = state
            state = (state + int(rng.integers(1, len(REGIMES)))) % len(REGIMES)
            begin = stop
    return States(values, truth)


def _regime(rng: np.random.Generator, state: int, steps: int) -> Float64[np.ndarray, " s"]:
    noise = rng.standard_normal(steps)
    if REGIMES[state] == "noise":
        return noise
    if REGIMES[state] == "drift":
        x = np.empty(steps)
        last = rng.standard_normal()
        for i in range(steps):
            last = x[i] = 0.95 * last + np.sqrt(1 - 0.95**2) * noise[i]
        return x
    low, high = (16, 24) if REGIMES[state] == "slow wave" else (6, 9)
    period = np.exp(rng.uniform(np.log(low), np.log(high)))
    angle = 2 * np.pi * np.arange(steps) / period + rng.uniform(0, 2 * np.pi)
    return np.sqrt(1.8) * np.sin(angle) + np.sqrt(0.1) * noise


def waves(n: int, *, length: int, seed: int | tuple[int, ...]) -> States:
    """Waves that drift, with their `STATE` at each step. Raises `SpecError` for none, or fewer than 64 steps."""
    rng = generator(n, length, seed)
    level = 2 * _curves(rng, n, length)
    amplitude, frequency = _curves(rng, n, length), -4.5 + 1.5 * _curves(rng, n, length)  # base-2 logarithms
    turns = np.cumsum(2.0**frequency, axis=1) - 2.0**frequency + rng.uniform(0, 1, (n, 1))
    angle = 2 * np.pi * turns
    x = level + 2.0**amplitude * np.cos(angle) + 0.1 * rng.standard_normal((n, length))
    truth = np.stack([np.cos(angle), np.sin(angle), frequency, amplitude, level], axis=2)
    return States(x[:, None].astype(np.float32), truth)


def _curves(rng: np.random.Generator, n: int, length: int) -> Float64[np.ndarray, "N S"]:
    """Smooth curves between -1 and 1."""
    time = np.arange(length) / length
    periods, phase = np.array([0.5, 1, 2]), rng.uniform(0, 1, (n, 3))
    return np.cos(2 * np.pi * (periods[:, None] * time + phase[..., None])).mean(1)


def generator(n: int, length: int, seed: int | tuple[int, ...]) -> np.random.Generator:
    if n < 1:
        raise SpecError(f"n is {n}; generate at least 1 series")
    if length < MIN_LENGTH:
        raise SpecError(f"length is {length}; regimes and waves need at least {MIN_LENGTH} steps")
    return np.random.default_rng(seed)
