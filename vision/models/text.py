"""The text tower: a small causal transformer over words, read at the end of the caption."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from vision.models.blocks import EPS, Block
from vision.models.tower import MOST, start

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
_WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


def words_of(caption: str) -> list[str]:
    """Lower-case words; a mark of punctuation is a word."""
    return _WORD.findall(caption.lower())


class Vocabulary:
    """Words and their numbers; the first four are padding, start, end and unknown."""

    def __init__(self, words: Sequence[str]) -> None:
        named = all(isinstance(word, str) for word in words)
        if not named or tuple(words[: len(SPECIAL)]) != SPECIAL or len(set(words)) != len(words):
            raise ValueError(f"a vocabulary is words, starts with {', '.join(SPECIAL)} and names no word twice")
        self.words = list(words)
        self._number = {word: i for i, word in enumerate(words)}

    @classmethod
    def of(cls, captions: Iterable[str]) -> Vocabulary:
        """All words of these captions, the frequent ones first."""
        counts = Counter(word for caption in captions for word in words_of(caption))
        return cls([*SPECIAL, *sorted(counts, key=lambda word: (-counts[word], word))])

    def __len__(self) -> int:
        return len(self.words)

    def numbers(self, captions: Sequence[str], longest: int) -> Int[Tensor, "B L"]:
        """Start, words, end, padding; a caption of more than `longest` tokens loses its last words, never its end."""
        rows = [[self._number.get(w, UNKNOWN) for w in words_of(caption)][: longest - 2] for caption in captions]
        out = torch.full((len(rows), max(map(len, rows)) + 2), PAD)
        for i, row in enumerate(rows):
            out[i, : len(row) + 2] = torch.tensor([START, *row, END])
        return out

    def text(self, numbers: Iterable[int]) -> str:
        """Words up to the end, without the special ones."""
        found = []
        for number in numbers:
            if number == END:
                break
            if number >= len(SPECIAL):
                found.append(self.words[number])
        return " ".join(found)


@dataclass(frozen=True)
class TextShape:
    """The architecture of the text tower; `context` in tokens, start and end included."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    ratio: int = 4
    context: int = 48

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.ratio) < 1 or self.context < 3:
            raise ValueError("all sizes of a text tower are at least 1, its context at least 3")
        if self.depth > MOST:
            raise ValueError(f"a text tower has at most {MOST} blocks, not {self.depth}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of the {self.heads} heads")


class TextTower(nn.Module):
    """Numbers of words to one embedding, read at the end token, to which all words before it are known."""

    def __init__(self, shape: TextShape, vocabulary: Vocabulary, embed: int) -> None:
        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
        self.words = nn.Embedding(len(vocabulary), shape.width)
        self.positions = nn.Parameter(torch.randn(shape.context, shape.width) * 0.01)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.ratio) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, EPS)
        self.projection = nn.Linear(shape.width, embed, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)
        start(self, shape.depth)

    def forward(self, numbers: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """Embeddings, not normalised."""
        length = numbers.shape[1]
        x = self.words(numbers) + self.positions[:length]
        allowed = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, None, allowed)
        end = (numbers == END).int().argmax(1)
        return self.projection(self.norm(x[torch.arange(len(x), device=x.device), end]))

    def encode(self, captions: Sequence[str]) -> Float[Tensor, "B E"]:
        return self(self.vocabulary.numbers(captions, self.shape.context).to(self.positions.device))
