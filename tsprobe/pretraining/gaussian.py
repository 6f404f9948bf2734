"""Draws of Gaussian processes with composed kernels, and causal graphs over such draws.

A Cholesky factor of a long series is dear, so a call composes a few kernels and draws many series from each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.pretraining.processes import choose, events, flip, normal, uniform

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_KERNELS = 4  # composed in a call
_TERMS = 4  # at most, in one kernel
_JITTER = 1e-4  # on the diagonal, of a kernel of unit variance: float32 factors stay positive definite
_PERIODS = (4, 7, 12, 14, 24, 28, 30, 48, 52, 60, 96, 168)  # hours, days, weeks, months, quarters


def kernel_synth(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """Gaussian-process draws whose kernels are random sums and products of simple ones (Chronos, KernelSynth)."""
    factors = _factors(steps, rng)  # [K, S, S]
    which = torch.arange(n, device=rng.device) % len(factors)
    noise = normal(rng, n, steps)
    x = torch.empty(n, steps, device=rng.device)
    for k, factor in enumerate(factors):
        mine = which == k
        x[mine] = noise[mine] @ factor.mT
    return x[torch.randperm(n, generator=rng, device=rng.device)]


def causal_graph(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """Nodes of random graphs: roots are such draws plus a mean, a child bends a mix of its parents (CauKer).

    Graphs of twelve nodes, four of them roots, each child with up to four parents; four nodes a graph are kept. All
    graphs of a call are built side by side, each with edges, weights and activations of its own.
    """
    roots, nodes, kept = 4, 12, 4
    graphs = math.ceil(n / kept)
    x = kernel_synth(graphs * roots, steps, rng).view(graphs, roots, steps)
    x = x + _means(graphs * roots, steps, rng).view_as(x)
    for _ in range(nodes - roots):
        count = x.shape[1]
        score = uniform(rng, graphs, count)
        rank = score.argsort(-1).argsort(-1)
        parents = 1 + torch.randint(4, (graphs, 1), generator=rng, device=rng.device)
        weight = normal(rng, graphs, count) * (rank < parents)
        mix = torch.einsum("gp,gps->gs", weight, x) + normal(rng, graphs, 1) * 0.5
        mix = (mix - mix.mean(-1, keepdim=True)) / mix.std(-1, keepdim=True).clamp(min=1e-4)
        x = torch.cat([x, _bend(mix * torch.exp(normal(rng, graphs, 1) * 0.5), rng)[:, None]], 1)
    order = uniform(rng, graphs, nodes).argsort(-1)[:, :kept]
    return x.gather(1, order[..., None].expand(-1, -1, steps)).flatten(0, 1)[:n]


def _bend(x: Float[Tensor, "N S"], rng: torch.Generator) -> Float[Tensor, "N S"]:
    kind = choose(tuple(range(7)), len(x), rng)[:, None]
    bent = (x, x.sigmoid() * 4, (2 * x).sin(), x.remainder(2), x.tanh() * 2, F.softplus(2 * x), torch.exp(-(x**2)) * 3)
    return torch.stack(bent).gather(0, kind.expand_as(x)[None])[0]


def _means(n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
    """Nothing, a line, an exponential or a few events."""
    t = torch.linspace(0, 1, steps, device=rng.device)
    kind = choose((0, 0, 1, 2, 3), n, rng)[:, None]
    size = normal(rng, n, 1) * 2
    line, growth = size * t, size * (torch.exp(2 * t) - 1) / 3
    return (kind == 1) * line + (kind == 2) * growth + (kind == 3) * events(n, steps, rng)


def _factors(steps: int, rng: torch.Generator) -> Float[Tensor, "K S S"]:
    """Cholesky factors of `_KERNELS` composed kernels, each scaled to a mean variance of one."""
    kernels = torch.stack([_compose(steps, rng) for _ in range(_KERNELS)])
    kernels = kernels / kernels.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp(min=1e-6)
    eye = torch.eye(steps, device=rng.device)
    factors, failed = torch.linalg.cholesky_ex((kernels + _JITTER * eye).double())
    return torch.where(failed[:, None, None] > 0, eye.double(), factors).float()


def _compose(steps: int, rng: torch.Generator) -> Float[Tensor, "S S"]:
    t = torch.arange(steps, device=rng.device, dtype=torch.float32)
    lag, u = (t[:, None] - t).abs(), t / steps
    terms = int(torch.randint(1, _TERMS + 1, (), generator=rng, device=rng.device))
    total = _simple(lag, u, rng)
    for _ in range(terms - 1):
        other = _simple(lag, u, rng)
        total = total * other if bool(flip(0.4, 1, rng)) else total + other
    return total


def _simple(lag: Tensor, u: Tensor, rng: torch.Generator) -> Float[Tensor, "S S"]:
    """One of: periodic, squared exponential, rational quadratic, Matern 1/2 and 3/2, linear, white, constant."""
    kind = int(torch.randint(9, (), generator=rng, device=rng.device))
    steps = len(u)
    scale = float(torch.exp(uniform(rng, 1) * math.log(steps / 2)) * 2)  # of lengths, 2 steps to the whole series
    if kind < 2:
        period = float(choose(_PERIODS, 1, rng))
        return torch.exp(-2 * torch.sin(math.pi * lag / period) ** 2 / (0.5 + float(uniform(rng, 1))) ** 2)
    if kind == 2:
        return torch.exp(-0.5 * (lag / scale) ** 2)
    if kind == 3:
        alpha = 0.1 + float(uniform(rng, 1)) * 5
        return (1 + (lag / scale) ** 2 / (2 * alpha)) ** -alpha
    if kind == 4:
        return torch.exp(-lag / scale)
    if kind == 5:
        far = 3**0.5 * lag / scale
        return (1 + far) * torch.exp(-far)
    if kind == 6:
        shifted = u - float(uniform(rng, 1))
        return 3 * shifted[:, None] * shifted + 0.1
    if kind == 7:
        return torch.eye(steps, device=lag.device) * float(uniform(rng, 1))
    return torch.ones_like(lag)
