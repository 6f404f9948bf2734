"""Anomalies in files of the UCR Anomaly Archive and of TSB-AD: `ucr-anomaly/PATH` and `tsb-ad/PATH`.

PATH is that of a file in the official format (`tsprobe.data.annotated`), or of a folder of them. Both archives give a
beginning of each series without anomalies and ask for those that come after it, so that there are no labelled
anomalies to learn from. To take some from the rest would leave a part of it to score, with which nobody else's numbers
compare, and of most series there is but one. So the readout learns from pieces of the beginning in which anomalies are
put (`tsprobe.data.anomalies`, in one channel at a time), and is scored on all of the rest, with the labels as
published, by VUS-PR. No layer is chosen on those labels.

A file is one sample, without an interval; a folder has as many as files. Of its files all beginnings are learnt from
together, and folds keep the pieces of a file together. `?every=2` asks about every second step of the rest; by default
it is every fourth, or fewer steps apart where an anomaly is shorter than that. VUS-PR counts its buffer, of at most 20,
in steps asked, where the tables of TSB-AD take a period of the series: compare scores within a study, not with those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.data.annotated import WithAnomaly, read_tsb_ad, read_ucr_anomaly
from tsprobe.data.anomalies import inject
from tsprobe.data.panel import Panel
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks import options
from tsprobe.tasks.base import Task
from tsprobe.tasks.dense import EVERY, ask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

_LONGEST, _SHORTEST = 500, 64  # steps of a piece
_PIECES = 16  # of a file, at most; in a folder of many files fewer
_COPIES = 8  # of each piece, each with an anomaly of its own


@dataclass(frozen=True)
class _Settings:
    every: int = 0  # 0: what fits the shortest anomaly


def load_ucr_anomaly(path: str) -> Task:
    """Raises `DataError` for files that are not as the archive has them, `SpecError` for a wrong setting."""
    return _load("ucr-anomaly", "UCR Anomaly Archive", path, "*_UCR_Anomaly_*.txt", read_ucr_anomaly)


def load_tsb_ad(path: str) -> Task:
    """Raises `DataError` for files that are not as the archive has them, `SpecError` for a wrong setting."""
    return _load("tsb-ad", "TSB-AD", path, "*_tr_*_1st_*.csv", read_tsb_ad)


def _load(source: str, archive: str, given: str, pattern: str, read: Callable[[Path], WithAnomaly]) -> Task:
    base, _, query = given.partition("?")
    name = f"{source}/{given}"
    settings = options.read_settings(name, query, _Settings())
    path = Path(base).expanduser()
    files = sorted(path.glob(pattern)) if path.is_dir() else [path]
    if not files:
        raise DataError(f"task {name!r}: no file {pattern} in {path}")
    series = [read(file) for file in files]
    unlike = next((s for s in series if len(s.values) != len(series[0].values)), None)
    if unlike is not None:
        raise DataError(
            f"task {name!r}: {unlike.name} has {len(unlike.values)} channels, {series[0].name} has "
            f"{len(series[0].values)}; files of one folder need the same"
        )
    return injected(name, series, every=settings.every, source=archive)


def injected(
    name: str,
    series: Sequence[WithAnomaly],
    *,
    piece: int | None = None,
    every: int = 0,
    source: str,
    licence: str = "not declared",
) -> Task:
    """A task that learns from pieces of the training steps with anomalies put in, and scores all steps after these.

    A piece has as many steps as one in eight of the training steps, between 64 and 500. Raises `SpecError` for an
    `every` that might step over an anomaly, `DataError` where there are no two pieces, or there is no anomaly.
    """
    shortest = min(_shortest(name, s) for s in series)
    every = every or min(EVERY, shortest)
    if not 1 <= every <= shortest:
        raise SpecError(f"task {name!r}: every={every}; give 1 to {shortest}, the steps of the shortest anomaly")
    rng = np.random.default_rng(0)
    each = max(1, min(_PIECES, 4 * _PIECES // len(series)))
    train, labels, groups = [], [], []
    for i, s in enumerate(series):
        steps = piece or int(np.clip(s.border // 8, _SHORTEST, _LONGEST))
        starts = [a for a in range(0, s.border - steps + 1, steps) if _usable(s, slice(a, a + steps))]
        for k in np.unique(np.linspace(0, len(starts) - 1, min(each, len(starts))).round().astype(int)):
            for _ in range(_COPIES):
                x, where = _changed(rng, s.values[:, starts[k] : starts[k] + steps])
                train.append(x.astype(np.float32))
                labels.append(where[:, None].astype(np.float64))
                groups.append(i if len(series) > 1 else int(k))
    if len(set(groups)) < 2:
        raise DataError(
            f"task {name!r}: the training steps make no two pieces of {piece or _SHORTEST} steps that vary and have no "
            "anomaly, of which one could be learnt from and the other held out"
        )
    test = [s.values[:, s.border :].astype(np.float32) for s in series]
    truths = [np.where(np.arange(x.shape[1]) % every == every // 2, s.anomalous[s.border :], np.nan)[:, None]
              for s, x in zip(series, test, strict=True)]  # fmt: skip
    most = max(x.shape[1] for x in test)
    return ask(
        name, "multilabel", "vus_pr", [Panel(tuple(train)), Panel(tuple(test))], [labels, truths], ("anomaly",),
        steps=(max(len(y) for y in labels) // EVERY, most), groups=np.array(groups), ordered=len(series) == 1,
        source=source, licence=licence,
    )  # fmt: skip


def _shortest(name: str, s: WithAnomaly) -> int:
    """Steps of the shortest anomaly after the training steps."""
    edges = np.diff(np.pad(s.anomalous[s.border :].astype(int), 1))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if not len(begins):
        raise DataError(f"task {name!r}: {s.name} has no anomaly after its {s.border} training steps")
    return int((ends - begins).min())


def _usable(s: WithAnomaly, here: slice) -> bool:
    """Whether nothing in it is labelled and something varies."""
    return not s.anomalous[here].any() and bool((s.values[:, here].std(1) > 0).any())


def _changed(
    rng: np.random.Generator, x: Float64[np.ndarray, "C S"]
) -> tuple[Float64[np.ndarray, "C S"], Bool[np.ndarray, " S"]]:
    """A copy with an anomaly in one of the channels that vary, and its steps."""
    varies = np.flatnonzero(x.std(1) > 0)
    channel = int(varies[0] if len(varies) == 1 else rng.choice(varies))
    changed, where = x.copy(), np.zeros(x.shape[1], bool)
    changed[channel], steps = inject(rng, x[channel])
    where[steps] = True
    return changed, where
