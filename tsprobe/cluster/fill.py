"""The process that started a study on a cluster: what is missing goes out as work, what comes back into the folder.

Small tasks go out whole: a worker reads the series, fits the probes and gives back the files of the cells. Larger
panels are cut into shards. Without kept features, each shard gives its sums, which are merged here in the order of the
shards whatever the order of arrival; then the solutions go out with the shards of the test series. With kept features,
each shard gives its rows, which are written by region into the study's own store, and the probes are fitted from that.

No shared file system is needed. What has come back is on disk at once: whoever is stopped goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tsprobe import errors
from tsprobe.capture.extract import describe
from tsprobe.capture.features import Features
from tsprobe.capture.store import DamagedError, FeatureStore
from tsprobe.cluster import work as on_worker
from tsprobe.cluster.options import Cluster
from tsprobe.cluster.session import Call, Lost, Session, session
from tsprobe.cluster.shards import shards
from tsprobe.cluster.work import Answer, Asked, Result, Work
from tsprobe.encoders.base import Encoder
from tsprobe.encoders.baselines import Baseline
from tsprobe.errors import DAMAGE, ClusterError, DataError, EncoderError, StorageError
from tsprobe.files import read_arrays, replace_file
from tsprobe.study import streamed
from tsprobe.study.entries import Entry
from tsprobe.study.filled import Fill, Filled
from tsprobe.study.pair import Pair
from tsprobe.study.progress import Stage, silent
from tsprobe.study.spec import StudySpec
from tsprobe.tasks.base import Task

SHIPPED = 2**29  # bytes of kept features that are sent to workers for probing; larger ones are probed where they lie
KEEP_EVERY, SHARE = 30.0, 20  # seconds after which merged sums are kept, and so many times what that took, at least


def on_cluster(options: Cluster) -> Fill:
    """For `run_study(..., fill=on_cluster(Cluster(address="local")))`.

    Raises ClusterError where the cluster cannot be used, or lost work more often than it is tried again; all other
    work has been done by then.
    """

    def fill(
        spec: StudySpec, folder: Path, entries: Sequence[Entry], tasks: Mapping[str, Task], stage: Stage
    ) -> Filled:
        with session(options) as cluster:
            return _Filling(cluster, spec, folder, entries, tasks, stage).run()

    return fill


class _Refused(Exception):
    """An encoder that cannot read a task, and why."""


class _Lost(Exception):
    """Work that was tried too often, and why."""


class _Filling:
    """One study on one cluster."""

    def __init__(
        self,
        cluster: Session,
        spec: StudySpec,
        folder: Path,
        entries: Sequence[Entry],
        tasks: Mapping[str, Task],
        stage: Stage,
    ) -> None:
        self._cluster, self._spec, self._folder, self._stage = cluster, spec, folder, stage
        self._entries, self._tasks = entries, tasks
        self._study = hashlib.sha256(json.dumps(spec.dump()).encode()).hexdigest()
        self._gpus = cluster.gpus_for(spec.device)
        self._large: list[tuple[Entry, str]] = []
        self._refused: dict[tuple[str, str], str] = {}
        self._failed: list[str] = []
        self._ran_on: dict[str, str] = {}

    def run(self) -> Filled:
        self._cluster.check(self._gpus)
        begin, nodes = time.perf_counter(), self._cluster.nodes
        text = f"{self._spec.name} on {self._cluster.options.address}"
        with self._stage(text, len(self._entries) * len(self._tasks)) as advance:
            for call, result in self._cluster.each(self._small(advance)):
                self._take(call, result)
                advance(len(call.about))
            for entry, name in self._large:
                self._shard(entry, name)
                advance(1)
        if self._failed:
            raise ClusterError(
                f"{len(self._failed)} of the study's parts were lost, the first is {self._failed[0]}; what is finished "
                "is kept, the same command goes on from there"
            )
        asked = self._cluster.options
        facts = {
            "address": asked.address, "nodes": nodes, "shard": asked.shard, "cpus": asked.cpus, "gpus": self._gpus,
            "ran_on": self._ran_on, "seconds": round(time.perf_counter() - begin, 2),
        }  # fmt: skip
        return Filled(self._refused, {"cluster": facts})

    def _small(self, advance: Callable[[int], None]) -> Iterator[Call]:
        """Work that goes out whole; what is too large for that is put aside."""
        for entry in self._entries:
            work, pairs = self._load(entry)
            together: dict[tuple[str, str], list[Asked]] = {}  # tasks with the same series share the reading
            for name, pair in pairs.items():
                asked = _asked(name, pair)
                if asked is None:
                    advance(1)
                elif not isinstance(pair.encoder, Baseline) and self._is_large(pair.task):
                    self._large.append((entry, name))
                else:
                    series = pair.task.train.fingerprint(), pair.task.test.fingerprint()
                    together.setdefault(series, []).append(asked)
            gpus = self._gpus if work.device == "cuda" else 0.0
            del pairs
            for group in together.values():
                yield Call(work, on_worker.fill_pairs, (tuple(group), {}), gpus, tuple(group))

    def _load(self, entry: Entry) -> tuple[Work, dict[str, Pair]]:
        """Here encoders only say what they are, and what is missing of them."""
        encoder = entry.load("cpu")
        fingerprint = encoder.fingerprint()
        device = "cuda" if self._gpus and not isinstance(encoder, Baseline) else "cpu"
        work = Work(self._study, self._spec, entry, fingerprint, device, self._cluster.options.threads)
        return work, {
            name: Pair(encoder, fingerprint, task, self._spec, self._folder, silent)
            for name, task in self._tasks.items()
        }

    def _is_large(self, task: Task) -> bool:
        return max(len(task.train), len(task.test)) > self._cluster.options.shard

    def _take(self, call: Call, result: Result | Lost) -> None:
        """Write what has come back."""
        encoder, tasks = call.work.entry.name, [one.task for one in call.about]
        try:
            answer: Answer = _value(result)
        except _Lost as error:
            self._failed.append(f"{encoder} on {', '.join(tasks)}: {error}")
            return
        for name, content in answer.files.items():
            on_worker.write(self._folder / name, content)
        for task, reason in answer.refused.items():
            self._refused[encoder, self._tasks[task].name] = reason
        assert isinstance(result, Result)
        self._ran_on |= {f"{encoder} on {self._tasks[task].name}": result.host for task in tasks}

    def _shard(self, entry: Entry, name: str) -> None:
        """A pair by shards of its series."""
        work, pairs = self._load(entry)
        pair = pairs[name]
        asked = _asked(name, pair)
        assert asked is not None
        large = _Large(self._cluster, work, pair, asked, self._gpus, self._stage)
        try:
            for call, result in large.by_sums() if pair.passes is not None else large.by_rows():
                self._take(call, result)
        except (_Refused, DataError, EncoderError) as error:  # by a worker, or by the encoder that is here
            self._refused[entry.name, pair.task.name] = str(error)
        except _Lost as error:
            self._failed.append(f"{entry.name} on {name}: {error}")


class _Large:
    """An encoder and a task with more series than one worker is given."""

    def __init__(self, cluster: Session, work: Work, pair: Pair, asked: Asked, gpus: float, stage: Stage) -> None:
        assert isinstance(pair.encoder, Encoder)
        self._cluster, self._work, self._pair, self._asked, self._gpus = cluster, work, pair, asked, gpus
        self._encoder, self._stage = pair.encoder, stage

    def by_sums(self) -> Iterator[tuple[Call, Result | Lost]]:
        """Without kept features: sums, solutions, predictions, cells."""
        gathered = self._gather()
        solutions, seconds = _value(self._one(on_worker.solve, gathered.arrays())[1])
        sent = self._cluster.put(solutions)
        calls = [self._call(on_worker.predict, sent, part) for part in self._shards("test")]
        predicted = []
        with self._stage(f"{self._encoder.name} reads {self._pair.task.name} (test)", len(calls)) as advance:
            for _, result in self._cluster.each(calls, ordered=True):
                predicted.append(_value(result))
                advance(1)
        rest = replace(gathered, statistics={}, seconds=gathered.seconds + seconds)
        yield self._one(on_worker.conclude, rest, sent, self._cluster.put(predicted))
        self._sums.unlink(missing_ok=True)

    def by_rows(self) -> Iterator[tuple[Call, Result | Lost]]:
        """With kept features: the stores, and the cells from them, unless these are large."""
        paths = [self._keep(split) for split in ("train", "test")]
        files = [file for path in paths for file in path.rglob("*") if file.is_file()]
        if sum(file.stat().st_size for file in files) > SHIPPED:
            return
        root = self._pair.folder
        sent = self._cluster.put({file.relative_to(root).as_posix(): file.read_bytes() for file in files})
        places = self._asked.places
        parts = [places[i :: self._cluster.slots] for i in range(min(len(places), self._cluster.slots))] or [()]
        asked = [replace(self._asked, places=part, details=False) for part in parts]
        asked[0] = replace(asked[0], details=self._asked.details)
        calls = [replace(self._call(on_worker.fill_pairs), given=((one,), sent), about=(one,)) for one in asked]
        with self._stage(f"{self._encoder.name} on {self._pair.task.name}", len(calls)) as advance:
            for found in self._cluster.each(calls):
                yield found
                advance(1)

    def _keep(self, split: str) -> Path:
        """The store of a split, which goes on where an earlier process left it."""
        pair, panel, reading = self._pair, getattr(self._pair.task, split), self._pair.reading(split)
        path = pair.feature_path(panel.fingerprint(), reading)
        try:
            Features.load(path)
            return path
        except DamagedError:
            pass
        notes = describe(self._encoder, panel)
        layers = pair.layers if pair.layers is not None else tuple(self._encoder.taps)
        with FeatureStore(path, len(panel), layers, reading.poolings) as store:
            done = store.done
            left = [rest for part in self._shards(split) if len(rest := part[~done[part]])]
            calls = [self._call(on_worker.read_rows, split, part) for part in left]
            with self._stage(f"{self._encoder.name} reads {pair.task.name} ({split})", len(calls)) as advance:
                for _, result in self._cluster.each(calls):
                    store.add(_value(result))
                    advance(1)
            seconds = max(store.seconds, store.forward)  # forward passes of several workers may add up to more
            store.finish(notes | {"seconds": round(seconds, 3), "forward_seconds": round(store.forward, 3)})
        return path

    def _gather(self) -> streamed.Gathered:
        """The sums of all shards, from those that an earlier process has merged."""
        parts = self._shards("train")
        first, merged = self._kept_sums(len(parts))
        calls = [self._call(on_worker.gather, part) for part in parts[first:]]
        kept, cost = time.monotonic(), 0.0
        with self._stage(f"{self._encoder.name} reads {self._pair.task.name} (train)", len(parts)) as advance:
            advance(first)
            for number, (_, result) in enumerate(self._cluster.each(calls, ordered=True), first + 1):
                arrived = streamed.Gathered.from_arrays(self._passes, _value(result))
                if merged is None:
                    merged = arrived
                else:
                    merged.merge(arrived)
                advance(1)
                if time.monotonic() - kept > max(KEEP_EVERY, SHARE * cost):
                    begin = time.monotonic()
                    self._keep_sums(merged, number, len(parts))
                    kept, cost = time.monotonic(), time.monotonic() - begin
        assert merged is not None
        return merged

    @property
    def _passes(self) -> streamed.Passes:
        assert self._pair.passes is not None
        return self._pair.passes

    @property
    def _sums(self) -> Path:
        """Where merged sums are kept for another start; beside the features, which they stand for."""
        panel = self._pair.task.train
        path = self._pair.feature_path(panel.fingerprint(), self._pair.reading("train"))
        return path.with_suffix(f".{self._asked.fingerprint[:16]}.sums.npz")

    def _question(self, parts: int) -> str:
        spec, names = self._pair.spec.dump(), ("layers", "poolings", "channels", "rows", "seeds", "folds", "missing")
        asked = {name: spec[name] for name in names}
        return json.dumps([self._work.fingerprint, self._asked.fingerprint, asked, parts, self._cluster.options.shard])

    def _keep_sums(self, merged: streamed.Gathered, number: int, parts: int) -> None:
        about = {"question": np.array(self._question(parts)), "merged": np.array(number)}
        arrays: dict[str, Any] = merged.arrays() | about
        replace_file(self._sums, lambda handle: np.savez(handle, **arrays))

    def _kept_sums(self, parts: int) -> tuple[int, streamed.Gathered | None]:
        """How many shards are merged in what an earlier process kept, and that; (0, None) where it is of no use."""
        try:
            arrays = read_arrays(self._sums)
            if str(arrays.pop("question")) == self._question(parts):
                return int(arrays.pop("merged")), streamed.Gathered.from_arrays(self._passes, arrays)
        except (OSError, DataError, *DAMAGE):
            pass
        return 0, None

    def _shards(self, split: str) -> list[np.ndarray]:
        panel = getattr(self._pair.task, split)
        return shards(self._encoder, panel, self._pair.reading(split), self._cluster.options.shard)

    def _call(self, action: Callable[..., Any], *given: Any) -> Call:
        return Call(self._work, action, (self._asked, *given), self._gpus, (self._asked,))

    def _one(self, action: Callable[..., Any], *given: Any) -> tuple[Call, Result | Lost]:
        ((call, result),) = self._cluster.each([self._call(action, *given)])
        return call, result


def _asked(name: str, pair: Pair) -> Asked | None:
    """What is missing of a pair; None where nothing is, or where its encoder cannot be asked, which is said again when
    the study is read."""
    try:
        places = tuple(place for place in pair.places if pair.kept(place) is None)
        details = pair.kept_details() is None
    except (DataError, EncoderError):
        return None
    return Asked(name, pair.task.fingerprint(), places, details) if places or details else None


def _value(result: Result | Lost) -> Any:
    """What work gave. Raises _Refused and _Lost, and what stops a study, as in one process."""
    if isinstance(result, Lost):
        raise _Lost(result.reason)
    if result.error is None:
        return result.value
    kind, message = result.error
    if kind in ("DataError", "EncoderError"):
        raise _Refused(message)
    error = StorageError if issubclass(getattr(errors, kind, ClusterError), StorageError) else ClusterError
    raise error(f"on {result.host}: {message}")
