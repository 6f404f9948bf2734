"""The pretext tasks of the vision zoo, one file each, on the same tower and pictures."""

from vision.pretraining.objectives.autoregressive import Autoregressive
from vision.pretraining.objectives.base import Objective
from vision.pretraining.objectives.contrastive import Contrastive
from vision.pretraining.objectives.self_distillation import SelfDistillation

OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive": Contrastive,
    "autoregressive": Autoregressive,
    "self-distillation": SelfDistillation,
}

__all__ = ["OBJECTIVES", "Objective"]
