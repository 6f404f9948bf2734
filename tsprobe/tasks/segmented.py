"""A stream whose state never comes back, of which the middle of each state is learnt from: `tssb/DIR/NAME`.

DIR is a folder of TSSB in its official format (`tsprobe.data.annotated`); each segment is a state of its own. A split
in time would leave states to score that were never seen. So of every segment the middle half is learnt from, and what
is scored are its first and last quarter, where the change points are: the series is read as it was published, and
asked about there. Next to the middle, as many steps as one period has (at most an eighth of the segment) are left out.

The middles are cut in four, and each quarter of them is a training stream: a piece of every segment, joined in random
order, as the series of TSSB were themselves joined from pieces of equal class. Folds are of these streams.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from tsprobe.data.annotated import Segmented, read_tssb
from tsprobe.data.panel import Panel
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks.base import Task
from tsprobe.tasks.dense import EVERY, ask

STREAMS = 4
_SHORTEST = 64  # steps of a segment


def load_tssb(given: str) -> Task:
    """Raises as `read_tssb` and `from_middles` do, `SpecError` for a setting: there is none but `metric`."""
    base, mark, query = given.partition("?")
    if mark:
        raise SpecError(f"task 'tssb/{base}': no setting {query!r}; there is metric")
    path = Path(base).expanduser()
    if not path.name or path.parent == Path():
        raise SpecError(f"task 'tssb/{given}': give tssb/DIR/NAME, where DIR has desc.txt and NAME.txt")
    return from_middles(f"tssb/{given}", read_tssb(path.parent, path.name), source="TSSB")


def from_middles(name: str, stream: Segmented, *, source: str, licence: str = "not declared") -> Task:
    """A classification of steps by segment, learnt from the middles, scored by covering on what is outside of them.

    Raises `DataError` for a series without changes, or with a segment of fewer than 64 steps.
    """
    borders = [0, *stream.changes, len(stream.values)]
    sizes = np.diff(borders)
    if len(sizes) < 2 or sizes.min() < _SHORTEST:
        raise DataError(
            f"task {name!r}: segments of {', '.join(map(str, sizes))} steps; two of at least {_SHORTEST} are due"
        )
    values = stream.values.astype(np.float32)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    asked = truth.copy()
    rng = np.random.default_rng(0)
    pieces = []  # [segment][stream] of steps
    for begin, end in itertools.pairwise(borders):
        quarter, gap = (end - begin) // 4, min(stream.window, (end - begin) // 8)
        asked[begin + quarter - gap : end - quarter + gap] = -1
        pieces.append(np.array_split(np.arange(begin + quarter, end - quarter), STREAMS))
    train = [np.concatenate([pieces[k][i] for k in rng.permutation(len(sizes))]) for i in range(STREAMS)]
    panels = [Panel(tuple(values[None, steps] for steps in train)), Panel((values[None],))]
    return ask(
        name, "classification", "covering", panels, [[truth[steps] for steps in train], [asked]],
        tuple(f"segment {k}" for k in range(1, len(sizes) + 1)),
        steps=(max(map(len, train)) // EVERY, int((asked >= 0).sum()) // EVERY), source=source, licence=licence,
    )  # fmt: skip
