"""Pictures and captions find each other in the batch; hidden patches are told from the rest (PE, section 2.1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from vision.models import TextTower, Tower, Vocabulary
from vision.pretraining.augment import plain, view
from vision.pretraining.objectives.base import Loss, Objective, hide
from vision.pretraining.pool import Batch
from vision.pretraining.spec import ContrastiveSpec

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Contrastive(Objective):
    """CLIP's symmetric softmax loss (arXiv 2103.00020, section 2.3), with a scale that is learned up to a limit."""

    def __init__(self, tower: Tower, spec: ContrastiveSpec, vocabulary: Vocabulary) -> None:
        super().__init__(tower, spec, vocabulary)
        assert tower.shape.embed is not None
        self.text = TextTower(spec.text, vocabulary, tower.shape.embed)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.filler = nn.Parameter(torch.zeros(tower.shape.width)) if spec.mask_share else None

    def loss(self, tower: Tower, batch: Batch, rng: torch.Generator) -> Loss:
        images, captions = view(batch.values, batch.captions, self.spec.augmentation, batch.size, rng)
        tokens = tower(images)
        logits = self.logits(tower.head(tokens), self.text.encode(captions))
        own, right = matching(logits)
        parts = {"found": right, "scale": self.log_scale.detach().exp()}
        total = own
        if self.filler is not None:
            parts["masked"] = self.masked(tower, images, tokens, rng)
            total = own + parts["masked"]
        return Loss(total, own, own.new_tensor(math.log(len(logits))), parts)

    def masked(self, tower: Tower, images: Tensor, tokens: Float[Tensor, "B T D"], rng: torch.Generator) -> Tensor:
        """One minus the cosine between what is said of hidden patches and of the same patches when seen.

        The seen tokens are targets: no gradient goes through them, and masked pictures meet no captions.
        """
        rows = max(1, round(self.spec.mask_share * len(images)))
        cls = int(tower.shape.cls)
        hidden = hide(rows, tokens.shape[1] - cls, self.spec.mask_ratio, rng).to(images.device)
        guess = tower(images[:rows], hidden=hidden, filler=self.filler)[:, cls:][hidden]
        return 1 - F.cosine_similarity(guess, tokens[:rows, cls:][hidden].detach(), dim=-1).mean()

    def logits(self, image: Float[Tensor, "B E"], text: Float[Tensor, "B E"]) -> Float[Tensor, "B B"]:
        return self.log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T

    def after_step(self, tower: Tower, progress: float) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.spec.highest_scale))

    def look(self, tower: Tower, batch: Batch) -> dict[str, float]:
        """Zero-shot retrieval among the held-out pairs: how often the first one found is right, both ways."""
        image, text = tower.encode(plain(batch.values, batch.size)), self.text.encode(batch.captions)
        logits = self.logits(image, text)
        right = torch.arange(len(logits), device=logits.device)
        return {
            "captions_found": float((logits.argmax(1) == right).float().mean()),
            "images_found": float((logits.argmax(0) == right).float().mean()),
            "chance": 1 / len(logits),
        }


def matching(logits: Float[Tensor, "B B"]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the diagonal, mean of both ways; and the share of pictures whose caption comes first."""
    right = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    return loss, (logits.argmax(1) == right).float().mean()
