"""What the student learns on: generated series, labelled by segments where these are known, and the user's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from tsprobe.alignment.segmenter import segmenter_of
from tsprobe.capture.windows import cut, interpolate, load
from tsprobe.data.panel import as_panel
from tsprobe.data.states import regimes
from tsprobe.errors import SpecError
from tsprobe.pretraining.corpus import Corpus
from tsprobe.types import Batch, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tsprobe.alignment.segmenter import Segmenter
    from tsprobe.alignment.spec import AlignSpec
    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Encoder
    from tsprobe.tasks.base import Task

GROUP = "tsprobe.lessons"  # entry points: what encoders of another kind learn on
HELD_OUT = 1 << 20  # numbers of batches from here on are never trained on


@dataclass(frozen=True)
class Lesson:
    """A batch of series. `segments [B, S]` numbers the segment of each step; of pictures, `maps [B, M, h, w]` say how
    much of each place lies in each of M parts. `targets` are those of a task, `rows [B]` of its training series.
    """

    batch: Batch
    segments: Int[torch.Tensor, "B S"] | None = None
    targets: torch.Tensor | None = None
    task: int = 0
    rows: torch.Tensor | None = None
    maps: Float[torch.Tensor, "B M h w"] | None = None


class Lessons(Protocol):
    """Batches by number: the same for the same number, in whatever order they are asked for. `what` they are of."""

    what: str

    def lesson(self, number: int, size: int) -> Lesson: ...


class Unlabelled:
    """Batches of the pretraining corpus; every other one, where asked, of series whose segments are known."""

    def __init__(
        self, encoder: Encoder, sources: tuple[str, ...], longest: int, seed: int, *, segments: bool,
        segmenter: Segmenter | None = None,
    ) -> None:  # fmt: skip
        self._segmenter, self.what = segmenter, f"generated series ({', '.join(sources)})"
        facts = encoder.facts
        if facts.channels not in (None, 1):
            raise SpecError(f"{encoder.name} takes {facts.channels} channels; the generated series have one")
        longest = min(longest, facts.context or longest)
        shortest = min(max(64, 4 * facts.patch, facts.min_length), longest)
        if facts.context is not None and not facts.pads:
            shortest = longest  # one length: such encoders are often built for one
        self._corpus = Corpus(sources, shortest, longest, facts.patch, seed)
        self._masks, self._segments, self._seed, self._longest = facts.masks_missing, segments, seed, longest

    def lesson(self, number: int, size: int) -> Lesson:
        """The same for the same number, in whatever order it is asked for."""
        if self._segments and number % 2:
            states = regimes(size, length=self._longest, seed=(self._seed, number))
            x = torch.from_numpy(states.values)
            runs = np.cumsum(
                np.diff(states.truth.reshape(size, -1), axis=1, prepend=states.truth.reshape(size, -1)[:, :1]) != 0,
                axis=1,
            )
            return Lesson(Batch.whole(x), torch.from_numpy(runs))
        series = self._corpus.batch(number, size)
        if self._masks:
            values, observed = series.values[:, None], series.observed[:, None]
            batch = Batch(values, observed, torch.full((size,), values.shape[-1]))
        else:
            gaps = np.where(series.observed.numpy(), series.values.numpy(), np.nan).astype(np.float32)
            batch = Batch.whole(torch.from_numpy(np.stack([interpolate(x[None]) for x in gaps])))
        return Lesson(batch, None if self._segmenter is None else self._segmenter(batch.values))


class Own:
    """Batches of the training series of tasks, in turn, without their targets. A fifth of the series is held out."""

    what = "training series"

    def __init__(self, encoder: Encoder, panels: list[Panel], seed: int, segmenter: Segmenter | None = None) -> None:
        self._encoder, self._panels, self._seed, self._segmenter = encoder, panels, seed, segmenter
        self._parts = [held_out(len(panel), seed) for panel in panels]

    def lesson(self, number: int, size: int) -> Lesson:
        """The same for the same number, in whatever order it is asked for."""
        facts, which = self._encoder.facts, number % len(self._panels)
        rows = self._parts[which][int(number >= HELD_OUT)]
        picked = np.sort(np.random.default_rng([self._seed, number]).choice(rows, min(size, len(rows)), replace=False))
        panel = self._panels[which].take(picked.tolist())
        if not facts.pads:
            length = int(panel.lengths.min())
            panel = as_panel([x[:, :length] for x in panel.series])
        windows = [w for w in cut(panel, facts, self._encoder.name) if w.start == 0]
        batch = load(panel, windows, keep_missing=facts.masks_missing)
        segments = None if self._segmenter is None else self._segmenter(batch.values)
        return Lesson(batch, segments, task=which, rows=torch.from_numpy(picked))


class Labelled:
    """The same with the targets of the tasks."""

    what = "training targets"

    def __init__(self, encoder: Encoder, tasks: list[Task], seed: int) -> None:
        self._series = Own(encoder, [task.train for task in tasks], seed)
        self._targets = [torch.from_numpy(task.y_train) for task in tasks]

    def lesson(self, number: int, size: int) -> Lesson:
        """The same for the same number, in whatever order it is asked for."""
        found = self._series.lesson(number, size)
        return replace(found, targets=self._targets[found.task][found.rows])


def held_out(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and a fifth of them to look at on the way."""
    order = np.random.default_rng([seed, n]).permutation(n)
    held = max(1, n // 5)
    return order[held:], order[:held]


def lessons_of(encoder: Encoder, panels: list[Panel], spec: AlignSpec, *, segments: bool) -> Lessons:
    """Series without labels: what a package gives for its kind of encoder, else the training series of tasks, else
    generated ones. Raises `SpecError` for a request that makes no sense."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        found = point.load()(encoder, panels, spec, segments=segments)
        if found is not None:
            return found
    segmenter = segmenter_of(spec.locality_from) if segments and spec.locality_from else None
    if panels:
        return Own(encoder, panels, spec.seed, segmenter)
    return Unlabelled(encoder, spec.sources, spec.length, spec.seed, segments=segments, segmenter=segmenter)


def grid_maps(maps: Float[torch.Tensor, "B M h w"], tokens: TokenMap) -> Float[torch.Tensor, "B T M"]:
    """The maps of pictures at each real token: means over its patch; 0 at the others."""
    assert tokens.grid is not None
    places = (tokens.grid.rows, tokens.grid.columns)
    larger = maps.shape[2] >= places[0] and maps.shape[3] >= places[1]
    read = torch.nn.functional.adaptive_avg_pool2d(maps, places) if larger else torch.nn.functional.interpolate(
        maps, places, mode="bilinear", align_corners=False
    )  # fmt: skip
    out = maps.new_zeros(*tokens.mask.shape, maps.shape[1])
    out[tokens.mask] = read.flatten(2).transpose(1, 2).flatten(0, 1)
    return out


def membership(segments: Int[torch.Tensor, "B S"], tokens: TokenMap, rows: int) -> Float[torch.Tensor, "R T M"]:
    """Share of each token's steps that lies in each segment of its series; R = B rows."""
    one_hot = torch.nn.functional.one_hot(segments, int(segments.max()) + 1).float().repeat_interleave(rows, 0)
    before = torch.nn.functional.pad(one_hot.cumsum(1), (0, 0, 1, 0))  # [R, S + 1, M]
    last = before.shape[1] - 1
    start, stop = (t.clamp(0, last)[..., None].expand(-1, -1, before.shape[2]) for t in (tokens.start, tokens.stop))
    inside = before.gather(1, stop) - before.gather(1, start)
    return inside / inside.sum(2, keepdim=True).clamp(min=1)
