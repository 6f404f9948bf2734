"""What runs on a worker. Encoders and tasks are loaded there by name, and kept for the next piece of work.

Everything that comes back is small or bounded: files of cells, the sums of a shard, features of a shard.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsprobe.capture import Block, stream
from tsprobe.cluster.shards import all_but
from tsprobe.encoders.base import Encoder
from tsprobe.encoders.baselines import Baseline
from tsprobe.errors import ClusterError, DataError, EncoderError, TsprobeError
from tsprobe.files import replace_file
from tsprobe.study import streamed
from tsprobe.study.entries import Entry
from tsprobe.study.pair import CellPlace, Pair
from tsprobe.study.progress import silent
from tsprobe.study.spec import StudySpec
from tsprobe.tasks import load_task
from tsprobe.tasks.base import Task

Files = Mapping[str, bytes]  # by path within a study's folder


@dataclass(frozen=True)
class Work:
    """An encoder of a study, and what there is to run it with. `fingerprint` is what the driver's has."""

    study: str  # tells studies apart, on workers that serve several
    spec: StudySpec
    entry: Entry
    fingerprint: str
    device: str
    threads: int


@dataclass(frozen=True)
class Asked:
    """What is missing of a task, which is known by the name that the spec gives it: cells, and the details."""

    task: str
    fingerprint: str
    places: tuple[CellPlace, ...]
    details: bool


@dataclass(frozen=True)
class Answer:
    """Files for the study's folder, and by task why the encoder refused it."""

    files: Files
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a piece of work gave, or the kind and the message of the user's mistake that it met; and where."""

    value: Any
    error: tuple[str, str] | None
    host: str


def perform(work: Work, action: Callable[..., Any], *given: Any) -> Result:
    """Mistakes come back as values: not all exceptions survive the way, and none of them is worth another try."""
    torch.set_num_threads(work.threads)
    try:
        return Result(action(work, *given), None, platform.node())
    except TsprobeError as error:
        return Result(None, (type(error).__name__, str(error)), platform.node())


def fill_pairs(work: Work, asked: Sequence[Asked], files: Files) -> Answer:
    """Whole pairs, one after the other: tasks with the same series share the reading. `files` lie there before."""
    refused = {}
    with tempfile.TemporaryDirectory(prefix="tsprobe-work-") as made:
        folder = Path(made)
        for name, content in files.items():
            write(folder / name, content)
        for one in asked:
            pair = replace(_pair(work, one), folder=folder)
            try:
                _complete(pair, one)
            except (DataError, EncoderError) as error:
                refused[one.task] = str(error)
        return Answer(_cells_in(folder), refused)


def read_rows(work: Work, asked: Asked, split: str, series: np.ndarray) -> Block:
    """Pooled features of the series of a shard."""
    pair = _pair(work, asked)
    assert isinstance(pair.encoder, Encoder)
    panel = getattr(pair.task, split)
    blocks = stream(pair.encoder, panel, pair.reading(split), layers=pair.layers, done=all_but(series, panel))
    with closing(blocks):
        parts = list(blocks)
    arrays = {layer: np.concatenate([part.arrays[layer] for part in parts]) for layer in parts[0].arrays}
    return Block(np.concatenate([part.index for part in parts]), arrays, sum(part.forward for part in parts))


def gather(work: Work, asked: Asked, series: np.ndarray) -> dict[str, np.ndarray]:
    """`streamed.Gathered` of the training series of a shard, as arrays."""
    pair = _pair(work, asked)
    assert pair.passes is not None
    return streamed.gather(pair.passes, pair.diagnosed, done=all_but(series, pair.task.train)).arrays()


def solve(work: Work, asked: Asked, arrays: Mapping[str, np.ndarray]) -> tuple[streamed.Solutions, streamed.Seconds]:
    """What all shards together say."""
    passes, begin = _pair(work, asked).passes, time.perf_counter()
    assert passes is not None
    found = streamed.solve(passes, streamed.Gathered.from_arrays(passes, arrays))
    solutions = {key: solution.to("cpu") for key, solution in found.items()}
    return solutions, streamed.Seconds(probing=time.perf_counter() - begin)


def predict(work: Work, asked: Asked, solutions: streamed.Solutions, series: np.ndarray) -> streamed.Predicted:
    """Predictions for the test series of a shard."""
    pair = _pair(work, asked)
    assert pair.passes is not None
    moved = {key: solution.to(pair.passes.encoder.device) for key, solution in solutions.items()}
    return streamed.predict(pair.passes, moved, done=all_but(series, pair.task.test))


def conclude(
    work: Work,
    asked: Asked,
    gathered: streamed.Gathered,
    solutions: streamed.Solutions,
    predicted: Sequence[streamed.Predicted],
) -> Answer:
    """Cells and details of a pair whose shards have been read. What the token diagnostics watch is read here."""
    pair = _pair(work, asked)
    assert pair.passes is not None
    own = replace(gathered, sample={layer: np.array(x) for layer, x in gathered.sample.items()})
    found = streamed.conclude(pair.passes, own, solutions, predicted)
    with tempfile.TemporaryDirectory(prefix="tsprobe-work-") as made:
        _complete(replace(pair, folder=Path(made), read=found), asked)
        return Answer(_cells_in(Path(made)))


def write(path: Path, content: bytes) -> None:
    """Wholly or not at all. Raises `StorageError`."""
    replace_file(path, lambda handle: handle.write(content))


def _complete(pair: Pair, asked: Asked) -> None:
    deque(pair.cells(asked.places), maxlen=0)
    if asked.details:
        pair.details()


def _cells_in(folder: Path) -> Files:
    files = sorted(path for path in (folder / "cells").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


_held: dict[str, tuple[Any, Any]] = {}  # what this process has loaded last, by kind: what it is, and itself


def _once(kind: str, key: Any, load: Callable[[], Any]) -> Any:
    if kind not in _held or _held[kind][0] != key:
        _held.pop(kind, None)  # before the next is loaded: there need not be memory for two
        _held[kind] = key, load()
    return _held[kind][1]


def _pair(work: Work, asked: Asked) -> Pair:
    key = work.study, work.entry.name, work.device
    if _held.get("encoder", (key,))[0] != key:
        _held.pop("pair", None)  # which holds the encoder too
    encoder = _once("encoder", key, lambda: _load_encoder(work))
    task = _once("task", (asked.task, asked.fingerprint), lambda: _load_task(asked))
    return _once(
        "pair", (key, asked.task, asked.fingerprint),
        lambda: Pair(encoder, work.fingerprint, task, work.spec, Path(), silent),
    )  # fmt: skip


@contextmanager
def _as_of_the_cluster() -> Iterator[None]:
    """What was loaded where the study was started must load here too: it is not that the encoder refuses the task."""
    try:
        yield
    except (DataError, EncoderError) as error:
        raise ClusterError(str(error)) from error


def _load_encoder(work: Work) -> Encoder | Baseline:
    with _as_of_the_cluster():
        encoder = work.entry.load(work.device)
    if encoder.fingerprint() != work.fingerprint:
        raise ClusterError(f"{work.entry.name} has other weights here than where the study was started")
    return encoder


def _load_task(asked: Asked) -> Task:
    with _as_of_the_cluster():
        task = load_task(asked.task)
    if task.fingerprint() != asked.fingerprint:
        raise ClusterError(f"{asked.task} has other data here than where the study was started")
    return task
