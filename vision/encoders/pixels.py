"""`vision/pixels`: what simple statistics of pixels tell, without a network. The control for all that looks deeper.

A cell of the picture has its mean colour, the spread of each channel, and a histogram of where its gradients of
brightness point (8 directions without sign, weighted by their length, as in Dalal & Triggs 2005).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from tsprobe.encoders.base import Tap
from tsprobe.types import Batch, TokenMap
from vision.encoders.base import ImageEncoder, Look, image_facts, on_device
from vision.encoders.grids import picture_tokens
from vision.images import side

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NAME = "vision/pixels"
SIZE = 128  # pixels of a side
GRIDS = {"fine": 16, "middle": 8, "coarse": 4}  # cells a side
DIRECTIONS = 8
_GREY = (0.299, 0.587, 0.114)  # brightness of red, green and blue (ITU-R BT.601)


class PixelStatistics(nn.Module):
    """Pictures `[B, 3, H, W]` to the statistics of their cells, `[B, n * n, 14]`, on each of `GRIDS`; gives, for each
    cell of the finest, those of the cells around it too, `[B, n * n, 42]`."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleDict({name: nn.Identity() for name in GRIDS})  # places where a level is read
        self.all = nn.Identity()

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T 42"]:
        maps = torch.cat([x, x.square(), _directions(x)], 1)  # [B, 14, H, W]
        finest, found = max(GRIDS.values()), []
        for name, cells in GRIDS.items():
            mean, square, edges = F.adaptive_avg_pool2d(maps, cells).split([3, 3, DIRECTIONS], 1)
            level = torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt(), edges], 1)  # [B, 14, n, n]
            self.levels[name](level.flatten(2).transpose(1, 2))
            found.append(F.interpolate(level, size=(finest, finest), mode="nearest"))
        return self.all(torch.cat(found, 1).flatten(2).transpose(1, 2))


def _directions(x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 8 H W"]:
    """The length of the gradient of brightness at each pixel, in the plane of its direction, from 0 to 180 degrees."""
    grey = (x * x.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
    grey = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    down = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    angle = torch.atan2(down, across).remainder(math.pi)
    plane = (angle / math.pi * DIRECTIONS).round().long() % DIRECTIONS  # [B, 1, H, W]
    planes = torch.arange(DIRECTIONS, device=x.device)[:, None, None]
    return torch.where(plane == planes, torch.hypot(across, down), 0)


class Pixels(ImageEncoder):
    """Layers: the statistics of `fine` (16 x 16), `middle` (8 x 8) and `coarse` (4 x 4) cells, and `all` of them at
    each fine cell, which is `final`."""

    def __init__(self) -> None:
        module = PixelStatistics()
        taps = {name: Tap(f"levels.{name}") for name in GRIDS} | {"all": Tap("all")}
        facts = image_facts(
            objective="none",
            pretrained_on="nothing",
            code_licence="Apache-2.0",
            weights_licence="no weights",
            final_is="statistics of pixels in cells of three sizes",
        )
        super().__init__(NAME, module, taps, "all", facts, Look(SIZE, GRIDS["fine"], (0.0,) * 3, (1.0,) * 3))

    def maps(self, batch: Batch) -> dict[str, TokenMap]:
        count, width, device = len(batch.lengths), side(batch.values.shape[-1]), batch.values.device
        maps = {n: on_device(picture_tokens(count, g, g, width), device) for n, g in GRIDS.items()}
        return maps | {"all": maps["fine"]}
