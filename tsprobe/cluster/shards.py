"""A panel cut into shards: series that are read in the same batches stay together.

A batch of the whole panel is read whole by one worker, so that a series is pooled in the company that it has in one
process, and its features are the same to the last digit. (Where a series is read in several windows, these may lie in
two batches: the one that lies across a border is read in two parts.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tsprobe.capture.windows import batches, cut

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64

    from tsprobe.capture import Reading
    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Encoder


def shards(encoder: Encoder, panel: Panel, reading: Reading, size: int) -> list[Int64[np.ndarray, " n"]]:
    """The series of each shard, in the order of reading; a shard has `size` series, and up to a batch more."""
    windows = cut(panel, encoder.facts, encoder.name)
    seen = np.zeros(len(panel), bool)
    parts: list[list[int]] = [[]]
    for batch in batches(windows, max(1, reading.rows // panel.channels), encoder.facts.pads):
        if len(parts[-1]) >= size:
            parts.append([])
        for series in dict.fromkeys(windows[i].series for i in batch):
            if not seen[series]:
                seen[series] = True
                parts[-1].append(series)
    return [np.array(part) for part in parts if part]


def all_but(series: Int64[np.ndarray, " n"], panel: Panel) -> Bool[np.ndarray, " N"]:
    """The mask of what a worker has not to read."""
    mask = np.ones(len(panel), bool)
    mask[series] = False
    return mask
