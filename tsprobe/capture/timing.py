"""What a forward pass took, less what was done aside while it ran."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timing:
    """On a GPU the marks are events among its work, so that nobody waits for them; elsewhere the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._whole: list[tuple[torch.cuda.Event | float, torch.cuda.Event | float]] = []
        self._aside: list[tuple[torch.cuda.Event | float, torch.cuda.Event | float]] = []

    @contextmanager
    def whole(self) -> Iterator[None]:
        begin = self._mark()
        yield
        self._whole.append((begin, self._mark()))

    @contextmanager
    def aside(self) -> Iterator[None]:
        begin = self._mark()
        yield
        self._aside.append((begin, self._mark()))

    def seconds(self) -> float:
        """The whole less what was aside. On a GPU, all of the work must be done."""
        return sum(map(_between, self._whole)) - sum(map(_between, self._aside))

    def _mark(self) -> torch.cuda.Event | float:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _between(marks: tuple[torch.cuda.Event | float, torch.cuda.Event | float]) -> float:
    begin, end = marks
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin)  # type: ignore[arg-type]  # both are
    return begin.elapsed_time(end) / 1000
