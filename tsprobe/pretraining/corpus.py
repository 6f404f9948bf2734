"""The corpus: batches of series, drawn on the device when they are needed and never stored.

A batch depends on the seed and the step alone, so a run that was stopped sees the same series when it goes on, and
every objective sees the same series. All series of a batch have one length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tsprobe.pretraining.competitions import Competitions
from tsprobe.pretraining.gaussian import causal_graph, kernel_synth
from tsprobe.pretraining.processes import flip, ornstein_uhlenbeck, sarima, sines_and_events, uniform

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

Generator = Callable[[int, int, torch.Generator], "Float[Tensor, 'N S']"]
GENERATORS: dict[str, Generator] = {
    "kernel_synth": kernel_synth,
    "causal_graph": causal_graph,
    "sarima": sarima,
    "ornstein_uhlenbeck": ornstein_uhlenbeck,
    "sines_and_events": sines_and_events,
}
COMPETITIONS = "competitions"
SOURCES = (*GENERATORS, COMPETITIONS)
_GAPS = 0.15  # of the series have missing values
_CUT = 0.15  # of the series start inside their first patch


@dataclass(frozen=True)
class Series:
    """Values (0 where not observed) and which of them are observed."""

    values: Float[Tensor, "N S"]
    observed: Bool[Tensor, "N S"]


class Corpus:
    """Equal parts of the named sources, with lengths in `shortest` … `longest` steps, multiples of `patch`."""

    def __init__(
        self, sources: tuple[str, ...], shortest: int, longest: int, patch: int, seed: int, device: str = "cpu"
    ) -> None:
        self.lengths = range(-(-shortest // patch) * patch, longest + 1, patch)
        self.patch = patch
        self.seed = seed
        self.device = torch.device(device)
        self._draw = {s: Competitions() if s == COMPETITIONS else GENERATORS[s] for s in sources}

    def batch(self, step: int, size: int, steps: int | None = None) -> Series:
        """The series of that step: the same whenever and in whatever order it is asked for on one kind of device."""
        rng = self.generator(step)
        steps = steps or self.lengths[int(torch.randint(len(self.lengths), (), generator=rng, device=rng.device))]
        share = [size // len(self._draw) + (i < size % len(self._draw)) for i in range(len(self._draw))]
        parts = [draw(n, steps, rng) for draw, n in zip(self._draw.values(), share, strict=True) if n]
        values = torch.cat(parts)
        values = (values - values.mean(-1, keepdim=True)) / values.std(-1, keepdim=True).clamp(min=1e-6)
        observed = self._observed(size, steps, rng)
        return Series(torch.where(observed, values, 0), observed)

    def generator(self, step: int, stream: int = 0) -> torch.Generator:
        """Random numbers of a step. Stream 0 draws the series; others are for what an objective does with them."""
        # a counter through a 64-bit mixer: neighbouring steps have unrelated seeds
        return torch.Generator(self.device).manual_seed(_mix(_mix(self.seed) + 8 * step + stream))

    def _observed(self, n: int, steps: int, rng: torch.Generator) -> Bool[Tensor, "N S"]:
        """Some series lack scattered values and one stretch of up to a quarter; some start inside the first patch."""
        t = torch.arange(steps, device=rng.device)
        gaps = flip(_GAPS, n, rng)[:, None]
        scattered = uniform(rng, n, steps) < uniform(rng, n, 1) * 0.2
        start, length = uniform(rng, n, 1) * steps, uniform(rng, n, 1) * steps / 4
        missing = gaps & (scattered | ((t >= start) & (t < start + length)))
        cut = flip(_CUT, n, rng)[:, None] & (t < (uniform(rng, n, 1) * self.patch).floor())
        return ~(missing | cut)


def _mix(x: int) -> int:
    """SplitMix64 (Steele et al. 2014), kept in the 63 bits that torch takes as a seed."""
    x = (x + 0x9E3779B97F4A7C15) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (x ^ (x >> 31)) & (2**63 - 1)
