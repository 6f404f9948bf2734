"""What the student learns on: generated series, labelled by segments where these are known, and the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tsprobe.capture.windows import cut, interpolate, load
from tsprobe.data.panel import as_panel
from tsprobe.data.states import regimes
from tsprobe.errors import SpecError
from tsprobe.pretraining.corpus import Corpus
from tsprobe.types import Batch, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tsprobe.encoders.base import Encoder
    from tsprobe.tasks.base import Task

HELD_OUT = 1 << 20  # numbers of batches from here on are never trained on


@dataclass(frozen=True)
class Lesson:
    """A batch of series. `segments [B, S]` numbers the segment of each step; `targets` are those of a task."""

    batch: Batch
    segments: Int[torch.Tensor, "B S"] | None = None
    targets: torch.Tensor | None = None
    task: int = 0


class Unlabelled:
    """Batches of the pretraining corpus; every other one, where asked, of series whose segments are known."""

    def __init__(self, encoder: Encoder, sources: tuple[str, ...], longest: int, seed: int, *, segments: bool) -> None:
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
            return Lesson(_whole(x), torch.from_numpy(runs))
        series = self._corpus.batch(number, size)
        if self._masks:
            values, observed = series.values[:, None], series.observed[:, None]
            return Lesson(Batch(values, observed, torch.full((size,), values.shape[-1])))
        gaps = np.where(series.observed.numpy(), series.values.numpy(), np.nan).astype(np.float32)
        return Lesson(_whole(torch.from_numpy(np.stack([interpolate(x[None]) for x in gaps]))))


class Labelled:
    """Batches of the training series of tasks, in turn, with their targets. A fifth of the series is held out."""

    def __init__(self, encoder: Encoder, tasks: list[Task], seed: int) -> None:
        self._encoder, self._tasks, self._seed = encoder, tasks, seed
        self._parts = []
        for task in tasks:
            order = np.random.default_rng([seed, len(task.train)]).permutation(len(task.train))
            held = max(1, len(order) // 5)
            self._parts.append((order[held:], order[:held]))

    def lesson(self, number: int, size: int) -> Lesson:
        which = number % len(self._tasks)
        task, facts = self._tasks[which], self._encoder.facts
        rows = self._parts[which][int(number >= HELD_OUT)]
        rng = np.random.default_rng([self._seed, number])
        picked = np.sort(rng.choice(rows, min(size, len(rows)), replace=False))
        panel = task.train.take(picked.tolist())
        if not facts.pads:
            length = int(panel.lengths.min())
            panel = as_panel([x[:, :length] for x in panel.series])
        windows = [w for w in cut(panel, facts, self._encoder.name) if w.start == 0]
        batch = load(panel, windows, keep_missing=facts.masks_missing)
        return Lesson(batch, targets=torch.from_numpy(task.y_train[picked]), task=which)


def membership(segments: Int[torch.Tensor, "B S"], tokens: TokenMap, rows: int) -> Float[torch.Tensor, "R T M"]:
    """Share of each token's steps that lies in each segment of its series; R = B rows."""
    one_hot = torch.nn.functional.one_hot(segments, int(segments.max()) + 1).float().repeat_interleave(rows, 0)
    before = torch.nn.functional.pad(one_hot.cumsum(1), (0, 0, 1, 0))  # [R, S + 1, M]
    last = before.shape[1] - 1
    start, stop = (t.clamp(0, last)[..., None].expand(-1, -1, before.shape[2]) for t in (tokens.start, tokens.stop))
    inside = before.gather(1, stop) - before.gather(1, start)
    return inside / inside.sum(2, keepdim=True).clamp(min=1)


def _whole(x: Float[torch.Tensor, "B C S"]) -> Batch:
    return Batch(x, torch.ones_like(x, dtype=torch.bool), torch.full((len(x),), x.shape[-1]))
