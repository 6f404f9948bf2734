"""InfoNCE over random-crop-resize views (Mantis): two stretches of a series must find each other in the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.encoders.zoo_model import ZooModel
from tsprobe.pretraining.corpus import Series
from tsprobe.pretraining.objectives.base import Loss, Objective, shown

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TEMPERATURE = 0.1
CROP = 0.2  # at most so much of a series is cut away for a view


class Contrastive(Objective):
    """Each view must pick the other view of its series among those of all series. Chance is the log of their number."""

    def loss(self, model: ZooModel, series: Series, rng: torch.Generator) -> Loss:
        first, second = (self._view(model, crop_resize(series, rng)) for _ in range(2))
        score = first @ second.mT / TEMPERATURE
        target = torch.arange(len(score), device=score.device)
        loss = (F.cross_entropy(score, target) + F.cross_entropy(score.mT, target)) / 2
        found = (score.argmax(1) == target).float().mean()
        return Loss(loss, loss, torch.tensor(math.log(len(score))), {"found": found})

    def _view(self, model: ZooModel, series: Series) -> Float[Tensor, "N D"]:
        return F.normalize(model(*shown(model, series))[:, 0].float(), dim=-1)


def crop_resize(series: Series, rng: torch.Generator) -> Series:
    """A random stretch of each series, stretched to its full length by linear interpolation.

    A step is observed where both its neighbours in the series are.
    """
    n, steps = series.values.shape
    size = (1 - CROP * torch.rand(n, 1, generator=rng, device=rng.device)) * (steps - 1)
    start = torch.rand(n, 1, generator=rng, device=rng.device) * (steps - 1 - size)
    at = start + size * torch.linspace(0, 1, steps, device=rng.device)
    low = at.floor().long().clamp(max=steps - 2)
    part = at - low
    values = torch.lerp(series.values.gather(1, low), series.values.gather(1, low + 1), part)
    observed = series.observed.gather(1, low) & series.observed.gather(1, low + 1)
    return Series(torch.where(observed, values, 0), observed)
