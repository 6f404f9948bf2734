"""What a slow copy says of other views and of hidden patches (DINO, arXiv 2104.14294; iBOT, arXiv 2111.07832)."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from vision.models import Tower, Vocabulary
from vision.models.tower import start
from vision.pretraining.augment import view
from vision.pretraining.objectives.base import Loss, Objective, hide
from vision.pretraining.pool import Batch
from vision.pretraining.spec import SelfDistillationSpec

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Head(nn.Module):
    """Features to cosines with prototypes, through a narrow layer of unit length (DINO, section 3.2)."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width // 2))
        self.prototypes = nn.Parameter(torch.randn(prototypes, width // 2))
        start(self, 1)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... K"]:
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class SelfDistillation(Objective):
    """Two large and some small views. The student sees all, the teacher the large ones, nothing hidden."""

    centre: Tensor

    def __init__(self, tower: Tower, spec: SelfDistillationSpec, vocabulary: Vocabulary) -> None:
        super().__init__(tower, spec, vocabulary)
        self.head = Head(tower.shape.width, spec.prototypes)
        self.filler = nn.Parameter(torch.zeros(tower.shape.width))
        self.teacher = copy.deepcopy(tower).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(2, spec.prototypes))  # of pictures, of patches

    def loss(self, tower: Tower, batch: Batch, rng: torch.Generator) -> Loss:
        spec, cls = self.spec, int(tower.shape.cls)
        rows = len(batch.values)

        def views(size: int, crop: tuple[float, float], count: int) -> Tensor:
            made = [view(batch.values, batch.captions, spec.augmentation, size, rng, crop)[0] for _ in range(count)]
            return torch.cat(made)

        large = views(batch.size, spec.large, 2)
        patches = (batch.size // tower.shape.patch) ** 2
        hidden = hide(2 * rows, patches, spec.hidden_ratio, rng) & (
            torch.rand(2 * rows, 1, generator=rng) < spec.hidden_share
        )
        hidden = (hidden if spec.patches else torch.zeros_like(hidden)).to(large.device)
        with torch.no_grad():
            known = self.teacher(large)
            whole = self.teacher_head(self.teacher.pool(known))
            part = self.teacher_head(known[:, cls:][hidden])
        target = self._sharpened(whole, 0).chunk(2)
        seen = tower(large, hidden=hidden, filler=self.filler)
        pooled = [*tower.pool(seen).chunk(2)]
        if spec.small_views:
            pooled += tower.pool(tower(views(spec.small_size, spec.small, spec.small_views))).chunk(spec.small_views)
        said = [F.log_softmax(self.head(x) / spec.student_temperature, -1) for x in pooled]
        pairs = [-(t * s).sum(-1).mean() for i, t in enumerate(target) for j, s in enumerate(said) if i != j]
        own = torch.stack(pairs).mean()
        mean = torch.cat(target).mean(0)
        parts = {"entropy": -torch.xlogy(torch.cat(target), torch.cat(target)).sum(-1).mean()}
        total = own
        if hidden.any():
            guess = F.log_softmax(self.head(seen[:, cls:][hidden]) / spec.student_temperature, -1)
            parts["patches"] = -(self._sharpened(part, 1) * guess).sum(-1).mean()
            total = own + spec.patches * parts["patches"]
        if self.training:
            self._move_centre(0, whole)
            if hidden.any():
                self._move_centre(1, part)
        return Loss(total, own, -torch.xlogy(mean, mean).sum(), parts)

    def _sharpened(self, cosines: Float[Tensor, "R K"], which: int) -> Float[Tensor, "R K"]:
        return F.softmax((cosines - self.centre[which]) / self.spec.teacher_temperature, -1)

    @torch.no_grad()
    def _move_centre(self, which: int, cosines: Float[Tensor, "R K"]) -> None:
        """A slow mean of what the teacher says: taken off, it keeps one prototype from winning always."""
        self.centre[which].lerp_(cosines.mean(0).to(self.centre.dtype), 1 - self.spec.centre_momentum)

    @torch.no_grad()
    def after_step(self, tower: Tower, progress: float) -> None:
        """The teacher follows, ever more slowly (cosine to 1)."""
        keep = 1 - (1 - self.spec.momentum) * (1 + math.cos(math.pi * progress)) / 2
        for slow, fast in ((self.teacher, tower), (self.teacher_head, self.head)):
            for mine, theirs in zip(slow.parameters(), fast.parameters(), strict=True):
                mine.lerp_(theirs, 1 - keep)
