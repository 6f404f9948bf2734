"""The objective that an encoder was pretrained with, as the loss of a control: as many steps, and no alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tsprobe.alignment.series import Lesson
from tsprobe.encoders.base import Encoder
from tsprobe.encoders.rows import patch_starts, right_aligned
from tsprobe.encoders.zoo_model import ZooModel
from tsprobe.pretraining.corpus import Series
from tsprobe.pretraining.objectives import OBJECTIVES

if TYPE_CHECKING:
    from torch import Tensor


def why_unknown(encoder: Encoder) -> str:
    """Why the objective of an encoder cannot be gone on with; nothing where it can."""
    if _objective(encoder) is not None:
        return ""
    return (
        f"the objective of {encoder.name} ({encoder.facts.objective}) is not here to go on with: "
        "only those of the zoo are"
    )


def _objective(encoder: Encoder) -> str | None:
    """The objective whose head is there; that of a tuned encoder is the one of its base."""
    name = encoder.facts.objective.partition(" + ")[0]
    known = isinstance(encoder.module, ZooModel) and encoder.module.head is not None
    return name if known and name in OBJECTIVES else None


class Pretext(nn.Module):
    """The pretraining loss on the series of a lesson, which the objective normalises, crops and hides by itself."""

    def __init__(self, encoder: Encoder, module: nn.Module) -> None:
        """`module` is the network that is tuned, a copy of the encoder's."""
        super().__init__()
        name = _objective(encoder)
        assert name is not None
        assert isinstance(module, ZooModel)
        self.objective = OBJECTIVES[name](module)

    def forward(self, module: nn.Module, lesson: Lesson, seed: int) -> dict[str, Tensor]:
        assert isinstance(module, ZooModel)
        device = next(module.parameters()).device
        batch, patch = lesson.batch.to(device), module.backbone.shape.patch
        values, observed = right_aligned(batch, patch_starts(batch, patch).shape[1] * patch)
        rng = torch.Generator(device).manual_seed(seed)
        return {"pretext": self.objective.loss(module, Series(values, observed), rng).total}

    def after_step(self, module: nn.Module, progress: float) -> None:
        assert isinstance(module, ZooModel)
        self.objective.after_step(module, progress)
