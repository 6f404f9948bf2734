"""The pretext tasks of the zoo, one file each. Everything but the objective is the same for all of them."""

from tsprobe.pretraining.objectives.base import Objective
from tsprobe.pretraining.objectives.contrastive import Contrastive
from tsprobe.pretraining.objectives.forecasting import Forecasting
from tsprobe.pretraining.objectives.jepa import Jepa
from tsprobe.pretraining.objectives.next_latent import NextLatent
from tsprobe.pretraining.objectives.reconstruction import Reconstruction

OBJECTIVES: dict[str, type[Objective]] = {
    "forecasting": Forecasting,
    "reconstruction": Reconstruction,
    "contrastive": Contrastive,
    "jepa": Jepa,
    "next-latent": NextLatent,
}

__all__ = ["OBJECTIVES", "Objective"]
