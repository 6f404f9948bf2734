"""What can be said of raw series without a network: level, spread and spectrum, for CKA with a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

BANDS = 8  # octaves, from the highest frequency down


def input_statistics(series: Sequence[Float[np.ndarray, "C S"]], *, pictures: bool) -> dict[str, np.ndarray]:
    """Features `[N, E]` of the input under the names of the measures that compare layers with them.

    `cka_mean` and `cka_std`: mean and standard deviation of each channel. `cka_spectrum`: log of the mean power of
    each channel in bands of an octave, `BANDS` of them, below half a cycle a step; of pictures (squares, line by line)
    in bands of the radius. Columns have mean 0 and variance 1; those that do not vary are left out, and what a series
    is too short for takes the column's mean. Series are finite.
    """
    rows = [np.asarray(s, np.float64) for s in series]
    return {
        "cka_mean": _standard(np.stack([s.mean(1) for s in rows])),
        "cka_std": _standard(np.stack([s.std(1) for s in rows])),
        "cka_spectrum": _standard(np.stack([_spectrum(s, pictures) for s in rows])),
    }


def _spectrum(series: Float[np.ndarray, "C S"], picture: bool) -> Float[np.ndarray, " E"]:
    channels, steps = series.shape
    series = series - series.mean(1, keepdims=True)
    if picture:
        side = round(steps**0.5)
        power = np.abs(np.fft.rfft2(series.reshape(channels, side, side))) ** 2
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    else:
        power, frequency = np.abs(np.fft.rfft(series)) ** 2, np.fft.rfftfreq(steps)
    power, frequency = power.reshape(channels, -1) / steps, frequency.ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        # 0 from a quarter of a cycle a step; what is slower than all bands, as the mean is, falls into one more
        octave = np.clip(np.floor(-np.log2(2 * frequency)), 0, BANDS).astype(int)
        place = octave + (BANDS + 1) * np.arange(channels)[:, None]
        sums = np.bincount(place.ravel(), power.ravel(), minlength=channels * (BANDS + 1)).reshape(channels, -1)
        means = sums / np.bincount(octave, minlength=BANDS + 1)  # 0 / 0 is NaN: no frequency in the band
    return np.log(means[:, :BANDS] + 1e-12).ravel()


def _standard(columns: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N e"]:
    known = np.isfinite(columns)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, columns, 0).sum(0) / count
    centred = np.where(known, columns - mean, 0)
    spread = np.sqrt((centred**2).sum(0) / count)
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1e-3)
    return centred[:, varies] / spread[varies]
