"""Segments of series whose truth nobody knows, found by ruptures: PELT (Killick et al. 2012) on mean and variance.

The penalty is that of the Bayesian information criterion for a Gaussian whose mean and variance change, 3 log S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from tsprobe.errors import MissingPackageError, UnknownNameError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    Segmenter = Callable[[Float[Tensor, "B C S"]], Int[Tensor, "B S"]]

SEGMENTERS = ("ruptures",)
_SHORTEST, _GRAIN = 16, 4  # steps of a segment, and between borders that are tried


def segmenter_of(name: str) -> Segmenter:
    """Raises `UnknownNameError` for another one, `MissingPackageError` without its package."""
    if name not in SEGMENTERS:
        raise UnknownNameError("segmenter", name, SEGMENTERS)
    try:
        import ruptures  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError("ruptures", "segments of series", "align") from error
    return by_ruptures


def by_ruptures(values: Float[Tensor, "B C S"]) -> Int[Tensor, "B S"]:
    """The number of the segment of each step, of each series by itself; one segment where a series is too short."""
    steps = values.shape[-1]
    found = torch.zeros(len(values), steps, dtype=torch.int64)
    if steps < 2 * _SHORTEST:
        return found
    for row, x in zip(found, values.double().cpu().numpy(), strict=True):
        for border in _borders(x.T):
            row[border:] += 1
    return found


def _borders(x: np.ndarray) -> list[int]:
    import ruptures
    from ruptures.costs import CostNormal

    spread = x.std(0)
    z = (x - x.mean(0)) / np.where(spread > 0, spread, 1)
    # the cost of a constant stretch is minus infinity without a floor for its variance
    noisy = z + 1e-3 * np.random.default_rng(0).standard_normal(z.shape)
    cost = CostNormal(add_small_diag=False)
    pelt = ruptures.Pelt(custom_cost=cost, min_size=_SHORTEST, jump=_GRAIN).fit(noisy)
    return pelt.predict(pen=3 * x.shape[1] * np.log(len(x)))[:-1]
