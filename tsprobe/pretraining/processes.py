"""Generators of series that need no covariance matrix: SARIMA, Ornstein-Uhlenbeck, and sines with trends and events.

Each takes how many series of how many steps, and the generator of random numbers whose device it draws on, and gives
`[N, S]` in float32, with no scale of its own that matters: encoders normalise each series.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_PERIODS = (4, 6, 7, 10, 12, 24, 28, 30, 48, 52, 60, 96)  # of calendars and sensors, in steps


def sarima(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """Seasonal ARIMA (p <= 3, q <= 2, P, Q <= 1, d, D <= 1) with stable roots and, for some, heavy-tailed noise.

    Box and Jenkins' model, as in SarSim0 (arXiv 2601.00970). The filter is applied by its frequency response on a
    circle of 4096 steps, where stable roots have died out, so that there is no loop over steps.
    """
    size = 4096
    wave = torch.fft.rfftfreq(size, device=rng.device).double() * 2 * math.pi
    z = torch.exp(-1j * wave)  # the lag operator at each frequency
    season = choose(_PERIODS, n, rng).double()
    z_season = torch.exp(-1j * wave * season[:, None])
    response = _roots(z, n, 2, 0.95, rng) / (_roots(z, n, 3, 0.97, rng))
    response = response * _seasonal(z_season, n, rng) / _seasonal(z_season, n, rng)
    noise = normal(rng, n, size)
    tails = torch.rsqrt(exponential(rng, n, size) * 0.5 + 0.2)  # a scale mixture: now and then a large shock
    noise = noise * torch.where(flip(0.3, n, rng)[:, None], tails, 1)
    x = torch.fft.irfft(torch.fft.rfft(noise.double()) * response, size)
    x = x / x.std(-1, keepdim=True)
    x = torch.where(flip(0.35, n, rng)[:, None], x.cumsum(-1), x)
    index = torch.arange(size, device=rng.device)
    back = (index - season[:, None].long()).clamp(min=0)
    x = torch.where(flip(0.2, n, rng)[:, None], x + x.gather(1, back).cumsum(-1) / 8, x)
    return x[:, -steps:].float()


def _roots(z: Tensor, n: int, most: int, radius: float, rng: torch.Generator) -> Tensor:
    """A polynomial of 1 to `most` + 1 inverse roots inside the circle: real ones and one complex pair, `[N, F]`."""
    r = (radius * uniform(rng, n, most).sqrt()).double()
    real = r[:, 2:] * torch.where(flip(0.7, n * (most - 2), rng).view(n, -1), 1, -1) if most > 2 else r[:, :0]
    angle = uniform(rng, n).double() * math.pi
    pair = 1 - 2 * (r[:, 0] * angle.cos())[:, None] * z + (r[:, 0] ** 2)[:, None] * z**2
    single = 1 - (r[:, 1] * torch.where(flip(0.7, n, rng), 1, -1))[:, None] * z
    out = torch.where(flip(0.5, n, rng)[:, None], pair, single)
    for column in real.T:
        out = out * torch.where(flip(0.5, n, rng)[:, None], 1 - column[:, None] * z, 1)
    return out


def _seasonal(z: Tensor, n: int, rng: torch.Generator) -> Tensor:
    strength = uniform(rng, n).double() * 0.95 * flip(0.5, n, rng)
    return 1 - strength[:, None] * z


def ornstein_uhlenbeck(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """Ornstein-Uhlenbeck processes about a level that jumps, with noise whose strength has regimes.

    dx = theta (level - x) dt + sigma dW, exact for steps of one; relaxation times from 1 step to the whole series.
    """
    relax = torch.exp(uniform(rng, n, 1) * math.log(steps))
    keep = torch.exp(-1 / relax)  # [N, 1]
    level = piecewise_constant(n, steps, rng) * flip(0.5, n, rng)[:, None] * 2
    sigma = torch.exp(piecewise_constant(n, steps, rng) * flip(0.4, n, rng)[:, None])
    push = (1 - keep) * level + (1 - keep**2).sqrt() * sigma * normal(rng, n, steps)
    # x_t = sum of keep^(t - s) push_s, as one convolution; the start is drawn from the stationary law
    kernel = keep ** torch.arange(steps, device=rng.device)
    size = 2 * steps
    x = torch.fft.irfft(torch.fft.rfft(push, size) * torch.fft.rfft(kernel, size), size)[:, :steps]
    return x + kernel * keep * (level[:, :1] + normal(rng, n, 1))


def sines_and_events(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """One to four waves (sines, squares, saw teeth; modulated, some chirping), a trend of pieces, events, and noise."""
    t = torch.arange(steps, device=rng.device) / steps
    x = torch.zeros(n, steps, device=rng.device)
    for i in range(4):
        cycles = torch.exp(uniform(rng, n, 1) * math.log(steps / 4))  # 1 cycle to 4 steps a cycle
        bend = 1 + normal(rng, n, 1) * 0.4 * flip(0.3, n, rng)[:, None] * t
        phase = 2 * math.pi * (cycles * t * bend + uniform(rng, n, 1))
        kind = choose((0, 0, 0, 1, 2), n, rng)[:, None]
        saw = phase / math.pi % 2 - 1
        wave = torch.where(kind == 0, phase.sin(), torch.where(kind == 1, torch.tanh(8 * phase.sin()), saw))
        swell = 1 + 0.8 * flip(0.3, n, rng)[:, None] * torch.sin(
            2 * math.pi * (uniform(rng, n, 1) * 4 * t + uniform(rng, n, 1))
        )
        x = x + wave * swell * torch.exp(normal(rng, n, 1) * 0.7) * (1 if i == 0 else flip(0.5, n, rng)[:, None])
    x = x + piecewise_linear(n, steps, rng) * torch.exp(normal(rng, n, 1)) * flip(0.5, n, rng)[:, None]
    x = x + events(n, steps, rng) * flip(0.5, n, rng)[:, None]
    return x + normal(rng, n, steps) * torch.exp(normal(rng, n, 1) * 1.2 - 2)


def events(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """One to six events a series: bumps, spikes, decays, bursts of oscillation and shifts of level, at random times."""
    t = torch.arange(steps, device=rng.device, dtype=torch.float32)
    x = torch.zeros(n, steps, device=rng.device)
    for i in range(6):
        since = t - uniform(rng, n, 1) * steps
        width = torch.exp(uniform(rng, n, 1) * math.log(steps / 4))
        kind = choose((0, 1, 2, 3, 4), n, rng)[:, None]
        bump = torch.exp(-0.5 * (since / width) ** 2)
        after = (since >= 0).float()
        shape = torch.where(kind == 0, bump, (since.round() == 0).float() * 2)
        shape = torch.where(kind == 2, after * torch.exp(-since.clamp(min=0) / width), shape)
        burst = bump * torch.sin(2 * math.pi * since / torch.exp(uniform(rng, n, 1) * 2.5 + 1))
        shape = torch.where(kind == 3, burst, torch.where(kind == 4, after, shape))
        x = x + shape * normal(rng, n, 1) * 3 * (1 if i == 0 else flip(0.4, n, rng)[:, None])
    return x


def piecewise_linear(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """Up to five pieces that join, spread over about one unit."""
    knots = normal(rng, n, 1, 6).cumsum(-1)
    few = normal(rng, n, 1, 2)
    at = F.interpolate(knots, size=steps, mode="linear", align_corners=True)
    straight = F.interpolate(few, size=steps, mode="linear", align_corners=True)
    return torch.where(flip(0.5, n, rng)[:, None], at[:, 0], straight[:, 0] * 2)


def piecewise_constant(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """Standard normal levels that hold until a jump; three jumps a series in the mean."""
    jump = uniform(rng, n, steps) < 3 / steps
    which = jump.long().cumsum(-1).clamp(max=15)
    return normal(rng, n, 16).gather(1, which)


def normal(rng: torch.Generator, *size: int) -> Tensor:
    return torch.randn(*size, generator=rng, device=rng.device)


def uniform(rng: torch.Generator, *size: int) -> Tensor:
    return torch.rand(*size, generator=rng, device=rng.device)


def exponential(rng: torch.Generator, *size: int) -> Tensor:
    return torch.empty(*size, device=rng.device).exponential_(generator=rng)


def flip(chance: float, n: int, rng: torch.Generator) -> Tensor:
    """Coins `[N]` in bool."""
    return uniform(rng, n) < chance


def choose(options: tuple[int, ...], n: int, rng: torch.Generator) -> Tensor:
    index = torch.randint(len(options), (n,), generator=rng, device=rng.device)
    return torch.tensor(options, device=rng.device)[index]
