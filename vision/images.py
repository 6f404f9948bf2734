"""Images as series: 3 channels, red, green and blue, of one value a pixel, the rows of pixels behind one another.

An image is square, `[3, H * W]` in float32 from 0 to 1 with H = W, so that its side is known from its number of steps,
and step `row * W + column` is a pixel. A clip is a list of frames, each of them an image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8

CHANNELS = 3


def to_panel(images: UInt8[np.ndarray, "N 3 H W"] | Float[np.ndarray, "N 3 H W"]) -> Float32[np.ndarray, "N 3 H*W"]:
    """Series of square RGB images, whole numbers from 0 to 255 or floats from 0 to 1.

    Raises `DataError` for another shape or type, and for floats that are not finite or lie outside 0 to 1.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] != CHANNELS or images.shape[2] != images.shape[3] or not images.size:
        raise DataError(f"images of shape {images.shape}: give square RGB images [N, 3, H, W] with H = W")
    if images.dtype == np.uint8:
        values = images.astype(np.float32) / np.float32(255)
    elif images.dtype.kind == "f":
        values = images.astype(np.float32)
        if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
            raise DataError("images in floating point have values from 0 to 1; these have others, or NaN")
    else:
        raise DataError(f"images of type {images.dtype}: give uint8 from 0 to 255, or floats from 0 to 1")
    return values.reshape(len(values), CHANNELS, -1)


def to_images(series: Float[np.ndarray, "N 3 S"]) -> Float[np.ndarray, "N 3 H W"]:
    """The images `[N, 3, H, W]` of series of one length; the inverse of `to_panel`. Raises `DataError` as `side`."""
    size = side(series.shape[-1])
    return series.reshape(*series.shape[:-1], size, size)


def side(steps: int) -> int:
    """Rows (and columns) of an image that is a series of so many steps. Raises `DataError` where it is not square."""
    size = math.isqrt(max(steps, 0))
    if steps < 1 or size * size != steps:
        raise DataError(
            f"a series of {steps} steps is no square image: an image is [3, H * W] with H = W, its pixel rows behind "
            "one another (vision.images.to_panel)"
        )
    return size
