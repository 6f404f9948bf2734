"""Masked patch reconstruction (MOMENT, PatchTST): the values of patches that the encoder did not see."""

from __future__ import annotations

import torch

from tsprobe.encoders.zoo_model import ZooModel, normalise
from tsprobe.pretraining.corpus import Series
from tsprobe.pretraining.objectives.base import Loss, Objective, hide, masked_mean, patches

SHARE = 0.4  # of the patches are hidden, as in PatchTST's self-supervised runs


class Reconstruction(Objective):
    """Mean squared error at hidden patches, on the scale of what was shown. The trivial answer is the mean shown."""

    def loss(self, model: ZooModel, series: Series, rng: torch.Generator) -> Loss:
        size = model.backbone.shape.patch
        hidden = hide(patches(series.observed, size).any(-1), SHARE, rng)
        visible = series.observed & ~hidden.repeat_interleave(size, 1)
        target = patches(normalise(series.values, series.observed, visible), size)
        observed = patches(visible, size)
        guess = model(target * observed, observed).float()
        counts = patches(series.observed, size) & hidden[..., None]
        loss = masked_mean((guess - target).square(), counts)
        return Loss(loss, loss, masked_mean(target.square(), counts))
