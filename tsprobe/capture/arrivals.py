"""Pooled features on their way from the device to the host, without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Pooled = dict[str, tuple[np.ndarray, np.ndarray]]


class Arrival(Protocol):
    """What a batch gave: of each layer, pooled slots `[B, rows, P, D]` and the weight of each, `[B, rows, P]`."""

    def is_done(self) -> bool:
        """Whether `arrays` would not wait."""

    def arrays(self) -> Pooled:
        """The arrays on the host; waits for them where they are still on their way."""


class Here:
    """Features that are on the host already."""

    def __init__(self, pooled: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self._arrays = {name: (value.numpy(), weight.numpy()) for name, (value, weight) in pooled.items()}

    def is_done(self) -> bool:
        return True

    def arrays(self) -> Pooled:
        return self._arrays


class Underway:
    """All layers of a batch in one flat buffer, copied to pinned memory behind the pass that made them.

    One copy and one event a batch: the host goes on to launch the next batch while the device still works on this one.
    The buffer is put together and copied on the stream of the pass, so that its memory cannot be reused too early.
    """

    def __init__(self, pooled: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self._shapes = {name: (value.shape, weight.shape) for name, (value, weight) in pooled.items()}
        parts = [part.flatten() for pair in pooled.values() for part in pair]
        flat = torch.cat(parts) if parts else torch.empty(0)
        self._flat = _pinned(flat)
        self._flat.copy_(flat, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(flat.device))

    def is_done(self) -> bool:
        return bool(self._event.query())

    def arrays(self) -> Pooled:
        self._event.synchronize()
        return split(self._flat.numpy(), self._shapes)


def _pinned(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def split(flat: np.ndarray, shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> Pooled:
    """The arrays of each layer as views of the buffer in which they stand one behind the other."""
    begin, arrays = 0, {}
    for name, pair in shapes.items():
        views = []
        for shape in pair:
            views.append(flat[begin : begin + shape.numel()].reshape(shape))
            begin += shape.numel()
        arrays[name] = (views[0], views[1])
    return arrays


def send(pooled: Mapping[str, tuple[Tensor, Tensor]]) -> Arrival:
    """Start the way of a batch's pooled features to the host."""
    on_gpu = any(value.is_cuda for value, _ in pooled.values())
    return Underway(pooled) if on_gpu else Here({n: (v.cpu(), w.cpu()) for n, (v, w) in pooled.items()})
