"""The networks of the zoo: the backbone, and the one part past it that each objective adds.

Shared by pretraining, which fits them, and by the adapter, which reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tsprobe.encoders.backbone import Backbone, Block, Shape, attention_mask, make_norm, rotation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

QUANTILES = tuple(i / 10 for i in range(1, 10))
AHEAD = 4  # patches that a forecast looks ahead


class ForecastHead(nn.Module):
    """From each token the quantiles of the next `AHEAD` patches: `[R, T, steps * quantiles]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        outputs = AHEAD * shape.patch * len(QUANTILES)
        self.layers = nn.Sequential(nn.Linear(shape.width, shape.width), nn.GELU(), nn.Linear(shape.width, outputs))

    def forward(self, tokens: Float[Tensor, "R T D"], seen: Bool[Tensor, "R T"]) -> Float[Tensor, "R T K"]:
        del seen
        return self.layers(tokens)


class PatchHead(nn.Module):
    """From each token the values of its own patch: `[R, T, P]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layer = nn.Linear(shape.width, shape.patch)

    def forward(self, tokens: Float[Tensor, "R T D"], seen: Bool[Tensor, "R T"]) -> Float[Tensor, "R T P"]:
        del seen
        return self.layer(tokens)


class Projector(nn.Module):
    """An MLP on the mean of the tokens that saw something: one vector a row, `[R, 1, D]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = mlp(shape.width, 2 * shape.width, shape.width)

    def forward(self, tokens: Float[Tensor, "R T D"], seen: Bool[Tensor, "R T"]) -> Float[Tensor, "R 1 D"]:
        weight = seen[..., None].to(tokens.dtype)
        return self.layers((tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1))


class TokenProjector(nn.Module):
    """An MLP on each token, into half the width: `[R, T, D / 2]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = mlp(shape.width, 2 * shape.width, shape.width // 2)

    def forward(self, tokens: Float[Tensor, "R T D"], seen: Bool[Tensor, "R T"]) -> Float[Tensor, "R T E"]:
        del seen
        return self.layers(tokens)


class Predictor(nn.Module):
    """A narrow transformer of two blocks that guesses, from tokens of some patches, the latents of all: `[R, T, D]`.

    Hidden patches go in as one learned token. With nothing hidden, as when the encoder is read, every token goes in.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, heads = shape.width // 2, max(1, shape.heads // 2)
        narrow = Shape(shape.patch, shape.context, width, 2, heads, shape.hidden // 2, shape.norm, shape.activation)
        self.size = width // heads
        self.enter, self.leave = nn.Linear(shape.width, width), nn.Linear(width, shape.width)
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(narrow) for _ in range(narrow.depth))
        self.norm = make_norm(narrow)

    def forward(
        self, tokens: Float[Tensor, "R K D"], seen: Bool[Tensor, "R T"], keep: Int[Tensor, "R K"] | None = None
    ) -> Float[Tensor, "R T D"]:
        """`keep` says which of the T patches the K tokens are; without it K is T. `seen`: which patches are known."""
        x = self.enter(tokens)
        if keep is not None:
            full = self.hidden.to(x.dtype).expand(*seen.shape, -1)
            x = full.scatter(1, keep[..., None].expand_as(x), x)
        position = torch.arange(seen.shape[1], device=seen.device).expand_as(seen)
        turn, mask = rotation(position, self.size), attention_mask(seen, causal=False)
        for block in self.blocks:
            x = block(x, turn, mask)
        return self.leave(self.norm(x))


def mlp(enter: int, hidden: int, leave: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(enter, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, leave))


@dataclass(frozen=True)
class Recipe:
    """What an objective asks of the network: which way its tokens may look, and the part that comes after `norm`."""

    causal: bool
    head: type[nn.Module]
    layer: str  # the name of that part among the layers


RECIPES = {
    "forecasting": Recipe(True, ForecastHead, "head"),
    "reconstruction": Recipe(False, PatchHead, "head"),
    "contrastive": Recipe(False, Projector, "projector"),
    "jepa": Recipe(False, Predictor, "predictor"),
    "next-latent": Recipe(True, TokenProjector, "projector"),
}


class ZooModel(nn.Module):
    """Backbone and head. Without an objective, the bare bidirectional backbone."""

    def __init__(self, shape: Shape, objective: str | None = None) -> None:
        super().__init__()
        recipe = RECIPES[objective] if objective else None
        self.backbone = Backbone(shape, causal=recipe.causal if recipe else False)
        self.head = recipe.head(shape) if recipe else None

    def forward(self, values: Float[Tensor, "R T P"], observed: Bool[Tensor, "R T P"]) -> Float[Tensor, "R T D"]:
        tokens = self.backbone(values, observed)
        return tokens if self.head is None else self.head(tokens, observed.any(-1))


def normalise(
    values: Float[Tensor, "R S"], observed: Bool[Tensor, "R S"], of: Bool[Tensor, "R S"] | None = None
) -> Float[Tensor, "R S"]:
    """asinh of the series less its mean, over its spread; 0 where nothing was observed.

    The statistics are those of the observed steps (of the observed steps within `of`). As in Chronos-2, asinh tames
    the outliers that any other choice of scale would leave. A series that does not vary becomes 0.
    """
    x = values.double()
    counted = observed if of is None else observed & of
    weight = counted.double()
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    mean = (x * weight).sum(-1, keepdim=True) / count
    spread = (((x - mean) * weight).square().sum(-1, keepdim=True) / count).sqrt()
    flat = spread <= 1e-7 * mean.abs() + 1e-30  # float32 rounds a constant to about that
    return torch.where(observed, ((x - mean) / torch.where(flat, torch.inf, spread)).asinh(), 0).float()
