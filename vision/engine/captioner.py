"""Tokens of a frozen tower to words, of one picture or of several frames of a clip: the captioner of the data engine.

Patch tokens go through a projector of two layers, as in PE's language models (section 4.1), and stand before the words
of a small causal decoder. Those of a clip have a learned embedding of their frame added, by which their order is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from vision.models import Vocabulary
from vision.models.blocks import EPS, Block
from vision.models.text import END, PAD, START
from vision.models.tower import start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class CaptionerShape:
    """`frames` of a clip that are read, `context` in tokens of a caption, its start and end included."""

    width: int = 128
    depth: int = 3
    heads: int = 4
    ratio: int = 4
    context: int = 40
    frames: int = 4

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.ratio) < 1 or self.context < 3 or self.frames < 2:
            raise ValueError("all sizes of a captioner are at least 1, its context at least 3, its frames at least 2")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of the {self.heads} heads")


class Captioner(nn.Module):
    """Tokens `[B, F, P, D]` of F frames, 1 for a picture, to the words of a caption."""

    def __init__(self, shape: CaptionerShape, width: int, patches: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
        self.projector = nn.Sequential(nn.Linear(width, shape.width), nn.GELU(), nn.Linear(shape.width, shape.width))
        self.frames = nn.Parameter(torch.randn(shape.frames, shape.width) * 0.02)
        self.patches = nn.Parameter(torch.randn(patches, shape.width) * 0.02)
        self.words = nn.Embedding(len(vocabulary), shape.width)
        self.places = nn.Parameter(torch.randn(shape.context, shape.width) * 0.02)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.ratio) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, EPS)
        self.to_words = nn.Linear(shape.width, len(vocabulary))
        nn.init.normal_(self.words.weight, std=0.02)
        start(self, shape.depth)

    def prefix(self, tokens: Float[Tensor, "B F P D"]) -> Float[Tensor, "B F*P W"]:
        """What stands before the words. One frame is a picture: it has no place in time."""
        x = self.projector(tokens) + self.patches
        if tokens.shape[1] > 1:
            x = x + self.frames[: tokens.shape[1], None]
        return x.flatten(1, 2)

    def forward(self, tokens: Float[Tensor, "B F P D"], numbers: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        """Scores of the word after each word."""
        before = self.prefix(tokens)
        x = torch.cat([before, self.words(numbers) + self.places[: numbers.shape[1]]], 1)
        allowed = prefix_mask(before.shape[1], x.shape[1]).to(x.device)
        for block in self.blocks:
            x = block(x, None, allowed)
        return self.to_words(self.norm(x[:, before.shape[1] :]))

    def loss(self, tokens: Float[Tensor, "B F P D"], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the next word; and of a guess that knows how often each word is said in this batch."""
        numbers = self.vocabulary.numbers(captions, self.shape.context).to(tokens.device)
        wanted = numbers[:, 1:].flatten()
        told = F.cross_entropy(self(tokens, numbers[:, :-1]).flatten(0, 1), wanted, ignore_index=PAD)
        often = torch.bincount(wanted[wanted != PAD]).float()
        often = often / often.sum()
        return told, -torch.xlogy(often, often).sum()

    @torch.no_grad()
    def write(self, tokens: Float[Tensor, "B F P D"]) -> list[str]:
        """Captions, the likeliest word at a time. Keys and values of what has been read are kept."""
        kept: list[tuple[Tensor, Tensor]] = []
        x = self.prefix(tokens)
        blocks = cast("list[Block]", list(self.blocks))
        for block in blocks:
            x, pair = block.read(x)
            kept.append(pair)
        word = torch.full((len(tokens),), START, device=tokens.device)
        written, done = [], torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        for place in range(self.shape.context - 1):
            x = (self.words(word) + self.places[place])[:, None]
            for i, block in enumerate(blocks):
                x, kept[i] = block.read(x, past=kept[i])
            word = self.to_words(self.norm(x[:, 0])).argmax(-1).masked_fill(done, END)
            written.append(word)
            done = done | (word == END)
            if done.all():
                break
        return [self.vocabulary.text(row) for row in torch.stack(written, 1).tolist()]


def prefix_mask(prefix: int, tokens: int) -> Bool[Tensor, "T T"]:
    """Which tokens (last axis) a token may attend to: itself, those before it, and the whole prefix."""
    place = torch.arange(tokens)
    return (place <= place[:, None]) | (place < prefix)
