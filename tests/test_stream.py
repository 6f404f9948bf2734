"""The stream of finished series: what is held, what is read, what happens in the other thread and on a device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import StepsEncoder

from tsprobe.capture import Block, Reading, arrivals, extract, reading, stream
from tsprobe.capture.ahead import THREAD, ahead
from tsprobe.capture.arrivals import Here, Underway
from tsprobe.capture.windows import batches, cut
from tsprobe.data.panel import Panel, as_panel
from tsprobe.encoders.base import Facts
from tsprobe.errors import DataError, EncoderError, UnknownNameError

ALL = ("mean", "max", "min", "std", "first", "last", "cls", "segments2")


def panel(n: int = 29, channels: int = 2, seed: int = 0) -> Panel:
    rng = np.random.default_rng(seed)
    return as_panel([rng.standard_normal((channels, int(s))).astype(np.float32) for s in rng.integers(8, 70, n)])


def joined(blocks: Iterator[Block], layer: str) -> np.ndarray:
    """`[N, P, D]` from blocks in any order."""
    found = {int(i): row for block in blocks for i, row in zip(block.index, block.arrays[layer], strict=True)}
    return np.stack([found[i] for i in range(len(found))])


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == THREAD]


@pytest.mark.parametrize("channels", ["concat", "mean"])
@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("context", [None, 16])
def test_blocks_are_whole_series_each_once(context: int | None, pads: bool, channels: str) -> None:
    data, how = panel(), Reading(ALL, channels=channels, rows=8)  # type: ignore[arg-type]
    encoder = StepsEncoder(context=context, pads=pads)
    seen: list[int] = []
    blocks = list(stream(encoder, data, how, progress=seen.append))
    assert sorted(i for block in blocks for i in block.index) == list(range(len(data)))
    assert len(blocks) > 3
    assert sum(seen) == len(cut(data, encoder.facts, "toy"))
    alone = StepsEncoder()
    for layer in encoder.taps:
        assert all(block.arrays[layer].dtype == np.float32 for block in blocks)
        got = joined(iter(blocks), layer)
        for i in (0, 7, 28):
            expected = extract(alone, data.take([i]), how).arrays[layer][0]
            np.testing.assert_allclose(got[i], expected, atol=2e-6)  # float32 sums of up to 18 tokens


@pytest.mark.parametrize("pads", [True, False])
def test_few_series_are_incomplete_at_a_time(pads: bool) -> None:
    """However many series there are, and though their windows have two hundred lengths."""
    rng = np.random.default_rng(0)
    most = {}
    for n in (200, 2000):
        data = as_panel([np.zeros((1, int(s)), np.float32) for s in rng.integers(300, 1500, n)])
        windows = cut(data, Facts(context=400), "toy")
        left = Counter(w.series for w in windows)
        incomplete: set[int] = set()
        most[n] = 0
        for batch in batches(windows, 8, pads):
            assert len(batch) <= 8
            for s in (windows[i].series for i in batch):
                left[s] -= 1
                incomplete = incomplete | {s} if left[s] else incomplete - {s}
            most[n] = max(most[n], len(incomplete))
        assert not any(left.values())
    assert most[2000] <= 8 * 9  # all batches that are begun


def test_pooled_windows_of_a_finished_series_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    add = reading.Joiner.add
    monkeypatch.setattr(reading.Joiner, "add", lambda self, *a: (add(self, *a), held.append(len(self._held)))[0])
    list(stream(StepsEncoder(context=16), panel(200, 1), Reading(rows=8)))
    assert 0 < max(held) <= 8
    assert held[-1] == 0


def test_series_that_are_done_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data, how = panel(), Reading(rows=8)
    encoder = StepsEncoder(context=16)
    done = np.arange(len(data)) % 3 != 0
    rows = []
    run = encoder.run
    monkeypatch.setattr(encoder, "run", lambda inputs: rows.append(len(inputs.kwargs["patches"])) or run(inputs))
    blocks = list(stream(encoder, data, how, done=done))
    assert sorted(i for block in blocks for i in block.index) == np.flatnonzero(~done).tolist()
    assert sum(rows) == 2 * sum(w.series % 3 == 0 for w in cut(data, encoder.facts, "toy"))
    rows.clear()
    assert list(stream(encoder, data, how, done=np.ones(len(data), bool))) == []
    assert rows == []
    with pytest.raises(ValueError, match="done has shape"):
        stream(encoder, data, how, done=done[:-1])


def test_mistakes_are_named_at_the_call_and_no_thread_is_begun() -> None:
    with pytest.raises(DataError, match="no series in the set"):
        stream(StepsEncoder(), as_panel([]), Reading())
    with pytest.raises(UnknownNameError, match="layer of toy"):
        stream(StepsEncoder(), panel(), Reading(), layers=["blck.1"])
    with pytest.raises(DataError, match="needs at least 90"):
        stream(StepsEncoder(min_length=90), panel(), Reading())
    assert threads() == []


def test_a_layer_that_is_not_finite_is_named_with_its_first_series_and_reading_stops() -> None:
    x = [s.copy() for s in panel(40, 1).series]
    for i in (11, 30):
        x[i][:] = 1e30
    encoder, seen = StepsEncoder(), []
    encoder.module.blocks[1].register_forward_hook(lambda _, __, y: y)
    spoil = torch.nn.Identity()
    spoil.forward = lambda y: torch.where(encoder.large[:, None, None], torch.nan, y)  # type: ignore[method-assign]
    encoder.module.blocks[1] = spoil
    prepare = encoder.prepare

    def note(batch):  # the toy's tanh hides how large the series are
        encoder.large = batch.values.flatten(1).amax(1) > 1e20  # type: ignore[attr-defined]
        return prepare(batch)

    encoder.prepare = note  # type: ignore[method-assign]
    order = sorted((x[i].shape[1], i) for i in (11, 30))
    with pytest.raises(EncoderError, match=rf"layer 'block.1' .* 1 of 4 .*first: series {order[0][1]}\)"):
        list(stream(encoder, as_panel(x), Reading(rows=4), progress=seen.append))
    assert sum(seen) < 40
    assert threads() == []


def test_a_consumer_that_stops_early_ends_the_thread() -> None:
    with closing(stream(StepsEncoder(), panel(), Reading(rows=2))) as blocks:
        next(blocks)
        assert threads() == [THREAD]
    assert threads() == []
    for _ in stream(StepsEncoder(), panel(), Reading(rows=2)):
        break
    assert threads() == []


def test_an_error_in_the_pass_ends_the_thread() -> None:
    encoder = StepsEncoder()
    encoder.module.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract(encoder, panel(), Reading(rows=2))
    assert threads() == []


class Broken(tuple):
    """Series of which one cannot be read."""

    def __getitem__(self, i):
        if i == 20:
            raise OSError("the archive is gone")
        return super().__getitem__(i)


def test_an_error_while_loading_is_raised_where_blocks_are_taken_with_its_traceback() -> None:
    data = panel()
    object.__setattr__(data, "series", Broken(data.series))
    assert data.lengths.shape == (29,)
    with pytest.raises(OSError, match="the archive is gone") as caught:
        list(stream(StepsEncoder(), data, Reading(rows=2)))
    assert "__getitem__" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert threads() == []


def test_items_come_in_order_and_at_most_two_are_made_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    taken = []
    for i in ahead(items()):
        taken.append(i)
        for _ in range(100):  # until the thread has made what it may
            time.sleep(0.001)
        assert len(made) <= len(taken) + 2
    assert taken == list(range(10))


HANGS = """
import signal, sys, threading, time
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from tsprobe.capture import ahead
ahead.GRACE = 0.1
def items():
    yield 1
    print("hangs", flush=True)
    time.sleep(600)
for item in ahead.ahead(items()):
    pass
"""


def test_ctrl_c_ends_a_process_whose_loader_hangs() -> None:
    script = HANGS.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        os.kill(process.pid, signal.SIGINT)
        try:
            _, error = process.communicate(timeout=20)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in error


class Slow:
    """Stands in for a device: what was sent is there only when it is waited for."""

    sent: ClassVar[list[Slow]] = []
    waited = 0

    def __init__(self, pooled) -> None:
        self._here = Here(pooled)
        self.there = False
        Slow.sent.append(self)

    def is_done(self) -> bool:
        return self.there

    def arrays(self):
        Slow.waited += not self.there
        self.there = True
        return self._here.arrays()


def test_a_batch_is_consumed_while_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = joined(stream(StepsEncoder(), panel(), Reading(ALL, rows=4)), "block.2")
    monkeypatch.setattr(Slow, "sent", [])
    monkeypatch.setattr(Slow, "waited", 0)
    monkeypatch.setattr(reading, "send", Slow)
    behind = []
    seen = lambda _: behind.append(len(Slow.sent))  # noqa: E731
    got = joined(stream(StepsEncoder(), panel(), Reading(ALL, rows=4), progress=seen), "block.2")
    np.testing.assert_array_equal(got, expected)
    assert len(Slow.sent) == Slow.waited == 15
    assert behind == [*range(2, 16), 15]  # the first is taken when the second has been launched, and so on


def test_what_is_there_already_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(reading, "send", lambda pooled: sent.append(1) or arrivals.send(pooled))
    behind = []
    list(stream(StepsEncoder(), panel(), Reading(rows=4), progress=lambda _: behind.append(len(sent))))
    assert behind == list(range(1, 16))


def test_one_flat_buffer_carries_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way from a GPU, its event and its pinned memory replaced: there is one copy, and what arrives is right."""
    copies, events = [], []

    class Event:
        def __init__(self) -> None:
            events.append(self)
            self.asked = 0

        def record(self, stream: object) -> None:
            assert len(copies) == 1  # behind the copy

        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            self.asked += 1

    def pinned(like: Tensor) -> Tensor:
        copies.append(like.numel())
        return torch.empty(like.shape, dtype=like.dtype)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(arrivals, "_pinned", pinned)
    widths = {"a": 5, "b": 3}
    pooled = {k: (torch.randn(4, 2, 3, w), torch.ones(4, 2)[..., None].expand(-1, -1, 3)) for k, w in widths.items()}
    way = Underway(pooled)
    assert not way.is_done()
    assert events[0].asked == 0
    arrays = way.arrays()
    assert events[0].asked == 1
    assert copies == [4 * 2 * 3 * (5 + 1 + 3 + 1)]
    assert list(arrays) == ["a", "b"]
    for name, pair in pooled.items():
        for got, given in zip(arrays[name], pair, strict=True):
            np.testing.assert_array_equal(got, given)


class Elsewhere(StepsEncoder):
    """An encoder that reads panels in its own way."""

    closed = False

    def stream(self, *asked):
        self.blocks = self._stream(*asked)  # it lives on here, and must be closed by name
        return self.blocks

    def _stream(self, panel, reading, layers, done, progress):
        self.asked = (reading, layers, done.tolist())
        try:
            for i in np.flatnonzero(~done):
                progress(1)
                yield np.array([i]), {name: np.full((1, 1, 2), self.value, np.float32) for name in layers}
        finally:
            self.closed = True


def test_an_encoder_with_a_stream_of_its_own_is_asked_for_it() -> None:
    encoder, data, how, seen = Elsewhere(), panel(4), Reading(), []
    encoder.value = 3.0
    done = np.array([False, True, False, False])
    blocks = list(stream(encoder, data, how, layers=["block.1"], done=done, progress=seen.append))
    assert encoder.asked == (how, ("block.1",), done.tolist())
    assert [block.index.tolist() for block in blocks] == [[0], [2], [3]]
    assert all(isinstance(block, Block) for block in blocks)
    assert seen == [1, 1, 1]
    assert extract(encoder, data, progress=seen.append).matrix("block.2", "mean").tolist() == [[3.0, 3.0]] * 4
    encoder.closed = False
    with closing(stream(encoder, data, how, progress=seen.append)) as some:
        next(some)
    assert encoder.closed
    encoder.value = np.inf
    with pytest.raises(EncoderError, match=r"'block.0' gives values that are not finite .*series 0\)"):
        extract(encoder, data, progress=seen.append)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    data, how = panel(), Reading(("mean", "max", "std", "segments3"), rows=8)
    on_cpu = extract(StepsEncoder(context=16), data, how)
    on_gpu = extract(StepsEncoder(context=16).to("cuda"), data, how)  # type: ignore[arg-type]
    for layer in on_cpu.layers:
        np.testing.assert_allclose(on_gpu.arrays[layer], on_cpu.arrays[layer], atol=1e-4)  # TF32 may be on
