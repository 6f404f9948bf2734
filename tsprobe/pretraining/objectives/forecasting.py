"""Quantile forecasts of the next patches from every token (Chronos-Bolt, TimesFM): a causal encoder, pinball loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.encoders.zoo_model import AHEAD, QUANTILES, ZooModel
from tsprobe.pretraining.corpus import Series
from tsprobe.pretraining.objectives.base import Loss, Objective, masked_mean, shown_from

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Forecasting(Objective):
    """Each token whose scale is its own past's forecasts the next 4 patches; steps past the series do not count."""

    def loss(self, model: ZooModel, series: Series, rng: torch.Generator) -> Loss:
        values, observed, first = shown_from(model, series, rng)
        forecast = model(values, observed)[:, first - 1 : -1]  # [N, T', H * Q]
        target, counts = upcoming(values, first), upcoming(observed, first)  # [N, T', H]
        loss = pinball(forecast.unflatten(-1, (target.shape[-1], -1)), target, counts)
        with torch.no_grad():
            last = last_observed(values, observed)[:, first - 1 : -1, None, None]
            held = pinball(last.expand(*target.shape, len(QUANTILES)), target, counts)
            levels = torch.tensor(QUANTILES, device=target.device)
            usual = torch.quantile(target[counts][:100_000].float(), levels).expand(*target.shape, -1)
            trivial = torch.minimum(held, pinball(usual, target, counts))
        return Loss(loss, loss, trivial)


def upcoming(x: Tensor, first: int) -> Tensor:
    """`[N, T, P]` to `[N, T', H]`: for each patch from `first` - 1 on but the last, what follows it; 0 past the end."""
    ahead = F.pad(x, (0, 0, 0, AHEAD)).unfold(1, AHEAD, 1)[:, first : x.shape[1]]  # [N, T', P, A]
    return ahead.transpose(-1, -2).flatten(2)


def pinball(
    forecast: Float[Tensor, "N T H Q"], target: Float[Tensor, "N T H"], counts: Bool[Tensor, "N T H"]
) -> Tensor:
    """Twice the mean pinball loss over all quantiles: for the median alone, the absolute error (Koenker 1978)."""
    level = torch.tensor(QUANTILES, device=target.device)
    error = target[..., None] - forecast.float()
    return masked_mean(2 * torch.maximum(level * error, (level - 1) * error).mean(-1), counts)


def last_observed(values: Float[Tensor, "N T P"], observed: Bool[Tensor, "N T P"]) -> Float[Tensor, "N T"]:
    """The last value observed up to the end of each patch; 0 where there is none."""
    n, t, p = values.shape
    flat, seen = values.flatten(1), observed.flatten(1)
    index = torch.where(seen, torch.arange(t * p, device=values.device), -1).cummax(1).values
    filled = torch.where(index >= 0, flat.gather(1, index.clamp(min=0)), 0)
    return filled.view(n, t, p)[..., -1]
