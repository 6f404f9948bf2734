"""Views of a picture: heavy random crop, brightness and saturation, mirror (PE, table 18), on batches of tensors.

A mirrored picture has other captions: left is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

_SIDES = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
_SIDE = re.compile(rf"\b({'|'.join(_SIDES)})\b", re.IGNORECASE)
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """`crop`: the share of the area that is kept, from low to high; `aspect`: width over height of the crop, as a
    factor up or down; `brightness`, `saturation`: factors within 1 ± these; `flip`: how often a picture is mirrored.
    """

    crop: tuple[float, float] = (1.0, 1.0)
    aspect: float = 1.0
    brightness: float = 0.0
    saturation: float = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop is a range of shares of the area within 0 to 1, not {list(self.crop)}")
        if self.aspect < 1 or not 0 <= self.flip <= 1 or min(self.brightness, self.saturation) < 0:
            raise ValueError("aspect is at least 1, flip a share, brightness and saturation at least 0")


def view(
    images: Float[Tensor, "B 3 H W"],
    captions: Sequence[str],
    how: Augmentation,
    size: int,
    rng: torch.Generator,
    crop: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "B 3 size size"], list[str]]:
    """One view of each picture (values in [-1, 1]) of `size` pixels a side, and its caption. `crop` replaces `how`'s.

    Chance is drawn on the CPU, always in the same order and amount.
    """
    low, high = crop or how.crop
    draws = torch.rand(7, len(images), generator=rng)
    area = low + (high - low) * draws[0]
    aspect = how.aspect ** (2 * draws[1] - 1)
    wide, tall = ((area * a).sqrt().clamp(max=1) for a in (aspect, 1 / aspect))
    x, y = (1 - wide) * (2 * draws[2] - 1), (1 - tall) * (2 * draws[3] - 1)  # centres in [-1, 1]
    flipped = draws[4] < how.flip
    zero = torch.zeros_like(x)
    matrix = torch.stack([torch.where(flipped, -wide, wide), zero, x, zero, tall, y], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix.to(images), [len(images), 3, size, size], align_corners=False)
    out = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    out = _jittered(out, 1 + how.brightness * (2 * draws[5] - 1), 1 + how.saturation * (2 * draws[6] - 1))
    return out, mirrored(captions, flipped)


def plain(images: Float[Tensor, "B 3 H W"], size: int) -> Float[Tensor, "B 3 size size"]:
    """Whole pictures at `size` pixels a side."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def mirrored(captions: Sequence[str], flipped: Bool[Tensor, " B"]) -> list[str]:
    """Captions with left and right exchanged where the picture is mirrored; capital letters stay."""
    return [
        _SIDE.sub(_other_side, caption) if turn else caption
        for caption, turn in zip(captions, flipped.tolist(), strict=True)
    ]


def _other_side(match: re.Match[str]) -> str:
    word = match[0]
    other = _SIDES[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _jittered(images: Tensor, bright: Tensor, saturation: Tensor) -> Tensor:
    """Factors on values in [0, 1]: on all channels, then on the distance from grey."""
    x = (images / 2 + 0.5) * bright.to(images)[:, None, None, None]
    grey = (x * torch.tensor(_GREY).to(images)[:, None, None]).sum(1, keepdim=True)
    return (grey + (x - grey) * saturation.to(images)[:, None, None, None]).clamp(0, 1) * 2 - 1
