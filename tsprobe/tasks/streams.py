"""Dense tasks on real data: streams that change their state, and streams with an anomaly.

What is known of a stream's steps is often one border or one anomaly, late in it, and nothing to learn from. So what is
learnt from is made of the rest of the data, and what is scored is as it was published:

| task | learnt from | scored on |
|---|---|---|
| spliced/NAME | series of the training set of a UCR or UEA classification, joined in random order; a state is a class | the same, of its test set |
| dense/gunpoint-stream | every fourth step of the UCR test series, joined: some of one class, then some of the other | the stream of the UCR training series that sktime ships, with its change point |
| dense/electric-stream | the middle of each of the five segments of the stream of electric devices that sktime ships (`tsprobe.tasks.segmented`) | the rest of it, with its change points |
| dense/mitdb | pieces of the first 4,000 of 7,500 steps of the ECG that sktime ships, with anomalies put in (`tsprobe.data.anomalies`) | the rest, with the arrhythmia that it holds |
| dense/kdd-tsad | likewise, of the first 1,200 of 7,501 steps of UCR anomaly series 135, which aeon ships | the rest |

No state of a stream comes back after a change that is annotated, so that no label can be carried forward in time, as
those of the first frames of a film are. For a stream of your own whose states do come back, give `Dense` windows of the
beginning as training series and those that follow as test series, with `ordered=True`, and take the probe
`correspondence`.

A single stream is one sample, so that its scores have no interval, and its verdict is "undecided".
"""  # noqa: E501

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.data.annotated import Segmented, WithAnomaly
from tsprobe.data.panel import Panel
from tsprobe.errors import DataError, MissingPackageError, UnknownNameError
from tsprobe.files import package_folder
from tsprobe.tasks import archive
from tsprobe.tasks.anomalous import injected
from tsprobe.tasks.base import Kind, Task, TaskInfo
from tsprobe.tasks.dense import EVERY, STEPS, ask
from tsprobe.tasks.segmented import from_middles

if TYPE_CHECKING:
    from jaxtyping import Float64

Known = list[tuple[np.ndarray, np.ndarray]]  # series [C, S], and the truth of their steps

LICENCE = "not declared (package: BSD-3-Clause)"
PIECES = 4  # series joined to one stream
_PIECE = 500  # steps of the pieces of an ECG


@dataclass(frozen=True)
class _Stream:
    load: Callable[[], Task]
    info: TaskInfo


def list_tasks() -> list[TaskInfo]:
    """The streams, and two of the sets that can be spliced; any other classification can be."""
    names = ("BasicMotions", (10, 10, 6, 400, 4)), ("GunPoint", (12, 37, 1, 600, 2))
    spliced = [
        TaskInfo(
            name=f"spliced/{name}", kind="classification", metric="macro_f1", n_train=sizes[0], n_test=sizes[1],
            channels=sizes[2], length=(sizes[3], sizes[3]), n_classes=sizes[4],
            source="UCR archive, shipped in sktime, joined", licence=archive.LICENCE,
            here=importlib.util.find_spec("sktime") is not None, family="dense",
        )
        for name, sizes in names
    ]  # fmt: skip
    return [*spliced, *streams()]


def streams() -> list[TaskInfo]:
    """Those that are named `dense/NAME`."""
    return [stream.info for stream in STREAMS.values()]


def load_stream(name: str) -> Task:
    """Raises `UnknownNameError`, `MissingPackageError` where the package that ships the data is missing."""
    if name not in STREAMS:
        raise UnknownNameError("task", f"dense/{name}", [f"dense/{n}" for n in STREAMS])
    return STREAMS[name].load()


def load_spliced(name: str) -> Task:
    """Series of a UCR or UEA classification joined to streams; see there for what is raised.

    `DataError` where there are fewer than two streams to learn from.
    """
    task = archive.load_ucr(name)
    parts = [
        _spliced(panel, y, i) for i, (panel, y) in enumerate([(task.train, task.y_train), (task.test, task.y_test)])
    ]
    if min(map(len, parts)) < 2:
        raise DataError(f"spliced/{name}: {task.train.n} training series make fewer than 2 streams of {PIECES}")
    return _ask(
        f"spliced/{name}",
        "classification",
        "macro_f1",
        parts,
        task.labels,
        (STEPS, STEPS),
        source=f"{task.source}, joined",
        licence=task.licence,
    )


def _spliced(panel: Panel, y: np.ndarray, seed: int) -> Known:
    """Each series in one stream; the last, too few for a stream, are left out."""
    order = np.random.default_rng(seed).permutation(panel.n)
    order = order[: panel.n // PIECES * PIECES].reshape(-1, PIECES)
    return [
        (
            np.concatenate([panel[i] for i in stream], axis=1),
            np.concatenate([np.full(panel.lengths[i], y[i]) for i in stream]),
        )
        for stream in order
    ]


def _gunpoint() -> Task:
    task = archive.load_ucr("GunPoint")
    values = _table("sktime", "segmentation/GunPoint.csv", header=0)[:, 1].astype(np.float32)
    truth = (np.arange(len(values)) >= 900).astype(np.int64)
    rng = np.random.default_rng(0)
    train: Known = []
    left = [rng.permutation(np.flatnonzero(task.y_test == c)).tolist() for c in (0, 1)]
    while min(map(len, left)) >= 9:
        first, second = rng.permutation(2).tolist()
        taken = [left[first].pop() for _ in range(rng.integers(3, 10))]
        taken += [left[second].pop() for _ in range(rng.integers(3, 10))]
        x = np.concatenate([task.test[i] for i in taken], axis=1)[:, ::4]
        labels = np.concatenate([np.full(task.test.lengths[i], task.y_test[i]) for i in taken])[::4]
        train.append((x, labels))
    parts = [train, [(values[None], truth)]]
    return _ask(
        "dense/gunpoint-stream",
        "classification",
        "covering",
        parts,
        task.labels,
        (96, len(values) // EVERY),
        source="shipped in sktime",
        licence=LICENCE,
    )


def _electric() -> Task:
    values = _table("sktime", "segmentation/ElectricDevices.csv", header=0)[:, 1]
    stream = Segmented(values, (1090, 4436, 5712, 7923), window=10)  # as sktime's loader has them
    return from_middles("dense/electric-stream", stream, source="shipped in sktime", licence=LICENCE)


def _mitdb() -> Task:
    values, label = _table("sktime", "mitdb/mitdb.csv").T
    stream = WithAnomaly("mitdb", values[None], label == 1, 4000)
    return injected("dense/mitdb", [stream], piece=_PIECE, source="shipped in sktime", licence=LICENCE)


def _kdd_tsad() -> Task:
    _, values, label = _table("aeon", "KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TEST.csv").T
    stream = WithAnomaly("kdd-tsad", values[None], label == 1, 1200)
    return injected("dense/kdd-tsad", [stream], piece=240, source="shipped in aeon", licence=LICENCE)


def _table(package: str, path: str, header: int = 1) -> Float64[np.ndarray, "rows columns"]:
    """A CSV file of numbers among the data of a package, which is found without being imported."""
    folder = package_folder(package)
    if folder is None:
        raise MissingPackageError(package, f"the data of {path}")
    file = folder / "datasets" / "data" / path
    try:
        return np.genfromtxt(file, delimiter=",", skip_header=header)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}); the package has moved its data") from error


def _ask(
    name: str,
    kind: Kind,
    metric: str,
    parts: Sequence[Known],
    labels: Sequence[str],
    steps: tuple[int, int],
    **rest: Any,
) -> Task:
    panels = [Panel(tuple(np.ascontiguousarray(x, np.float32) for x, _ in part)) for part in parts]
    return ask(name, kind, metric, panels, [[y for _, y in part] for part in parts], labels, steps=steps, **rest)


def _stream(
    name: str, load: Callable[[], Task], package: str, kind: Kind, metric: str, sizes: tuple[int, tuple[int, int], int]
) -> tuple[str, _Stream]:
    n_train, length, classes = sizes
    info = TaskInfo(
        name=f"dense/{name}", kind=kind, metric=metric, n_train=n_train, n_test=1, channels=1, length=length,
        n_classes=classes, source=f"shipped in {package}", licence=LICENCE,
        here=importlib.util.find_spec(package) is not None, family="dense",
    )  # fmt: skip
    return name, _Stream(load, info)


STREAMS = dict(
    (
        _stream("gunpoint-stream", _gunpoint, "sktime", "classification", "covering", (11, (263, 1875), 2)),
        _stream("electric-stream", _electric, "sktime", "classification", "covering", (4, (1440, 11532), 5)),
        _stream("mitdb", _mitdb, "sktime", "multilabel", "vus_pr", (64, (500, 3500), 1)),
        _stream("kdd-tsad", _kdd_tsad, "aeon", "multilabel", "vus_pr", (40, (240, 6301), 1)),
    )
)
