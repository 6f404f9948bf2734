"""A panel read as a stream: one forward pass a batch, every layer, every pooling, block after block of whole series."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from tsprobe.capture.ahead import ahead
from tsprobe.capture.arrivals import Arrival, send
from tsprobe.capture.blocks import Joiner
from tsprobe.capture.hooks import read_layers
from tsprobe.capture.memory import free_memory, is_out_of_memory
from tsprobe.capture.steps import Steps, refuse_coarse
from tsprobe.capture.timing import Timing
from tsprobe.capture.windows import Window, batches, cut, load
from tsprobe.errors import DataError, EncoderError, UnknownNameError
from tsprobe.pooling import Slots, StepMap, pool
from tsprobe.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64
    from torch import Tensor, nn

    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Encoder
    from tsprobe.types import Inputs, TokenMap

Finished = tuple[Any, ...]  # the fields of a block, the last of which may be left out

ROWS = 16  # rows of a batch: larger ones leave the processor's cache and gain little on a CPU
UNDERWAY = 2  # batches whose pooled features are on their way from the device: one is consumed while the next runs


@dataclass(frozen=True)
class Reading:
    """How a panel is read: which poolings, how channels join, what is done about missing values.

    With `steps`, the one pooling is `steps.pooling`: tokens at M steps, `[N, M, D]`, instead of statistics.
    """

    poolings: tuple[str, ...] = ("mean",)
    channels: Literal["concat", "mean"] = "concat"
    missing: Literal["handle", "error"] = "handle"
    rows: int = ROWS
    steps: Steps | None = None

    def slots(self, panel: Panel) -> Slots:
        """Raises what `Slots.parse` raises, and `DataError` for steps that do not fit the panel or the poolings."""
        slots = Slots.parse(self.poolings)
        if self.steps is not None:
            self.steps.check(panel)
        if slots.steps != (0 if self.steps is None else self.steps.at.shape[1]):
            raise DataError(f"poolings {list(self.poolings)} do not fit the steps that are to be read")
        return slots


@dataclass(frozen=True)
class Block:
    """Pooled features of b whole series: their positions in the panel, and `[b, P, D]` in float32 of each layer.

    `forward` are the seconds that the encoder's own forward passes took since the block before; 0 where they are not
    known.
    """

    index: Int64[np.ndarray, " b"]
    arrays: dict[str, np.ndarray]
    forward: float = 0.0


class Watch(Protocol):
    """Looks at tokens while a panel is read; keeps what it wants of them, which is not the tokens."""

    def watching(
        self, module: nn.Module, inputs: Inputs, series: Sequence[int], layers: Sequence[str]
    ) -> AbstractContextManager[Callable[[str, Tensor], None] | None]:
        """For one pass over a batch whose entries belong to `series`: called with each layer's tokens `[R, T, D]`."""


def stream(
    encoder: Encoder,
    panel: Panel,
    reading: Reading,
    *,
    layers: Sequence[str] | None = None,
    done: Bool[np.ndarray, " N"] | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Generator[Block, None, None]:
    """Pooled features of every series that is not `done`, each in one block, in the order in which they are ready.

    Memory does not grow with N: a series is held only until the last of its windows has been read. Series longer than
    the context are read in windows and merged as if pooled once. Where a pass finds no memory its batch is halved, and
    later ones are no larger. `layers` are all of the encoder's unless named.
    `progress` is called with the number of windows read. To leave early, close the generator (`contextlib.closing`).

    `watch` sees the tokens of every batch.

    An encoder may have a `stream(panel, reading, layers, done, progress)` of its own, which is then asked instead, with
    the layers named and `done` a mask; it gives the fields of a `Block`, at least index and arrays. It is not watched.

    Raises `DataError` for series that the encoder cannot take, `UnknownNameError` for a layer that it does not have
    (both at the call), and `EncoderError` for a layer that gives a value that is not finite, at its first block.
    """
    names = tuple(layers) if layers is not None else tuple(encoder.taps)
    for name in names:
        if name not in encoder.taps:
            raise UnknownNameError(f"layer of {encoder.name}", name, encoder.taps)
    if reading.missing == "error" and panel.missing:
        raise DataError(f"{panel.missing} values are missing or not finite, and missing values are set to be an error")
    done = np.zeros(len(panel), bool) if done is None else np.asarray(done, bool)
    if done.shape != (len(panel),):
        raise ValueError(f"done has shape {done.shape} for {len(panel)} series")
    slots = reading.slots(panel)
    windows = cut(panel, encoder.facts, encoder.name)
    own = getattr(encoder, "stream", None)
    if own is not None:
        return _checked(own(panel, reading, names, done, progress), encoder.name)
    if reading.steps is not None:
        refuse_coarse(encoder, panel, names)
    return _checked(_read(encoder, panel, reading, names, slots, windows, done, progress, watch), encoder.name)


def _read(
    encoder: Encoder,
    panel: Panel,
    reading: Reading,
    names: tuple[str, ...],
    slots: Slots,
    windows: list[Window],
    done: np.ndarray,
    progress: Callable[[int], None] | None,
    watch: Watch | None,
) -> Iterator[Finished]:
    device, most = encoder.device, len(windows)  # windows that a pass has memory for, as far as is known

    def load_windows(batch: list[int]) -> _Loaded:
        steps = None if reading.steps is None else reading.steps.at
        chosen = [windows[i] for i in batch]
        return _load(panel, chosen, encoder.facts.masks_missing, slots.segments, steps, device)

    def loaded() -> Iterator[tuple[list[int], _Loaded]]:
        # batches are those of the whole panel, so that a series is pooled in the same company after a resume
        for batch in batches(windows, max(1, reading.rows // panel.channels), encoder.facts.pads):
            if left := [i for i in batch if not done[windows[i].series]]:
                yield left, load_windows(left)

    def passes(batch: list[int], data: _Loaded) -> Iterator[tuple[list[int], Arrival, Timing]]:
        """One pass over a batch; where there is no memory for it, now or before, two over its halves, and so on."""
        nonlocal most
        if len(batch) <= most:
            watching = None if watch is None else partial(watch.watching, series=[windows[i].series for i in batch])
            try:
                yield batch, *_pool_batch(encoder, data, names, slots, reading, watching)
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    steps = len(windows[batch[0]])
                    raise EncoderError(
                        f"{encoder.name}: {device} has no memory for a pass over one series of {steps} steps; cut the "
                        "series, or take a device with more"
                    ) from error
            most = len(batch) // 2
            free_memory(device)
        for part in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            yield from passes(part, load_windows(part))

    joiner = Joiner(windows, slots, reading.channels)
    underway: deque[tuple[list[int], Arrival, Timing]] = deque()
    forward = 0.0  # seconds of passes that have not been told of in a block

    def finish() -> Iterator[Finished]:
        nonlocal forward
        batch, arrival, timing = underway.popleft()
        index, arrays = joiner.add(batch, arrival.arrays())
        forward += timing.seconds()
        if progress is not None:
            progress(len(batch))
        if len(index):
            yield index, arrays, forward
            forward = 0.0

    with closing(ahead(loaded())) as batched:
        for batch, data in batched:
            for one in passes(batch, data):
                underway.append(one)
                while underway and (len(underway) == UNDERWAY or underway[0][1].is_done()):
                    yield from finish()
        while underway:
            yield from finish()


@dataclass(frozen=True)
class _Loaded:
    """What a batch needs on the device: its series, and in steps of their windows what is asked of time.

    For poolings by segments `spans` are their borders `[B, K + 1]`, for a reading of steps these, `[B, M]`.
    """

    batch: Batch
    spans: Tensor | None


def _load(
    panel: Panel,
    windows: list[Window],
    keep_missing: bool,
    segments: int,
    steps: Int64[np.ndarray, "N M"] | None,
    device: torch.device,
) -> _Loaded:
    batch = load(panel, windows, keep_missing=keep_missing)
    spans = _spans(panel, windows, segments) if segments else None
    if steps is not None:
        spans = torch.from_numpy(np.stack([steps[w.series] - w.start for w in windows]))
    if device.type == "cuda":  # a copy from pageable memory would wait for everything that runs there
        batch = Batch(batch.values.pin_memory(), batch.observed.pin_memory(), batch.lengths.pin_memory())
        spans = None if spans is None else spans.pin_memory()
    return _Loaded(batch, spans)


def _spans(panel: Panel, windows: list[Window], segments: int) -> Tensor:
    """Borders of the K equal spans of each whole series, in steps of its window: `[B, K + 1]`."""
    lengths = torch.tensor([float(panel.lengths[w.series]) for w in windows])
    starts = torch.tensor([float(w.start) for w in windows])
    return lengths[:, None] * torch.linspace(0, 1, segments + 1) - starts[:, None]


def _pool_batch(
    encoder: Encoder,
    data: _Loaded,
    names: Sequence[str],
    slots: Slots,
    reading: Reading,
    watching: Callable[..., AbstractContextManager[Callable[[str, Tensor], None] | None]] | None,
) -> tuple[Arrival, Timing]:
    """One forward pass and its timing. Of each layer, pooled slots `[B, rows, P, D]` and weights `[B, rows, P]`."""
    device, given = encoder.device, data.batch
    timing = Timing(device)
    with torch.inference_mode():
        parts = given.values, given.observed, given.lengths
        inputs = encoder.prepare(Batch(*(part.to(device, non_blocking=True) for part in parts)))
        spans = data.spans
        if spans is not None:
            spans = spans.to(device, non_blocking=True).repeat_interleave(inputs.rows, 0)  # [R, K + 1]
        read = None if reading.steps is None else _StepReader(spans, given.lengths, inputs.rows, reading.steps.causal)
        pooled: dict[str, tuple[Tensor, Tensor]] = {}

        def visit(name: str, x: Tensor) -> None:
            tokens = inputs.tokens_of(name)
            if x.shape[:2] != tokens.mask.shape:
                raise EncoderError(
                    f"{encoder.name}: layer {name!r} has {x.shape[0]} rows of {x.shape[1]} tokens, its token map "
                    f"{tokens.mask.shape[0]} of {tokens.mask.shape[1]}"
                )
            with timing.aside():
                value, weight = pool(x, tokens, slots, spans) if read is None else read(x, tokens)
                if look is not None:
                    look(name, x)
            rows = (len(given.lengths), inputs.rows)
            pooled[name] = value.reshape(*rows, *value.shape[1:]), weight.reshape(*rows, weight.shape[1])

        watched = nullcontext() if watching is None else watching(encoder.module, inputs, layers=names)
        with watched as look, timing.whole():
            read_layers(encoder, inputs, names, visit)
        return send(pooled), timing


class _StepReader:
    """Reads steps `[R, M]` of a batch from one layer after another; what depends on the token map alone is kept."""

    def __init__(self, steps: Tensor | None, lengths: Tensor, rows: int, causal: bool) -> None:
        assert steps is not None
        self._steps, self._causal = steps, causal
        self._lengths = lengths.to(steps.device).repeat_interleave(rows)
        self._maps: dict[int, StepMap] = {}

    def __call__(self, x: Tensor, tokens: TokenMap) -> tuple[Tensor, Tensor]:
        if id(tokens) not in self._maps:  # maps live as long as the batch, so that a number stands for one
            self._maps[id(tokens)] = StepMap.of(tokens, self._steps, self._lengths, causal=self._causal)
        return self._maps[id(tokens)].read(x)


def _checked(blocks: Iterable[Finished], encoder: str) -> Generator[Block, None, None]:
    try:
        for index, arrays, *forward in blocks:
            for layer, array in arrays.items():
                if not np.isfinite(array).all():
                    bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))
                    raise EncoderError(
                        f"{encoder}: layer {layer!r} gives values that are not finite for {len(bad)} of {len(array)} "
                        f"series read together (first: series {index[bad].min()})"
                    )
            yield Block(index, arrays, *forward)
    finally:
        if isinstance(blocks, Generator):
            blocks.close()  # and with it the thread that loads
