"""Published results that a measurement of ours should come near to, where the weights and the data are at hand.

An anchor is one row of a paper's table: what an encoder scores at its best layer and at its last. Packages bring their
own through the entry points `tsprobe.anchors`: a module with `ANCHORS`, and `PROTOCOLS`, which names functions from an
encoder and a folder of data to the score of each block. Being near validates the reader of weights, the hooks and the
readout at once; being off says that one of them differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.errors import SpecError, UnknownNameError

if TYPE_CHECKING:
    from tsprobe.encoders.base import Encoder

    Protocol = Callable[[Encoder, Path], Mapping[str, float]]

GROUP = "tsprobe.anchors"


@dataclass(frozen=True)
class Anchor:
    """`best` and `last` are published scores in points, at block `layer` and at the last of `layers`, from 1 on.

    `pattern` is searched for in the names of encoders, whatever the case; `tolerance` is in points.
    """

    encoder: str
    pattern: str
    data: str
    metric: str
    best: float
    last: float
    layer: int | None
    layers: int
    tolerance: float
    source: str

    def fits(self, name: str) -> bool:
        return re.search(self.pattern, name, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Compared:
    """An anchor beside what was measured: scores in points, and the block of the best one, from 1 on."""

    anchor: Anchor
    best: float
    last: float
    layer: int

    @property
    def agrees(self) -> bool:
        """Whether both scores are within the tolerance. The best block may differ: neighbours score alike."""
        a = self.anchor
        return abs(self.best - a.best) <= a.tolerance and abs(self.last - a.last) <= a.tolerance

    def row(self) -> dict[str, Any]:
        kept = {k: v for k, v in asdict(self.anchor).items() if k not in ("pattern", "best", "last", "layer")}
        return kept | {
            "published_best": self.anchor.best, "measured_best": self.best, "published_last": self.anchor.last,
            "measured_last": self.last, "published_layer": self.anchor.layer, "measured_layer": self.layer,
            "agrees": self.agrees,
        }  # fmt: skip


def list_anchors() -> tuple[Anchor, ...]:
    """Those of all packages that are installed."""
    return tuple(anchor for part in _parts() for anchor in part.ANCHORS)


def protocols() -> dict[str, Protocol]:
    return {name: protocol for part in _parts() for name, protocol in part.PROTOCOLS.items()}


def compare(
    encoder: Encoder, data: str, folder: str | Path, anchors: Sequence[Anchor] | None = None
) -> tuple[dict[str, float], Compared | None]:
    """Scores of each block by the protocol of `data`, in points, and the anchor of the encoder beside them, if any.

    Raises `UnknownNameError` for another protocol, `SpecError` for an encoder without blocks that the protocol reads,
    and what the protocol raises for its folder.
    """
    known = protocols()
    if data not in known:
        raise UnknownNameError("protocol", data, known)
    scores = dict(known[data](encoder, Path(folder).expanduser()))
    blocks = [name for name in encoder.taps if name in scores]
    if not blocks:
        raise SpecError(f"{encoder.name} has no block that the protocol {data} reads")
    best = max(blocks, key=lambda name: scores[name])
    given = list_anchors() if anchors is None else anchors
    found = next((a for a in given if a.data == data and a.fits(encoder.name)), None)
    if found is None:
        return scores, None
    return scores, Compared(found, scores[best], scores[blocks[-1]], blocks.index(best) + 1)


def _parts() -> list[Any]:
    return [point.load() for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]
