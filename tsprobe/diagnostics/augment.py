"""Views of a series or a picture: the same thing once more, a little changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32

CROP, SCALE, JITTER = 0.8, 0.1, 0.05  # of series: least share of the steps, and of the standard deviation
AREA, BRIGHTNESS = 0.6, 0.2  # of pictures: least share of the area


def declared(pictures: bool) -> str:
    """How views are made, in words, as results carry it."""
    if pictures:
        return f"a square of {AREA:g} to 1 of the area, stretched back; brightness times 1 ± {BRIGHTNESS}, uniform"
    return (
        f"{CROP:g} to 1 of the steps, stretched back; the deviation of each channel from its mean times 1 ± {SCALE}, "
        f"normal; noise of {JITTER} of the channel's standard deviation"
    )


def view(series: Float32[np.ndarray, "C S"], rng: np.random.Generator, *, pictures: bool) -> Float32[np.ndarray, "C S"]:
    """A view of the same length. `series` are finite; pictures are squares with values from 0 to 1, line by line."""
    return _of_picture(series, rng) if pictures else _of_series(series, rng)


def _of_series(series: Float32[np.ndarray, "C S"], rng: np.random.Generator) -> Float32[np.ndarray, "C S"]:
    channels, steps = series.shape
    kept = rng.uniform(CROP, 1) * (steps - 1)
    begin = rng.uniform(0, steps - 1 - kept)
    at = np.linspace(begin, begin + kept, steps)
    cropped = np.stack([np.interp(at, np.arange(steps), channel) for channel in series])
    mean, spread = cropped.mean(1, keepdims=True), series.std(1, keepdims=True)
    noise = rng.normal(0, JITTER, series.shape) * spread
    return (mean + (cropped - mean) * rng.normal(1, SCALE, (channels, 1)) + noise).astype(np.float32)


def _of_picture(series: Float32[np.ndarray, "C S"], rng: np.random.Generator) -> Float32[np.ndarray, "C S"]:
    channels, steps = series.shape
    side = round(steps**0.5)
    kept = np.sqrt(rng.uniform(AREA, 1)) * (side - 1)
    picture = series.reshape(channels, side, side)
    for axis, begin in zip((1, 2), rng.uniform(0, side - 1 - kept, 2), strict=True):  # bilinear, axis by axis
        at = np.linspace(begin, begin + kept, side)
        low = np.floor(at).astype(int).clip(0, max(side - 2, 0))
        weight = (at - low)[:, None] if axis == 1 else at - low
        high = np.minimum(low + 1, side - 1)
        picture = np.take(picture, low, axis) * (1 - weight) + np.take(picture, high, axis) * weight
    bright = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
    return (picture * bright).clip(0, 1).reshape(channels, steps).astype(np.float32)
