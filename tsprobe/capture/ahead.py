"""Work done one step ahead, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

THREAD = "tsprobe-ahead"
GRACE = 5.0  # seconds


def ahead(items: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, made in another thread, at most `depth` of them before they are asked for.

    Close the generator (`contextlib.closing`) to leave early: the thread ends after the item that it is making. An
    exception there is raised here, where the next item would have come, with the traceback that it had. A thread that
    hangs is left behind after some seconds; it is a daemon, so that it does not keep the process alive.
    """
    made: SimpleQueue[tuple[T | None, BaseException | None, bool]] = SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            for item in _while_wanted(items, room, stopped):
                made.put((item, None, False))
            made.put((None, None, True))
        except BaseException as error:  # noqa: BLE001  # it is raised again in the thread that consumes
            made.put((None, error, True))

    thread = threading.Thread(target=work, name=THREAD, daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = made.get()
            if error is not None:
                raise error
            if last:
                return
            room.release()
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        room.release()
        thread.join(GRACE)


def _while_wanted(items: Iterator[T], room: threading.Semaphore, stopped: threading.Event) -> Iterator[T]:
    while True:
        room.acquire()
        if stopped.is_set():
            return
        try:
            item = next(items)
        except StopIteration:
            return
        yield item
