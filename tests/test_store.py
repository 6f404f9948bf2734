"""Kept features: blocks as they come, damage, and a process that is killed on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planted import planted_encoder, planted_task
from toys import StepsEncoder

import tsprobe as tp
from tsprobe.capture import Block, Features, Reading, extract
from tsprobe.capture import store as room
from tsprobe.capture.store import DamagedError, FeatureStore, StoredArrays
from tsprobe.data.panel import Panel, as_panel
from tsprobe.errors import DamagedWarning, StorageError
from tsprobe.study import pair
from tsprobe.types import Inputs

READING = Reading(("mean", "std", "segments3"), rows=8)
N = 37


class Counting(StepsEncoder):
    """Counts the series that it is given, and does something before a pass."""

    def __init__(self, before: Callable[[int], object] = lambda n: None, **facts: object) -> None:
        super().__init__(**facts)
        self.series = 0
        self._before = before

    def run(self, inputs: Inputs) -> object:
        self._before(self.series)
        self.series += len(inputs.kwargs["patches"]) // inputs.rows
        return super().run(inputs)


def panel(n: int = N) -> Panel:
    """Ragged, so that series are not read in their order."""
    rng = np.random.default_rng(0)
    return as_panel([rng.standard_normal((1, int(s))).astype(np.float32) for s in rng.integers(8, 40, n)])


def small_chunks(monkeypatch: pytest.MonkeyPatch, rows: int = 10) -> None:
    monkeypatch.setattr(room, "CHUNK", rows * 4 * 5 * 6)  # P = 5 slots of D = 6 floats


def same(a: Features, b: Features) -> None:
    assert a.layers == b.layers
    assert a.poolings == b.poolings
    for layer in a.layers:
        np.testing.assert_array_equal(a.arrays[layer], b.arrays[layer])


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
@pytest.mark.parametrize("rows", [1, 10, N, 1000])
def test_kept_features_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, in_memory: int
) -> None:
    small_chunks(monkeypatch, rows)
    monkeypatch.setattr("tsprobe.capture.features.IN_MEMORY", in_memory)
    expected = extract(StepsEncoder(), panel(), READING)
    kept = extract(StepsEncoder(), panel(), READING, store=tmp_path / "deep" / "features.zarr")
    again = Features.load(tmp_path / "deep" / "features.zarr")
    assert isinstance(again.arrays, StoredArrays) is (in_memory == 0)
    assert again.notes["seconds"] > 0
    assert {k: v for k, v in again.notes.items() if "seconds" not in k} == {
        "series": N, "windows": N, "missing_values": 0, "missing_handling": "none"
    }  # fmt: skip
    for features in (kept, again):
        same(features, expected)
        for pooling in READING.poolings:
            ((layers, stack),) = features.stacks(pooling)
            assert layers == expected.layers
            np.testing.assert_array_equal(stack, expected.stacks(pooling)[0][1])
            np.testing.assert_array_equal(stack[1], expected.matrix("block.1", pooling))


def test_layers_of_unlike_width_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK", 200)
    monkeypatch.setattr("tsprobe.capture.features.IN_MEMORY", 0)
    rng = np.random.default_rng(0)
    widths = {"a": 4, "b": 7, "c": 4, "d": 1}
    features = Features({k: rng.standard_normal((11, 1, w)).astype("f") for k, w in widths.items()}, ("max",), {})
    with FeatureStore(tmp_path / "f.zarr", 11, tuple(widths), ("max",)) as other:  # not finished, with other values
        other.add(Block(np.arange(3), {k: np.ones((3, 1, w), np.float32) for k, w in widths.items()}))
    features.save(tmp_path / "f.zarr")
    again = Features.load(tmp_path / "f.zarr")
    same(again, features)
    assert [layers for layers, _ in again.stacks("max")] == [("a", "c"), ("b",), ("d",)]
    for (_, x), (_, y) in zip(again.stacks("max"), features.stacks("max"), strict=True):
        np.testing.assert_array_equal(x, y)


def test_stacks_hold_one_layer_beside_the_pooling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsprobe.capture.features.IN_MEMORY", 0)
    features = extract(StepsEncoder(), panel(), READING, store=tmp_path / "f.zarr")
    asked = []
    part = StoredArrays.part
    monkeypatch.setattr(
        StoredArrays,
        "part",
        lambda self, layer, slots=slice(None): asked.append((layer, slots)) or part(self, layer, slots),
    )
    features.stacks("std")
    assert asked == [(layer, slice(1, 2)) for layer in features.layers]


def test_small_panels_take_few_files(tmp_path: Path) -> None:
    extract(StepsEncoder(), panel(), READING, store=tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "series/c/0", "series/zarr.json", "width6/c/0/0/0/0", "width6/zarr.json", "zarr.json"
    ]  # fmt: skip


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_store as t
from pathlib import Path
t.room.FLUSH, t.room.SHARE = {flush}, 0
t.room.CHUNK = {chunk}
die = lambda n: n >= 20 and os.kill(os.getpid(), signal.SIGKILL)
t.extract(t.Counting(die), t.panel(), t.READING, store=Path({path!r}))
"""


@pytest.mark.parametrize(("flush", "chunk", "left"), [(0, 1 << 20, N - 24), (1000, 1200, N - 20)])
def test_a_killed_run_goes_on_at_the_series_that_are_missing(tmp_path: Path, flush: int, chunk: int, left: int) -> None:
    """Killed in the pass that begins with 24 series read: all of them are kept if each block is flushed, 20 where
    only whole chunks of ten rows are."""
    path = tmp_path / "f.zarr"
    script = KILLED.format(tests=str(Path(__file__).parent), flush=flush, chunk=chunk, path=str(path))
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=200)
    assert process.returncode == -signal.SIGKILL, process.stderr
    with pytest.raises(DamagedError, match="not finished"):
        Features.load(path)
    rest = path / "series" / "c" / "0.abc.partial"  # as Zarr leaves it in a process that is killed while it writes
    rest.write_bytes(b"half")
    encoder, seen = Counting(), []
    features = extract(encoder, panel(), READING, store=path, progress=seen.append)
    assert not rest.exists()
    assert encoder.series == left
    assert sum(seen) == N
    expected = extract(StepsEncoder(), panel(), READING)
    for layer in expected.layers:  # other company in a batch: the last bits of a matrix product
        np.testing.assert_allclose(features.arrays[layer], expected.arrays[layer], atol=1e-6)
    if left % READING.rows == N % READING.rows:
        same(features, expected)


def interrupt_at(count: int) -> Callable[[int], None]:
    def before(n: int) -> None:
        if n >= count:
            raise KeyboardInterrupt

    return before


def test_an_interrupted_run_keeps_every_block(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(Counting(interrupt_at(16)), panel(), READING, store=tmp_path / "f.zarr")
    with FeatureStore(tmp_path / "f.zarr", N, StepsEncoder().taps, READING.poolings) as store:
        assert store.done.sum() == 16
    attributes = tmp_path / "f.zarr" / "zarr.json"
    content = json.loads(attributes.read_text())
    assert 0 < content["attributes"]["seconds"] < 1000
    content["attributes"]["seconds"] = 1000.0
    attributes.write_text(json.dumps(content))
    encoder = Counting()
    features = extract(encoder, panel(), READING, store=tmp_path / "f.zarr")
    assert encoder.series == N - 16
    assert features.notes["seconds"] >= 1000  # of both runs
    same(features, extract(StepsEncoder(), panel(), READING))


@pytest.mark.parametrize("writes", range(0, 14))
def test_a_full_disk_is_one_line_and_the_store_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Full after any number of files, so that it happens at the folder, at rows, at the index and at the notes."""
    from zarr.storage import _local

    small_chunks(monkeypatch)
    monkeypatch.setattr(room, "FLUSH", 0)
    put, count = _local._put, 0

    def full(*arguments: object, **more: object) -> object:
        nonlocal count
        count += 1
        if count > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(_local, "_put", full)
        with pytest.raises(StorageError, match=r"cannot write .*f.zarr: No space left on device$") as caught:
            extract(StepsEncoder(), panel(), READING, store=tmp_path / "f.zarr")
    assert "\n" not in str(caught.value)
    with pytest.raises(DamagedError):
        Features.load(tmp_path / "f.zarr")
    with FeatureStore(tmp_path / "f.zarr", N, StepsEncoder().taps, READING.poolings) as store:
        done = store.done
    encoder = Counting()
    features = extract(encoder, panel(), READING, store=tmp_path / "f.zarr")
    assert encoder.series == N - done.sum()
    assert (writes < 10) or done.any()
    same(features, extract(StepsEncoder(), panel(), READING))


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        middle = len(data) // 2
        path.write_bytes(
            data[:middle] if how == "cut" else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Features]:
    """A store of several chunks with its features, and beside it one that was interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        features = extract(StepsEncoder(), panel(), READING, store=folder / "finished")
        with pytest.raises(KeyboardInterrupt):
            extract(Counting(interrupt_at(24)), panel(), READING, store=folder / "interrupted")
    return folder, features


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
@pytest.mark.parametrize("how", ["removed", "cut", "changed"])
def test_a_damaged_store_is_named_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, Features], how: str, in_memory: int
) -> None:
    monkeypatch.setattr("tsprobe.capture.features.IN_MEMORY", in_memory)
    folder, features = whole
    files = [p.relative_to(folder) for p in (folder / "finished").rglob("*") if p.is_file()]
    assert len(files) == 4 * 3 + 4  # chunks of rows and layers, the index, three descriptions
    for i, file in enumerate(files):
        if how == "changed" and file.name == "zarr.json":
            continue  # text without a checksum
        shutil.copytree(folder / "finished", tmp_path / str(i) / "finished")
        damage(tmp_path / str(i) / file, how)
        with pytest.raises(DamagedError, match="finished is damaged"):
            Features.load(tmp_path / str(i) / "finished")
    encoder = Counting()
    same(extract(encoder, panel(), READING, store=tmp_path / "0" / "finished"), features)
    assert encoder.series == N


@pytest.mark.parametrize("how", ["removed", "cut", "changed"])
def test_a_torn_chunk_of_an_interrupted_run_never_counts(
    tmp_path: Path, whole: tuple[Path, Features], how: str
) -> None:
    folder, features = whole
    files = [p.relative_to(folder) for p in (folder / "interrupted").rglob("c/**/*") if p.is_file()]
    assert len(files) == 3 * 3 + 1
    for i, file in enumerate(files):
        shutil.copytree(folder / "interrupted", tmp_path / str(i) / "interrupted")
        damage(tmp_path / str(i) / file, how)
        with FeatureStore(tmp_path / str(i) / "interrupted", N, features.layers, READING.poolings) as store:
            assert not store.done.any()
    with FeatureStore(folder / "interrupted", N, features.layers, READING.poolings) as store:
        assert store.done.sum() == 24  # and it does, where nothing is damaged


def test_rows_that_a_failing_machine_lost_never_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is on the disk, but of the chunk only what was there before: as if the last write was lost."""
    monkeypatch.setattr(room, "CHUNK", 4 * 10)
    rows = np.arange(20, dtype=np.float32).reshape(20, 1, 1)
    chunk = tmp_path / "f.zarr" / "width1" / "c" / "0" / "1" / "0" / "0"
    with FeatureStore(tmp_path / "f.zarr", 20, ["a"], ("mean",)) as store:
        store.add(Block(np.arange(12), {"a": rows[:12]}))
        store.flush()
        before = chunk.read_bytes()
        store.add(Block(np.arange(12, 15), {"a": rows[12:15]}))
    after = chunk.read_bytes()
    chunk.write_bytes(before)
    shutil.copytree(tmp_path / "f.zarr", tmp_path / "lost")
    chunk.write_bytes(after)
    with FeatureStore(tmp_path / "f.zarr", 20, ["a"], ("mean",)) as store:
        assert store.done.sum() == 15
    with FeatureStore(tmp_path / "lost", 20, ["a"], ("mean",)) as store:
        assert not store.done.any()


@pytest.mark.integration
def test_a_study_makes_damaged_features_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsprobe.capture.features.IN_MEMORY", 0)
    settings = {"out": tmp_path / "study", "poolings": ("mean", "std"), "controls": (), "resamples": 100}
    tp.probe(planted_encoder(2), planted_task(), **settings)
    before = (tmp_path / "study" / "scores.csv").read_bytes()
    shutil.rmtree(tmp_path / "study" / "cells")
    read = []
    original = pair.extract
    monkeypatch.setattr(pair, "extract", lambda *a, **k: read.append(k["store"]) or original(*a, **k))
    victim = sorted((tmp_path / "study" / "features").rglob("width*/c/0/0/0/0"))[0]
    damage(victim, "changed")
    with pytest.warns(DamagedWarning, match=r"\.zarr is damaged"):
        tp.probe(planted_encoder(2), planted_task(), **settings)
    assert (tmp_path / "study" / "scores.csv").read_bytes() == before
    assert [path in victim.parents for path in read] == [True]  # and the other store serves


def test_a_store_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    extract(StepsEncoder(), panel(), READING, store=tmp_path / "f.zarr")
    for n, layers, poolings in ((N, ["block.0"], ("mean",)), (N, ["block.0"], ("max",)), (3, ["block.0"], ("max",))):
        with FeatureStore(tmp_path / "f.zarr", n, layers, poolings) as store:
            assert not store.done.any()
            store.add(Block(np.arange(2), {"block.0": np.ones((2, 1, 6), np.float32)}))
    with FeatureStore(tmp_path / "f.zarr", 3, ["block.0"], ("max",)) as store:
        assert store.done.tolist() == [True, True, False]
        with pytest.raises(StorageError, match="holds 2 of 3 series"):
            store.finish({})


def test_nothing_but_kept_features_is_ever_removed(tmp_path: Path) -> None:
    features = extract(StepsEncoder(), panel(), READING)
    features.save(tmp_path / "f.zarr")
    features.save(tmp_path / "f.zarr")  # in place of the other
    rest = tmp_path / "f.zarr" / "width6" / "c" / "0.abc.partial"  # as Zarr leaves it in a process that is killed
    rest.write_bytes(b"half")
    same(Features.load(tmp_path / "f.zarr"), features)
    (tmp_path / "mine.txt").write_text("mine")
    for write in (features.save, lambda path: extract(StepsEncoder(), panel(), READING, store=path)):
        with pytest.raises(StorageError, match="which is no part of kept features: give them a folder of their own"):
            write(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    same(Features.load(tmp_path / "f.zarr"), features)
    features.save(tmp_path / "f.zarr")
    assert not rest.exists()


def test_two_writers_of_one_store_are_refused(tmp_path: Path) -> None:
    with (
        FeatureStore(tmp_path / "f.zarr", N, ["a"], ("mean",)),
        pytest.raises(StorageError, match="being written by another process"),
    ):
        FeatureStore(tmp_path / "f.zarr", N, ["a"], ("mean",))
    FeatureStore(tmp_path / "f.zarr", N, ["a"], ("mean",)).close()  # free again


def test_a_disk_that_cannot_be_read_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else too many open files would throw away what took hours."""
    extract(StepsEncoder(), panel(), READING, store=tmp_path / "f.zarr")

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(room, "_open", refuse)
        with pytest.raises(StorageError, match=r"cannot read .*: Too many open files$") as caught:
            Features.load(tmp_path / "f.zarr")
        assert not isinstance(caught.value, DamagedError)
        with pytest.raises(StorageError, match="cannot read"):
            FeatureStore(tmp_path / "f.zarr", N, StepsEncoder().taps, READING.poolings)
    Features.load(tmp_path / "f.zarr")
