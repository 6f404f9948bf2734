"""The same work on many pieces, each on a core of its own.

The matrices of one layer are too small for torch to share among cores: an eigendecomposition of size 384 takes two
threads nearly as long as one. Layers are many, and need nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TypeVar

import torch

PATIENCE = 3.0  # seconds: a thread that is still in torch when Python ends can take the process down with it
Piece = TypeVar("Piece")
Made = TypeVar("Made")


def on_cores(work: Callable[[Piece], Made], pieces: Sequence[Piece], at_once: int) -> list[Made]:
    """`work` of each piece, in order, at most so many at once; raises what a piece that fails raises.

    On as many threads as torch has (`torch.get_num_threads`), which has one for each of them meanwhile. They see the
    caller's context variables and gradient modes. A caller that is interrupted waits a little for what is begun.
    """
    threads = torch.get_num_threads()
    many = min(threads, at_once, len(pieces))
    if many < 2:
        return [work(piece) for piece in pieces]
    made: dict[int, Made] = {}
    failed: list[BaseException] = []
    waiting: SimpleQueue[int] = SimpleQueue()
    ended: SimpleQueue[None] = SimpleQueue()
    for number in range(len(pieces)):
        waiting.put(number)
    modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def some(context: Context) -> None:
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(modes[0]), torch.set_grad_enabled(modes[1]):
                while not failed:
                    number = waiting.get_nowait()
                    made[number] = context.run(work, pieces[number])
        except Empty:
            return
        except BaseException as error:  # noqa: BLE001  (the caller raises it)
            failed.append(error)
        finally:
            ended.put(None)

    running = 0
    try:
        for _ in range(many):
            running += 1
            Thread(target=some, args=(copy_context(),), name="probes", daemon=True).start()
        while running:
            ended.get()  # a `join` that a signal interrupts takes its thread for ended
            running -= 1
    except BaseException as error:
        failed.append(error)  # so that they take no further piece
        until = monotonic() + PATIENCE
        with suppress(Empty):
            for _ in range(running):
                ended.get(timeout=max(0.0, until - monotonic()))
        raise
    finally:
        torch.set_num_threads(threads)
    if failed:
        raise failed[0]
    return [made[number] for number in range(len(pieces))]
