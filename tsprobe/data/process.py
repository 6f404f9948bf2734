"""Mixtures of primitive processes with exact labels: what is in a series, and with which parameters.

In the spirit of Aionoscope (arXiv 2607.00956): 14 types of component, k distinct ones a series, drawn uniformly and
added. The parameters of the components that are present are the labels; all others are NaN.

With step i = 0 … S-1, rate r in steps a second (so t = i / r in seconds and T = S / r), and a in [x, y] with a random
sign written ±[x, y]; [x, y]* is log-uniform, all else uniform:

| component | values | parameters, units, ranges |
|---|---|---|
| constant | a | level a ±[0.5, 2] |
| gaussian_noise | s n_i, n_i ~ N(0, 1) | scale s (standard deviation) [0.1, 0.5]* |
| uniform_noise | h v_i, v_i ~ U(-1, 1) | scale h (half-width) [0.2, 0.9]* |
| random_walk | w_0 = 0, w_i = w_{i-1} + s n_i | scale s (of one step) [0.5, 2]* / √S |
| linear_trend | b (t - T/2) | slope b ±[1, 3] / T |
| quadratic_trend | c/2 ((t - T/2)² - T²/12) | curvature c (second derivative) ±[8, 24] / T² |
| logarithmic_trend | a log(1 + q t/T) / log(1 + q) | amplitude a ±[1, 3]; rate q [5, 200]* |
| sigmoid_trend | a / (1 + exp(-(t - m)/w)) | amplitude a ±[1, 3]; time m [0.2, 0.8] T; width w [0.02, 0.08]* T |
| sine | a sin(2π c), c = f t + p/2π | amplitude a [0.5, 2]; frequency f [3/T, r/8]*; sin p, cos p |
| sawtooth | -a to a in the first share d of a period, then back | as sine; rise d [0.65, 0.95] |
| square | a in the first share d of a period, then -a | as sine; duty d [0.25, 0.75] |
| spike | a exp(-abs(t - m)/w), m on a step | amplitude a ±[2, 5]; time m [0.1, 0.9] T; width w [0.5, 2]* / r |
| level_change | 0 before m, a from m on, m on a step | amplitude a ±[1, 3]; time m [0.1, 0.9] T |
| gaussian_bump | a exp(-(t - m)²/2w²) | amplitude a ±[1, 3]; time m [0.1, 0.9] T; width w [max(0.01 T, 3/r), 0.08 T]* |

Frequencies are in cycles a second, times and widths in seconds. A series holds at least 3 periods, and a period at
least 8 steps (a quarter of the Nyquist frequency), so that frequency, phase and duty can be told. Trends have no offset
of their own and a fixed reference, so that no parameter can be traded for another: the one level is the constant's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.errors import SpecError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

MIN_LENGTH = 64  # 3 periods to a series and 8 steps to a period leave a factor of 2.7 between the extremes here
_CHUNK = 1 << 20  # values made at a time: temporaries stay near the cache, and memory does not grow with N


@dataclass(frozen=True)
class _Grid:
    """The time axis of a batch of n series, and the draws made on it."""

    n: int
    length: int
    rate: float
    generator: torch.Generator

    @property
    def duration(self) -> float:
        return self.length / self.rate

    @property
    def t(self) -> Tensor:
        """Seconds `[1, S]`."""
        return (torch.arange(self.length, device=self.generator.device, dtype=torch.float32) / self.rate)[None]

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.n, 1, generator=self.generator, device=self.generator.device)

    def log_uniform(self, low: float, high: float) -> Tensor:
        return self.uniform(math.log(low), math.log(high)).exp()

    def signed(self, low: float, high: float) -> Tensor:
        x = self.uniform(-1, 1)
        return torch.where(x < 0, -1.0, 1.0) * (low + (high - low) * x.abs())

    def on_step(self, low: float, high: float) -> Tensor:
        """A time `[n, 1]` that falls on a step, between two shares of the duration."""
        return (self.uniform(low, high) * self.length).round() / self.rate

    def normal(self) -> Tensor:
        return torch.randn(self.n, self.length, generator=self.generator, device=self.generator.device)


_Drawn = tuple[tuple[Tensor, ...], Tensor]  # parameters, each [n, 1], and values [n, S]


def _constant(g: _Grid) -> _Drawn:
    a = g.signed(0.5, 2)
    return (a,), a.expand(-1, g.length)


def _gaussian_noise(g: _Grid) -> _Drawn:
    s = g.log_uniform(0.1, 0.5)
    return (s,), s * g.normal()


def _uniform_noise(g: _Grid) -> _Drawn:
    h = g.log_uniform(0.2, 0.9)
    v = torch.rand(g.n, g.length, generator=g.generator, device=g.generator.device)
    return (h,), h * (2 * v - 1)


def _random_walk(g: _Grid) -> _Drawn:
    s = g.log_uniform(0.5, 2) / math.sqrt(g.length)
    steps = g.normal()
    steps[:, 0] = 0
    return (s,), s * steps.cumsum(1)


def _linear(g: _Grid) -> _Drawn:
    b = g.signed(1, 3) / g.duration
    return (b,), b * (g.t - g.duration / 2)


def _quadratic(g: _Grid) -> _Drawn:
    c = g.signed(8, 24) / g.duration**2
    return (c,), c / 2 * ((g.t - g.duration / 2) ** 2 - g.duration**2 / 12)


def _logarithmic(g: _Grid) -> _Drawn:
    a, q = g.signed(1, 3), g.log_uniform(5, 200)
    return (a, q), a / q.log1p() * (q * (g.t / g.duration)).log1p()


def _sigmoid(g: _Grid) -> _Drawn:
    a, m = g.signed(1, 3), g.uniform(0.2, 0.8) * g.duration
    w = g.log_uniform(0.02, 0.08) * g.duration
    return (a, m, w), a * torch.sigmoid((g.t - m) / w)


def _wave(g: _Grid) -> tuple[tuple[Tensor, ...], Tensor]:
    """Amplitude, frequency, sine and cosine of the phase, and cycles `[n, S]` since phase zero."""
    a, f = g.uniform(0.5, 2), g.log_uniform(3 / g.duration, g.rate / 8)
    p = g.uniform(0, 1)
    angle = 2 * math.pi * p
    return (a, f, angle.sin(), angle.cos()), f * g.t + p


def _sine(g: _Grid) -> _Drawn:
    wave, cycles = _wave(g)
    return wave, wave[0] * (2 * math.pi * cycles).sin_()


def _sawtooth(g: _Grid) -> _Drawn:
    wave, cycles = _wave(g)
    d = g.uniform(0.65, 0.95)
    place = cycles.frac_()
    return (*wave, d), wave[0] * (2 * torch.minimum(place / d, (1 - place) / (1 - d)) - 1)


def _square(g: _Grid) -> _Drawn:
    wave, cycles = _wave(g)
    d = g.uniform(0.25, 0.75)
    return (*wave, d), torch.where(cycles.frac_() < d, wave[0], -wave[0])


def _spike(g: _Grid) -> _Drawn:
    a, m, w = g.signed(2, 5), g.on_step(0.1, 0.9), g.log_uniform(0.5, 2) / g.rate
    return (a, m, w), a * (-(g.t - m).abs() / w).exp()


def _level_change(g: _Grid) -> _Drawn:
    a, m = g.signed(1, 3), g.on_step(0.1, 0.9)
    return (a, m), a * (g.t > m - 0.5 / g.rate)  # half a step: m is rounded, and must not miss its own step


def _bump(g: _Grid) -> _Drawn:
    a, m = g.signed(1, 3), g.uniform(0.1, 0.9) * g.duration
    w = g.log_uniform(max(0.01 * g.duration, 3 / g.rate), 0.08 * g.duration)
    return (a, m, w), a * (-0.5 * ((g.t - m) / w) ** 2).exp()


_WAVE = ("amplitude", "frequency", "phase_sin", "phase_cos")
_TYPES: dict[str, tuple[Callable[[_Grid], _Drawn], tuple[str, ...]]] = {
    "constant": (_constant, ("level",)),
    "gaussian_noise": (_gaussian_noise, ("scale",)),
    "uniform_noise": (_uniform_noise, ("scale",)),
    "random_walk": (_random_walk, ("scale",)),
    "linear_trend": (_linear, ("slope",)),
    "quadratic_trend": (_quadratic, ("curvature",)),
    "logarithmic_trend": (_logarithmic, ("amplitude", "rate")),
    "sigmoid_trend": (_sigmoid, ("amplitude", "time", "width")),
    "sine": (_sine, _WAVE),
    "sawtooth": (_sawtooth, (*_WAVE, "rise")),
    "square": (_square, (*_WAVE, "duty")),
    "spike": (_spike, ("amplitude", "time", "width")),
    "level_change": (_level_change, ("amplitude", "time")),
    "gaussian_bump": (_bump, ("amplitude", "time", "width")),
}
COMPONENTS: tuple[str, ...] = tuple(_TYPES)
PARAMETERS: tuple[str, ...] = tuple(f"{name}.{p}" for name, (_, names) in _TYPES.items() for p in names)


@dataclass(frozen=True, eq=False)
class Mixture:
    """N generated series and their labels, all on the device that made them.

    `presence` has a column for each of `COMPONENTS`, `parameters` one for each of `PARAMETERS` (K columns), NaN where
    the component is absent. `parts`, where it was asked for, holds each component's own values, zero where absent.
    """

    values: Float32[Tensor, "N 1 S"]
    presence: Bool[Tensor, "N 14"]
    parameters: Float32[Tensor, "N K"]
    parts: Float32[Tensor, "N 14 S"] | None = None


def generate(
    n: int,
    *,
    components: int,
    seed: int,
    length: int = 512,
    sampling_rate: float = 1.0,
    device: torch.device | str = "cpu",
    parts: bool = False,
) -> Mixture:
    """Draw `n` series of `components` distinct components each; formulas and ranges are in the module's table.

    The same arguments give the same series on the same kind of device. `parts` keeps what each component added.

    Raises `SpecError` for fewer than one series, a length below 64 steps, a component count outside 1 to 14, or a
    sampling rate that is not positive.
    """
    if n < 1:
        raise SpecError(f"n is {n}; generate at least 1 series")
    if not 1 <= components <= len(COMPONENTS):
        raise SpecError(f"{components} components; a mixture takes 1 to {len(COMPONENTS)} distinct ones")
    if length < MIN_LENGTH:
        raise SpecError(f"length is {length}; frequencies and events need at least {MIN_LENGTH} steps")
    if not 0 < sampling_rate < math.inf:
        raise SpecError(f"sampling_rate is {sampling_rate}; it must be a positive number of steps a second")
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.rand(n, len(COMPONENTS), generator=generator, device=device).topk(components).indices
    presence = torch.zeros(n, len(COMPONENTS), dtype=torch.bool, device=device).scatter_(1, drawn, True)
    values = torch.zeros(n, length, device=device)
    parameters = torch.full((n, len(PARAMETERS)), torch.nan, device=device)
    kept = torch.zeros(n, len(COMPONENTS), length, device=device) if parts else None
    chunk = max(_CHUNK // length, 1)
    for first in range(0, n, chunk):
        column = 0
        for j, (draw, names) in enumerate(_TYPES.values()):
            rows = presence[first : first + chunk, j].nonzero()[:, 0] + first
            drawn_parameters, x = draw(_Grid(len(rows), length, sampling_rate, generator))
            values.index_add_(0, rows, x)
            parameters[rows, column : column + len(names)] = torch.cat(drawn_parameters, 1)
            column += len(names)
            if kept is not None:
                kept[rows, j] = x
    return Mixture(values[:, None], presence, parameters, kept)
