"""The few things that every room speaks of: layers, batches of series and which time steps a token covers.

Array letters, here and in all docstrings: B batch, C channels (or classes), S steps of a series, R rows that the
encoder sees (a series, or a channel of a series), T tokens, D width, L layers, P poolings, N samples, K targets,
F folds, A regularisation strengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A named point in an encoder.

    `depth` runs from 0 (input embedding) to 1 (the end of the trunk); heads and projectors past the trunk have none.
    """

    name: str
    depth: float | None


@dataclass(frozen=True)
class Batch:
    """Series of one batch, padded on the right to a common length.

    Values are 0 wherever `observed` is False: past the end of a series, and where a value is missing.
    """

    values: Float[Tensor, "B C S"]
    observed: Bool[Tensor, "B C S"]
    lengths: Int[Tensor, " B"]

    @property
    def inside(self) -> Bool[Tensor, "B S"]:
        """True at the steps that belong to a series, missing values included; False on padding."""
        steps = torch.arange(self.values.shape[-1], device=self.values.device)
        return steps < self.lengths[:, None]

    @classmethod
    def whole(cls, values: Float[Tensor, "B C S"]) -> Batch:
        """Series of one length without missing values."""
        lengths = torch.full((len(values),), values.shape[-1], device=values.device)
        return cls(values, torch.ones_like(values, dtype=torch.bool), lengths)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.values.to(device), self.observed.to(device), self.lengths.to(device))


@dataclass(frozen=True)
class Grid:
    """The tokens of a picture: `rows` x `columns` of equal size over `side` x `side` pixels.

    Step `row * side + column` of the series is a pixel.
    """

    rows: int
    columns: int
    side: int


@dataclass(frozen=True)
class TokenMap:
    """Which tokens are real and which steps of the window each one covers.

    `mask` is False for padding and special tokens (CLS, REG, EOS, masked output patches): they never enter a pooled
    vector. A token covers the steps from `start` up to, not including, `stop`; a token that is masked covers none.
    `cls` is the index of the class token where the encoder has one.

    Where the series is a picture, `grid` says which pixels a token covers: the real tokens of each row are those of
    the grid, line by line. Their steps only say to which segments a token belongs.
    """

    mask: Bool[Tensor, "R T"]
    start: Int[Tensor, "R T"]
    stop: Int[Tensor, "R T"]
    cls: int | None = None
    grid: Grid | None = None


@dataclass(frozen=True)
class Inputs:
    """What an encoder's forward pass takes for one batch, and how to read the tokens that come out.

    `rows` is the number of rows a series becomes: C where channels are encoded one by one, 1 where they share
    tokens. Row r belongs to series r // rows. `tokens` is one map for all layers, or one for each layer name where
    the number of tokens changes on the way.
    """

    kwargs: Mapping[str, Any]
    tokens: TokenMap | Mapping[str, TokenMap]
    rows: int

    def tokens_of(self, layer: str) -> TokenMap:
        return self.tokens if isinstance(self.tokens, TokenMap) else self.tokens[layer]
