"""What an objective is to the trainer, and the few operations that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsprobe.encoders.zoo_model import ZooModel, normalise
from tsprobe.pretraining.corpus import Series

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Loss:
    """What is minimised, and the numbers that say what it is made of.

    `own` is the part that can be compared with `trivial`, the same measure of a predictor that learned nothing.
    """

    total: Tensor
    own: Tensor
    trivial: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A loss over the network. Its own parameters and buffers, such as a teacher, are not trained and not shipped."""

    def __init__(self, model: ZooModel) -> None:
        super().__init__()
        del model

    @abstractmethod
    def loss(self, model: ZooModel, series: Series, rng: torch.Generator) -> Loss:
        """The loss on a batch; what is random in it comes from `rng` alone."""

    def after_step(self, model: ZooModel, progress: float) -> None:
        """Called after each step of the optimiser; `progress` runs from 0 to 1."""


def patches(x: Tensor, size: int) -> Tensor:
    """`[N, S]` to `[N, T, P]`."""
    return x.unflatten(-1, (-1, size))


def shown(model: ZooModel, series: Series) -> tuple[Float[Tensor, "N T P"], Bool[Tensor, "N T P"]]:
    """The whole series as the encoder is given it."""
    size = model.backbone.shape.patch
    return patches(normalise(series.values, series.observed), size), patches(series.observed, size)


def shown_from(
    model: ZooModel, series: Series, rng: torch.Generator
) -> tuple[Float[Tensor, "N T P"], Bool[Tensor, "N T P"], int]:
    """The series with the statistics of its first patches only, and how many these are: a quarter to nearly all.

    A causal encoder is told what comes later if the scale of the whole window enters its input. Where the statistics
    are those of the first k patches, the tokens from k - 1 on know nothing but what they have seen, as at inference,
    where the window ends at "now".
    """
    size = model.backbone.shape.patch
    steps = series.values.shape[-1]
    t = steps // size
    low = max(1, t // 4)
    first = low + int(torch.randint(max(1, t - low), (), generator=rng, device=rng.device))
    within = (torch.arange(steps, device=series.values.device) < first * size).expand_as(series.observed)
    values = normalise(series.values, series.observed, within)
    return patches(values, size), patches(series.observed, size), first


def hide(seen: Bool[Tensor, "N T"], share: float, rng: torch.Generator) -> Bool[Tensor, "N T"]:
    """Patches to hide: the same number in each row, in stretches of a few patches, at random places."""
    noise = torch.rand(seen.shape, generator=rng, device=seen.device)
    smooth = F.avg_pool1d(noise[:, None], 3, 1, 1, count_include_pad=False)[:, 0] + 0.1 * noise
    count = min(max(1, round(share * seen.shape[1])), seen.shape[1] - 1)
    return torch.zeros_like(seen).scatter(1, smooth.topk(count, 1).indices, True)


def rows_where(mask: Bool[Tensor, "N T"]) -> Int[Tensor, "N K"]:
    """The positions, in order, at which each row is True; all rows must have the same number."""
    return mask.nonzero()[:, 1].view(len(mask), -1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x where the mask, of the same shape, is True."""
    weight = mask.to(x.dtype)
    return (x * weight).sum() / weight.sum().clamp(min=1)
