"""The one backbone of the zoo: a pre-norm transformer over patches of a series, and the parts that objectives add.

A patch of steps goes in as its values and its observed mask side by side. A patch with nothing observed is a query
like any other, but no other patch attends to it: padding, missing values and patches hidden for a pretext task are
one and the same thing to the network. Positions are rotary, hence relative: where a series starts does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

_BASE = 10_000.0  # of the rotary wavelengths, in patches (RoFormer, section 3.2)


@dataclass(frozen=True)
class Shape:
    """The architecture. `context` is in steps; `hidden` is the width inside the feed-forward layers."""

    patch: int = 8
    context: int = 512
    width: int = 128
    depth: int = 12
    heads: int = 4
    hidden: int = 256
    norm: Literal["rms", "layer"] = "rms"
    activation: Literal["swiglu", "gelu"] = "swiglu"

    def __post_init__(self) -> None:
        if min(self.patch, self.context, self.width, self.depth, self.heads, self.hidden) < 1:
            raise ValueError("all sizes of a backbone are at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if self.context % self.patch:
            raise ValueError(f"context {self.context} must be a multiple of the patch of {self.patch} steps")
        if self.norm not in ("rms", "layer") or self.activation not in ("swiglu", "gelu"):
            raise ValueError("norm is rms or layer, activation is swiglu or gelu")


class Backbone(nn.Module):
    """Patches to tokens. `causal`: a token attends to itself and to those before it."""

    def __init__(self, shape: Shape, *, causal: bool) -> None:
        super().__init__()
        self.shape = shape
        self.causal = causal
        self.embed = nn.Linear(2 * shape.patch, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = make_norm(shape)

    def forward(
        self, values: Float[Tensor, "R T P"], observed: Bool[Tensor, "R T P"], keep: Int[Tensor, "R K"] | None = None
    ) -> Float[Tensor, "R T D"]:
        """Tokens after the last norm. With `keep`, only these patches, in order, are looked at: `[R, K, D]`."""
        seen = observed.any(-1)  # [R, T]
        position = torch.arange(values.shape[1], device=values.device).expand_as(seen)
        if keep is not None:
            values, observed = (t.gather(1, keep[..., None].expand(-1, -1, t.shape[-1])) for t in (values, observed))
            seen, position = seen.gather(1, keep), keep
        x = self.embed(torch.cat([values, observed.to(values.dtype)], -1))
        turn, mask = rotation(position, self.shape.width // self.shape.heads), attention_mask(seen, self.causal)
        for block in self.blocks:
            x = block(x, turn, mask)
        return self.norm(x)


class Block(nn.Module):
    """Attention and feed-forward layer, each on the normalised stream and added to it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1, self.norm2 = make_norm(shape), make_norm(shape)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.gated = shape.activation == "swiglu"
        self.up = nn.Linear(shape.width, shape.hidden * (2 if self.gated else 1), bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)
        for layer in (self.out, self.down):  # so that the stream does not grow with depth at the start
            nn.init.normal_(layer.weight, std=(2 * shape.depth * layer.in_features) ** -0.5)

    def forward(
        self, x: Float[Tensor, "R T D"], turn: tuple[Tensor, Tensor], mask: Bool[Tensor, "R 1 T T"]
    ) -> Float[Tensor, "R T D"]:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [R, heads, T, d]
        mixed = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.up(self.norm2(x))
        if self.gated:
            gate, value = h.chunk(2, -1)
            h = F.silu(gate) * value
        else:
            h = F.gelu(h)
        return x + self.down(h)


def make_norm(shape: Shape) -> nn.Module:
    return nn.RMSNorm(shape.width, eps=1e-6) if shape.norm == "rms" else nn.LayerNorm(shape.width)


def attention_mask(seen: Bool[Tensor, "R T"], causal: bool) -> Bool[Tensor, "R 1 T T"]:
    """Which tokens (last axis) a token may attend to: those that saw something, and itself, so that it has a choice."""
    t = seen.shape[1]
    allowed = seen[:, None, None, :] | torch.eye(t, dtype=torch.bool, device=seen.device)
    return allowed & torch.ones(t, t, dtype=torch.bool, device=seen.device).tril() if causal else allowed


def rotation(position: Int[Tensor, "R T"], size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[R, 1, T, size / 2]` of the rotary embedding."""
    rate = _BASE ** (-torch.arange(0, size, 2, device=position.device, dtype=torch.float32) / size)
    angle = (position[..., None].float() * rate)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "R H T d"], turn: tuple[Tensor, Tensor]) -> Float[Tensor, "R H T d"]:
    cos, sin = (t.to(x.dtype) for t in turn)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
