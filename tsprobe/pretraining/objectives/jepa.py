"""Masked latent prediction (I-JEPA, TS-JEPA): from some patches, the latents that a slow copy gives to the others."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.encoders.zoo_model import Predictor, ZooModel
from tsprobe.pretraining.corpus import Series
from tsprobe.pretraining.objectives.base import Loss, Objective, hide, rows_where, shown

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

SHARE = 0.5  # of the patches are hidden from the student
MOMENTUM = 0.99  # of the teacher at the start; it rises to 1 linearly, as in I-JEPA


class Jepa(Objective):
    """Smooth L1 between the predictor's guess and the teacher's latents at hidden patches.

    Each dimension of the latents is scaled to mean 0 and variance 1 over the batch: what all tokens have in common
    would be the easiest thing to predict, and the networks would drift to it. The trivial answer is the mean target.
    """

    def __init__(self, model: ZooModel) -> None:
        super().__init__(model)
        self.teacher = copy.deepcopy(model.backbone).requires_grad_(False)

    def loss(self, model: ZooModel, series: Series, rng: torch.Generator) -> Loss:
        assert isinstance(model.head, Predictor)
        values, observed = shown(model, series)
        with torch.no_grad():
            latent = _standard(self.teacher(values, observed).float(), observed.any(-1))
        hidden = hide(observed.any(-1), SHARE, rng)
        keep = rows_where(~hidden)
        tokens = model.backbone(values, observed, keep)
        guess = model.head(tokens, observed.any(-1) & ~hidden, keep).float()
        counts = hidden & observed.any(-1)
        loss = _distance(guess[counts], latent[counts])
        with torch.no_grad():
            trivial = _distance(latent[counts].mean(0), latent[counts])
        return Loss(loss, loss, trivial)

    def after_step(self, model: ZooModel, progress: float) -> None:
        momentum = MOMENTUM + (1 - MOMENTUM) * progress
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), model.backbone.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)


def _standard(latent: Float[Tensor, "N T D"], seen: Bool[Tensor, "N T"]) -> Float[Tensor, "N T D"]:
    real = latent[seen]
    return (latent - real.mean(0)) / real.std(0).clamp(min=1e-4)


def _distance(guess: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(guess.expand_as(target), target)
