"""The next patch and the caption's words, from a prefix of patches (AIMv2, arXiv 2411.14402, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from vision.models import Tower, Vocabulary
from vision.models.blocks import EPS, Block
from vision.models.text import PAD
from vision.models.tower import start
from vision.pretraining.augment import view
from vision.pretraining.objectives.base import Loss, Objective
from vision.pretraining.pool import Batch
from vision.pretraining.spec import AutoregressiveSpec

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class Autoregressive(Objective):
    """Patches in raster order, then words. Patches of the prefix see each other, later tokens what is before them."""

    def __init__(self, tower: Tower, spec: AutoregressiveSpec, vocabulary: Vocabulary) -> None:
        super().__init__(tower, spec, vocabulary)
        shape = tower.shape
        self.vocabulary = vocabulary
        self.words = nn.Embedding(len(vocabulary), shape.width)
        self.places = nn.Parameter(torch.randn(spec.context, shape.width) * 0.02)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.ratio) for _ in range(spec.decoder_depth))
        self.norm = nn.LayerNorm(shape.width, EPS)
        self.to_pixels = nn.Linear(shape.width, 3 * shape.patch**2)
        self.to_words = nn.Linear(shape.width, len(vocabulary))
        nn.init.normal_(self.words.weight, std=0.02)
        start(self, spec.decoder_depth)

    def loss(self, tower: Tower, batch: Batch, rng: torch.Generator) -> Loss:
        images, captions = view(batch.values, batch.captions, self.spec.augmentation, batch.size, rng)
        target = normalised(images, tower.shape.patch)  # [B, P, 3 p p]
        count, cls = target.shape[1], int(tower.shape.cls)
        prefix = torch.randint(1, count, (len(images),), generator=rng).to(images.device)
        seen = tower(images, allowed=prefix_mask(prefix + cls, count + cls)[:, None])[:, cls:]
        numbers = self.vocabulary.numbers(captions, self.spec.context).to(images.device)
        pixels, words = self.decode(seen, numbers[:, :-1], prefix)
        asked = torch.arange(1, count, device=images.device) >= prefix[:, None]  # patches after the prefix
        error = (pixels[:, :-1] - target[:, 1:]).square().mean(-1)[asked].mean()
        trivial = target[:, 1:].square().mean(-1)[asked].mean()
        told = F.cross_entropy(words.flatten(0, 1), numbers[:, 1:].flatten(), ignore_index=PAD)
        return Loss(self.spec.pixels * error + self.spec.words * told, error, trivial, {"words": told})

    def decode(
        self, seen: Float[Tensor, "B P D"], numbers: Int[Tensor, "B L"], prefix: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B P Q"], Float[Tensor, "B L V"]]:
        """Pixels of the patch after each patch, and scores of the word after each word."""
        count, length = seen.shape[1], numbers.shape[1]
        x = torch.cat([seen, self.words(numbers) + self.places[:length]], 1)
        allowed = prefix_mask(prefix, count + length)[:, None]
        for block in self.blocks:
            x = block(x, None, allowed)
        x = self.norm(x)
        return self.to_pixels(x[:, :count]), self.to_words(x[:, count:])


def prefix_mask(prefix: Int[Tensor, " B"], tokens: int) -> Bool[Tensor, "B T T"]:
    """Which tokens (last axis) a token may attend to: itself, those before it, and the first `prefix` ones."""
    place = torch.arange(tokens, device=prefix.device)
    return (place <= place[:, None]) | (place < prefix[:, None, None])


def normalised(images: Float[Tensor, "B 3 H W"], patch: int) -> Float[Tensor, "B P Q"]:
    """Pixels of each patch, less their mean and over their standard deviation (as MAE, arXiv 2111.06377, section 3)."""
    x = F.unfold(images, patch, stride=patch).transpose(1, 2)  # [B, P, 3 p p]
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-3).sqrt()
