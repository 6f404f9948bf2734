"""Pieces of work on cores of their own give what they give one after another."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from tsprobe.metrics import get_metric
from tsprobe.probes import base, get_probe
from tsprobe.probes.cores import on_cores

SAID = contextvars.ContextVar("said", default="nothing")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_pieces_run_side_by_side_and_come_back_in_order() -> None:
    met = threading.Barrier(2)  # broken unless two are there at once

    def work(piece: int) -> tuple[int, int]:
        if piece < 2:
            met.wait(timeout=30)
        return piece, torch.get_num_threads()

    assert on_cores(work, range(7), at_once=9) == [(piece, 1) for piece in range(7)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "at_once"), [(1, 9), (2, 1), (2, 0)])
def test_one_thread_or_little_memory_is_one_after_another(threads: int, at_once: int) -> None:
    torch.set_num_threads(threads)
    assert set(on_cores(lambda _: threading.get_ident(), range(4), at_once)) == {threading.get_ident()}


def test_they_see_the_modes_and_variables_of_the_caller() -> None:
    def work(_: int) -> tuple[bool, bool, str]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), SAID.get()

    token = SAID.set("something")
    try:
        assert on_cores(work, range(4), 9) == [(True, False, "something")] * 4
        with torch.no_grad():
            assert on_cores(work, range(4), 9) == [(False, False, "something")] * 4
        with torch.inference_mode():
            assert on_cores(work, range(4), 9) == [(False, True, "something")] * 4
    finally:
        SAID.reset(token)


def test_a_piece_that_fails_is_the_callers_error_and_no_more_is_begun() -> None:
    begun = []

    def work(piece: int) -> int:
        begun.append(piece)
        if piece == 1:
            raise ValueError("piece 1")
        time.sleep(0.05)
        return piece

    with pytest.raises(ValueError, match="piece 1"):
        on_cores(work, range(100), 9)
    assert len(begun) < 10
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("patience", [0.0, 30.0])
def test_a_caller_that_is_interrupted_waits_a_little(patience: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsprobe.probes.cores.PATIENCE", patience)
    forever, ended = threading.Event(), []

    def work(piece: int) -> int:
        if piece == 0:
            time.sleep(0.2)  # until the caller waits
            os.kill(os.getpid(), signal.SIGINT)
        forever.wait(1 if patience else None)
        ended.append(piece)
        return piece

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            on_cores(work, range(4), 9)
        assert torch.get_num_threads() == 2
        assert sorted(ended) == ([0, 1] if patience else [])
    finally:
        signal.signal(signal.SIGINT, before)
        forever.set()


@pytest.mark.parametrize("probe", ["ridge", "logistic"])
def test_probes_find_the_same_on_one_core_and_on_two(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(5, 90, 8, generator=g)
    x[:, :, 0] += torch.cat([y, y[:30]])
    monkeypatch.setattr(f"tsprobe.probes.{probe}._CACHE", 1)  # a layer at a time
    used = set()
    solved = base.choose
    monkeypatch.setattr(base, "choose", lambda *a, **k: (used.add(threading.get_ident()), solved(*a, **k))[1])
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        used.clear()
        found.append(
            get_probe(probe)(x[:, :60], base.Target("classification", y), x[:, 60:], torch.arange(60) % 5,
                             get_metric("accuracy"))
        )  # fmt: skip
        assert (used == {threading.get_ident()}) == (threads == 1)
    one, two = found
    assert torch.equal(one.chosen, two.chosen)
    torch.testing.assert_close(one.prediction, two.prediction, rtol=1e-6, atol=1e-6)
