"""What an objective is to the trainer of images, and what several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tsprobe.pretraining.objectives.base import Loss
from vision.models import Tower, Vocabulary
from vision.pretraining.pool import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

__all__ = ["Loss", "Objective", "hide"]


class Objective(nn.Module, ABC):
    """A loss over the tower. Parameters of its own that ask for gradients are trained with it."""

    def __init__(self, tower: Tower, spec: Any, vocabulary: Vocabulary) -> None:
        super().__init__()
        del tower, vocabulary
        self.spec = spec

    @abstractmethod
    def loss(self, tower: Tower, batch: Batch, rng: torch.Generator) -> Loss:
        """The loss on a batch; what is random in it comes from `rng` alone."""

    def after_step(self, tower: Tower, progress: float) -> None:
        """Called after each step of the optimiser; `progress` runs from 0 to 1."""

    def look(self, tower: Tower, batch: Batch) -> dict[str, float]:
        """Numbers of its own on whole held-out pictures."""
        return {}


def hide(rows: int, patches: int, ratio: float, rng: torch.Generator) -> Bool[Tensor, "B P"]:
    """As many hidden patches in each row, any of them: at least one, never all."""
    count = min(patches - 1, max(1, round(ratio * patches)))
    return torch.rand(rows, patches, generator=rng).argsort(1).argsort(1) < count
