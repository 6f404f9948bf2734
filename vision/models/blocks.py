"""The pre-norm block that the image tower, the text tower and the decoders share, and the poolings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from vision.models.positions import rotate

if TYPE_CHECKING:
    from jaxtyping import Bool, Complex, Float
    from torch import Tensor

EPS = 1e-5


class Mlp(nn.Sequential):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


class Block(nn.Module):
    """Attention and feed-forward layer, each on the normalised stream and added to it."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = Mlp(width, ratio)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turn: Complex[Tensor, "T d/2"] | None = None,
        allowed: Bool[Tensor, "... T T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """`turn` are rotations of the tokens; `allowed` says which tokens (last axis) a token attends to."""
        return self.read(x, turn, allowed)[0]

    def read(
        self,
        x: Float[Tensor, "B T D"],
        turn: Complex[Tensor, "T d/2"] | None = None,
        allowed: Bool[Tensor, "... T S"] | None = None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], tuple[Tensor, Tensor]]:
        """The same, and the keys and values `[B, heads, S, d]` of all that was read: `past` ones, then those of x."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, d]
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), (k, v)


class AttentionPool(nn.Module):
    """One learned query looks at all tokens, CLS too; then a residual feed-forward layer (PE, section 2.1)."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        # of the size of a normalised token: a small query looks at all tokens alike for a thousand steps
        self.query = nn.Parameter(torch.randn(width))
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm, self.mlp = nn.LayerNorm(width, EPS), Mlp(width, ratio)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        q = self.q(self.query).unflatten(-1, (self.heads, 1, -1)).expand(len(x), -1, -1, -1)  # [B, heads, 1, d]
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.out(F.scaled_dot_product_attention(q.to(k.dtype), k, v).flatten(1))
        return y + self.mlp(self.norm(y))


class FirstPool(nn.Module):
    """The CLS token."""

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        return x[:, 0]


class MeanPool(nn.Module):
    """The mean of the patches; the first `skip` tokens are left out."""

    def __init__(self, skip: int) -> None:
        super().__init__()
        self.skip = skip

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        return x[:, self.skip :].mean(1)
