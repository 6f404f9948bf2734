"""What all encoders of images share: how a batch of series becomes pictures of the size that the network takes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.rows import refuse_missing
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs, TokenMap
from vision.encoders.grids import picture_tokens, single_token
from vision.images import CHANNELS, side

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn


@dataclass(frozen=True)
class Look:
    """How a network takes a picture: `size` x `size` pixels, less `mean` and divided by `std` of each channel.

    It makes a token of each of `grid` x `grid` patches, behind `prefix` special tokens, of which `cls` is the class
    token.
    """

    size: int
    grid: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prefix: int = 0
    cls: int | None = None


class ImageEncoder(Encoder):
    """An encoder of square RGB images, `[3, H * W]` from 0 to 1 (`vision.images`).

    Images are resized bilinearly, with antialiasing, to the size that the network takes. `heads` are the layers past
    the trunk, one token a picture. `final_of_steps` is the layer whose patches users take: where `final` is a head, the
    end of the trunk.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        taps: Mapping[str, Tap],
        final: str,
        facts: Facts,
        look: Look,
        *,
        heads: Collection[str] = (),
    ) -> None:
        super().__init__(name, module, taps, final, facts, heads=len(heads))
        self.look = look
        self._one_token = frozenset(heads)
        self.final_of_steps = [layer for layer in taps if layer not in heads][-1] if final in heads else final

    def prepare(self, batch: Batch) -> Inputs:
        """One row a picture. Raises `EncoderError` for other channels, missing values and pictures of unlike size,
        `DataError` for series that are no squares."""
        return Inputs({"x": self.pixels(batch)}, self.maps(batch), 1)

    def pixels(self, batch: Batch) -> Float[Tensor, "B 3 size size"]:
        """The pictures as the network takes them."""
        channels, steps = batch.values.shape[1:]
        if channels != CHANNELS:
            raise EncoderError(f"{self.name} takes RGB images, series of {CHANNELS} channels; these have {channels}")
        if bool((batch.lengths != steps).any()):
            raise EncoderError(f"{self.name} takes images of one size in a batch; these have {batch.lengths.tolist()}")
        refuse_missing(batch, self.name)
        pictures = batch.values.unflatten(-1, (side(steps), -1)).to(self.device, self.dtype)
        pictures = resized(pictures, self.look.size)
        mean, std = (pictures.new_tensor(part)[:, None, None] for part in (self.look.mean, self.look.std))
        return (pictures - mean) / std

    def maps(self, batch: Batch) -> TokenMap | dict[str, TokenMap]:
        """The token map of every layer."""
        count, width = len(batch.lengths), side(batch.values.shape[-1])
        look, device = self.look, batch.values.device
        tokens = picture_tokens(count, look.grid, look.grid, width, prefix=look.prefix, cls=look.cls)
        tokens = on_device(tokens, device)
        if not self._one_token:
            return tokens
        head = on_device(single_token(count, width, cls=look.cls is not None), device)
        return {name: head if name in self._one_token else tokens for name in self.taps}

    def fingerprint(self) -> str:
        """SHA-256 over the weights, and over what the network is shown: one set of weights serves several sizes."""
        return hashlib.sha256(f"{super().fingerprint()} {self.look}".encode()).hexdigest()


def resized(pictures: Float[Tensor, "B C H W"], size: int) -> Float[Tensor, "B C size size"]:
    if pictures.shape[-2:] == (size, size):
        return pictures
    return F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def on_device(tokens: TokenMap, device: torch.device) -> TokenMap:
    """The same map with its tensors there."""
    return replace(tokens, mask=tokens.mask.to(device), start=tokens.start.to(device), stop=tokens.stop.to(device))


def image_facts(**known: object) -> Facts:
    """What is true of all encoders of images, beside what is known of one."""
    return Facts(channels=CHANNELS, joint_channels=True, pads=False, **known)  # type: ignore[arg-type]
