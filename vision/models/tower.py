"""The image tower of the vision zoo: a small vision transformer in the shape of PE core (PE, section 2.1, table 17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from tsprobe.errors import DataError
from vision.models.blocks import EPS, AttentionPool, Block, FirstPool, MeanPool
from vision.models.positions import resized, rotation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


MOST = 1000  # blocks: building so many takes a second


@dataclass(frozen=True)
class TowerShape:
    """The architecture. `size` (of the learned grid) and `patch` are in pixels; `embed` is the width after projection,
    None for no projection. `rope`, `absolute`, `cls` and `pool` are the ingredients that can be left out.
    """

    size: int = 64
    patch: int = 8
    width: int = 128
    depth: int = 12
    heads: int = 4
    ratio: int = 4
    embed: int | None = 128
    rope: bool = True
    absolute: bool = True
    cls: bool = True
    pool: Literal["attention", "cls", "mean"] = "attention"

    def __post_init__(self) -> None:
        sizes = (self.size, self.patch, self.width, self.depth, self.heads, self.ratio, self.embed or 1)
        if min(sizes) < 1 or self.depth > MOST:
            raise ValueError(f"all sizes of a tower are at least 1, and it has at most {MOST} blocks")
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of four times the {self.heads} heads")
        if self.size % self.patch:
            raise ValueError(f"size {self.size} must be a multiple of the patch of {self.patch} pixels")
        if self.pool not in ("attention", "cls", "mean"):
            raise ValueError(f"pool is attention, cls or mean, not {self.pool!r}")
        if self.pool == "cls" and not self.cls:
            raise ValueError("pool: cls needs the token, cls: true")


class Tower(nn.Module):
    """Images in [-1, 1] to tokens after the last norm, the CLS token (where there is one) first.

    `encode` goes on to `pool` and `projection`, so that hooks on them see their outputs.
    """

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        width, grid = shape.width, shape.size // shape.patch
        self.patches = nn.Conv2d(3, width, shape.patch, shape.patch, bias=False)
        self.cls = nn.Parameter(torch.randn(width) * width**-0.5) if shape.cls else None
        self.positions = nn.Parameter(torch.randn(grid**2 + shape.cls, width) * width**-0.5) if shape.absolute else None
        self.norm_pre = nn.LayerNorm(width, EPS)
        self.blocks = nn.ModuleList(Block(width, shape.heads, shape.ratio) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, EPS)
        self.pool: nn.Module = (
            AttentionPool(width, shape.heads, shape.ratio)
            if shape.pool == "attention"
            else FirstPool() if shape.pool == "cls" else MeanPool(int(shape.cls))
        )  # fmt: skip
        self.projection = nn.Identity() if shape.embed is None else nn.Linear(width, shape.embed, bias=False)
        start(self, shape.depth)

    def forward(
        self,
        images: Float[Tensor, "B 3 Y X"],
        *,
        hidden: Bool[Tensor, "B P"] | None = None,
        filler: Float[Tensor, " D"] | None = None,
        allowed: Bool[Tensor, "... T T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Tokens of whole patches, row by row. `hidden` patches are replaced by `filler` before positions are added;
        `allowed` says which tokens (last axis) a token attends to. Raises `DataError` for images of other sizes.
        """
        patch, cls = self.shape.patch, self.shape.cls
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch or images.shape[3] % patch:
            raise DataError(f"images are [B, 3, Y, X] in whole patches of {patch} pixels, not {tuple(images.shape)}")
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        x = self.patches(images).flatten(2).transpose(1, 2)  # [B, P, D]
        if hidden is not None and filler is not None:
            x = torch.where(hidden[..., None], filler.to(x.dtype), x)
        if self.cls is not None:
            x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], 1)
        if self.positions is not None:
            x = x + resized(self.positions, rows, columns, cls=cls)
        x = self.norm_pre(x)
        turn = None
        if self.shape.rope:
            turn = rotation(rows, columns, self.shape.width // self.shape.heads, cls=cls).to(x.device)
        for block in self.blocks:
            x = block(x, turn, allowed)
        return self.norm(x)

    def head(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        """Tokens to the embedding of the image, not normalised."""
        return self.projection(self.pool(tokens))

    def encode(self, images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B E"]:
        """Images to embeddings, through `pool` and `projection`."""
        return self.head(self(images))


def start(module: nn.Module, depth: int) -> None:
    """Initial weights: normal with std 1 / sqrt(inputs), less at the end of each residual branch; biases zero."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            within = name.endswith(("out", "mlp.2")) and not name.startswith("pool.")  # nothing is added to the pool
            deep = depth if within else 0.5
            nn.init.normal_(layer.weight, std=(2 * deep * layer.in_features) ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
