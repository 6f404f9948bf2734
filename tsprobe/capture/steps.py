"""Which steps of a panel are read, and which layers are fine enough to be asked about steps at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tsprobe.capture.windows import cut, load
from tsprobe.errors import DataError, EncoderError

if TYPE_CHECKING:
    from jaxtyping import Int64

    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Encoder


@dataclass(frozen=True, eq=False, repr=False)
class Steps:
    """M steps of each of N series, at which tokens are read instead of pooled: `at [N, M]`.

    With `causal`, a step is read from the last token that covers nothing after it; else between the tokens around it.
    """

    at: Int64[np.ndarray, "N M"]
    causal: bool = False

    @property
    def pooling(self) -> str:
        """The name of this reading among poolings."""
        return f"steps{self.at.shape[1]}"

    def check(self, panel: Panel) -> None:
        """Raise `DataError` unless every step lies within its series."""
        fits = self.at.ndim == 2 and self.at.dtype == np.int64 and self.at.shape[0] == len(panel) and self.at.size
        if not fits:
            raise DataError(f"steps of shape {self.at.shape}, {self.at.dtype}; give int64 [{len(panel)}, M]")
        outside = ((self.at < 0) | (self.at >= panel.lengths[:, None])).any(1)
        if outside.any():
            i = int(np.flatnonzero(outside)[0])
            raise DataError(f"series {i} has {panel.lengths[i]} steps, and is asked about {self.at[i].tolist()}")

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(self.at.shape).encode() + np.ascontiguousarray(self.at).tobytes())
        return f"Steps({digest.hexdigest()[:16]}, causal={self.causal})"


def coarse_layers(encoder: Encoder, panel: Panel, layers: Iterable[str]) -> tuple[str, ...]:
    """The layers that have one token, or none, for a whole window of the longest series: they know of no steps."""
    longest = int(panel.lengths.argmax())
    windows = cut(panel.take([longest]), encoder.facts, encoder.name)[:1]
    with torch.inference_mode():
        batch = load(panel.take([longest]), windows, keep_missing=encoder.facts.masks_missing)
        inputs = encoder.prepare(batch.to(encoder.device))
    return tuple(name for name in layers if int(_places(inputs.tokens_of(name))) < 2)


def _places(tokens: object) -> int:
    """Different spans of steps among the real tokens of a row."""
    mask, start, stop = (getattr(tokens, name) for name in ("mask", "start", "stop"))
    return max(len(torch.stack([a[m], b[m]], 1).unique(dim=0)) for m, a, b in zip(mask, start, stop, strict=True))


def refuse_coarse(encoder: Encoder, panel: Panel, layers: Iterable[str]) -> None:
    """Raise `EncoderError` where one of these layers knows of no steps."""
    coarse = coarse_layers(encoder, panel, layers)
    if coarse:
        raise EncoderError(
            f"not applicable: {encoder.name} has one token for a whole series at {', '.join(coarse)}, and cannot be "
            "asked about steps there"
        )
