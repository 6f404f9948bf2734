"""Towers that are tuned: images and the mean over frames of clips find their captions (PE, sections 2.2 and 2.3)."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from tsprobe.pretraining.objectives.base import Loss
from vision.pretraining.objectives.contrastive import matching
from vision.pretraining.video.retrieval import mean_of_frames, same

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from vision.models import TextTower, Tower

HIGHEST = 100.0  # of the scale, as in the pretraining


class Tuned(nn.Module):
    """Copies of both towers, with the scale of their cosines."""

    def __init__(self, tower: Tower, text: TextTower, scale: float) -> None:
        super().__init__()
        self.tower, self.text = copy.deepcopy(tower), copy.deepcopy(text)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.requires_grad_(True)

    def loss(
        self,
        pictures: Float[Tensor, "B 3 H W"],
        captions: Sequence[str],
        frames: Float[Tensor, "V*T 3 H W"],
        spoken: Sequence[str],
        *,
        normalise: bool,
    ) -> Loss:
        """Pictures among pictures, clips among clips, both by the same towers; either may be none.

        Clips whose captions are the same are no wrong answers to each other.
        """
        seen = self.tower.encode(torch.cat([pictures, frames]))
        said = self.text.encode([*captions, *spoken])
        parts: dict[str, Tensor] = {}
        chance = []
        if captions:
            parts["pictures"] = self.found(seen[: len(captions)], said[: len(captions)], captions)
            chance.append(math.log(len(captions)))
        if spoken:
            video = mean_of_frames(seen[len(captions) :], len(frames) // len(spoken), normalise=normalise)
            parts["clips"] = self.found(video, said[len(captions) :], spoken)
            chance.append(math.log(len(spoken)))
        total = torch.stack(list(parts.values())).mean()
        parts["scale"] = self.log_scale.detach().exp()
        return Loss(total, total, total.new_tensor(sum(chance) / len(chance)), parts)

    def found(self, seen: Float[Tensor, "B E"], said: Float[Tensor, "B E"], captions: Sequence[str]) -> Tensor:
        logits = self.log_scale.exp() * F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T
        double = same(captions).fill_diagonal_(False).to(logits.device)
        return matching(logits.masked_fill(double, -1e4))[0]

    @torch.no_grad()
    def after_step(self) -> None:
        self.log_scale.clamp_(max=math.log(HIGHEST))
