"""A run of the recipe `vision/video`, as `tsprobe.pretraining.fit` knows it.

Parts, each of so many steps: the captioner learns on pictures; it describes single frames of the unlabelled clips; it
learns on clips with exact captions; it describes the clips; towers are tuned from the same start on the captions that
are compared, and last on the merged ones, which are kept.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tsprobe.errors import DataError, SpecError
from tsprobe.pretraining.objectives.base import Loss
from tsprobe.pretraining.record import Record
from tsprobe.pretraining.train import half_where_possible, rate
from vision.engine.captioner import Captioner
from vision.engine.merge import merged
from vision.engine.things import ANY, reversed_in_time
from vision.pretraining.pool import Pool, generator, rows_at
from vision.pretraining.video import folder as written
from vision.pretraining.video.looks import Looks
from vision.pretraining.video.material import Material, tokens
from vision.pretraining.video.spec import MERGED, NO_CLIPS, Phase, VideoSpec
from vision.pretraining.video.start import load_start, with_words
from vision.pretraining.video.tuned import Tuned

if TYPE_CHECKING:
    from torch import Tensor

_PICTURES = 7  # added to the seed: pictures come in an order of their own


class VideoRun:
    """All that changes: the captioner, what it wrote, the towers that are tuned, and what was measured."""

    def __init__(self, spec: VideoSpec, device: str, pictures: tuple[Pool, Pool] | None = None) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.start = load_start(spec.start)
        shape = self.start.tower.shape
        if spec.size % shape.patch or spec.size < 2 * shape.patch:
            raise SpecError(f"size: {spec.size} pixels are not two or more whole patches of {shape.patch} pixels")
        self.material = material = Material(spec, pictures)
        said = [*material.pool.captions, *material.exact.captions, *material.titles, ANY]
        self.text = with_words(self.start.text, said)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)  # built on the CPU: the same start on every device
            patches = (spec.size // shape.patch) ** 2
            self.captioner = Captioner(spec.captioner, shape.width, patches, self.text.vocabulary)
        for module in (self.start.tower, self.text, self.captioner):
            module.to(self.device)
        self.frozen = self.start.tower.requires_grad_(False)
        self.tuned = self._fresh()
        self.optimiser: torch.optim.Optimizer | None = None
        self.written: dict[str, list[Any]] = {"frames": [], "clip": []}
        self.measured: dict[str, dict[str, float]] = {}
        self.looks = Looks(spec, material, self.frozen)
        self._known: Tensor | None = None  # tokens of the clips with exact captions
        self._said: dict[str, list[str]] = {}  # by each source, when all clips are described
        self.record = Record()
        self.step = 0
        self.title = f"pretrain {spec.recipe}"
        self.loads_as = "vision"

    def _fresh(self) -> Tuned:
        return Tuned(self.frozen, self.text, self.start.scale).to(self.device)

    # --- the parts ---

    def advance(self) -> None:
        """One step. Everything random in it follows from the seed and the number of the step."""
        name, i = self.spec.place(self.step)
        if i == 0:
            self._begin(name)
            if name.startswith("tune") and not self.measured:
                self.measured["before"] = self.looks.measure(self.tuned)
        if name.startswith("describe"):
            self._describe(name, i)
            self.step += 1
            return
        phase = self._phase(name)
        assert self.optimiser is not None
        for group in self.optimiser.param_groups:
            group["lr"] = rate(i, phase)
        with half_where_possible(self.device):
            values, loss = self._loss(name, i)
        self.optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], self.spec.tuning.clip)
        self.optimiser.step()
        self.tuned.after_step()
        self.step += 1
        self.record.add(self.step, values, loss)
        if (i + 1) % self.spec.log_every == 0 or i + 1 == phase.steps:
            self.record.close_row(self.step, rate(i, phase))
        source = name.removeprefix("tune ")
        if i + 1 == phase.steps and source in self.spec.compare:
            self.measured[source] = self.looks.measure(self.tuned)

    def _phase(self, name: str) -> Phase:
        spec = self.spec
        return {"caption pictures": spec.pictures, "caption clips": spec.refined}.get(name, spec.tuning)

    def _begin(self, name: str) -> None:
        """A new optimiser, and where a tuning begins, towers as they were at the start."""
        module: nn.Module = self.captioner
        if name.startswith("tune"):
            module = self.tuned = self._fresh()
        groups = [
            {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": self.spec.tuning.decay},
            {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, self._phase(name).rate, (0.9, 0.95))

    def _loss(self, name: str, i: int) -> tuple[Tensor, Loss]:
        spec, material = self.spec, self.material
        if name == "caption pictures":
            rows = rows_at(i, spec.pictures.batch, len(material.pool.captions), spec.seed)
            values, captions = material.some_pictures(material.pool, rows)
            return values, _told(self.captioner, tokens(self.frozen, values), captions)
        if name == "caption clips":
            return self._clip_loss(i)
        source = name.removeprefix("tune ")
        count = len(material.pool.captions)
        rows = rows_at(i, max(1, spec.tuning.pictures), count, spec.seed + _PICTURES)[: spec.tuning.pictures]
        pictures, captions = material.some_pictures(material.pool, rows)
        frames, spoken = pictures[:0], []
        if source != NO_CLIPS:
            usable, said = self.captions_of(source)
            chosen = usable[rows_at(i, spec.tuning.batch, len(usable), spec.seed)]
            frames = material.unlabelled.pictures(chosen, np.arange(spec.clips.frames))
            spoken = [said[row] for row in chosen]
        loss = self.tuned.loss(
            pictures.to(self.device), captions, frames.to(self.device), spoken, normalise=spec.tuning.normalise
        )
        return torch.cat([pictures, frames]), loss

    def _clip_loss(self, i: int) -> tuple[Tensor, Loss]:
        """Exact captions. Half of the clips run backwards, and their captions say so: twice as much motion is seen."""
        spec, exact = self.spec, self.material.exact
        if self._known is None:
            values = exact.pictures(np.arange(exact.n), self.material.read)
            self._known = tokens(self.frozen, values, spec.captioner.frames)
        rows = rows_at(i, spec.refined.batch, exact.n, spec.seed)
        back = torch.rand(len(rows), generator=generator(spec.seed, self.step, stream=1)) < 0.5
        seen = self._known[torch.from_numpy(rows).to(self.device)]
        seen = torch.where(back.to(self.device)[:, None, None, None], seen.flip(1), seen)
        captions = [exact.captions[row] for row in rows]
        captions = [reversed_in_time(c) if turn else c for c, turn in zip(captions, back.tolist(), strict=True)]
        return exact.pictures(rows, self.material.read), _told(self.captioner, seen, captions)

    def _describe(self, name: str, i: int) -> None:
        """The captioner writes of the next clips, on frames one by one or on several together."""
        clips = self.material.unlabelled
        rows = np.arange(clips.n)[i * self.spec.together : (i + 1) * self.spec.together]
        self.captioner.eval()
        if name == "describe frames":
            seen = tokens(self.frozen, clips.pictures(rows, self.material.described))
            texts = self.captioner.write(seen)
            each = self.spec.clips.described_frames
            self.written["frames"] += [texts[j : j + each] for j in range(0, len(texts), each)]
        else:
            seen = tokens(self.frozen, clips.pictures(rows, self.material.read), self.spec.captioner.frames)
            self.written["clip"] += self.captioner.write(seen)
        self.captioner.train()

    def sources(self) -> dict[str, list[str]]:
        """What each source says of every clip, "" for nothing; of frames, the one in the middle. All are described."""
        if not self._said:
            clips, frames, titles = self.written["clip"], self.written["frames"], self.material.titles
            self._said = {
                "clip": clips,
                "frames": [each[len(each) // 2] for each in frames],
                "metadata": titles,
                MERGED: [merged(*said) for said in zip(clips, frames, titles, strict=True)],
                "exact": self.material.unlabelled.captions,
            }
        return self._said

    def captions_of(self, source: str) -> tuple[np.ndarray, list[str]]:
        """The clips of which a source says something, and all that it says. Raises `DataError` for too few of them."""
        said = self.sources()[source]
        usable = np.flatnonzero([bool(caption) for caption in said])
        if len(usable) < self.spec.tuning.batch:
            raise DataError(
                f"{source} captions say something of {len(usable)} clips only, a batch has {self.spec.tuning.batch}: "
                "a longer training of the captioner, or more clips, may help"
            )
        return usable, said

    # --- what the loop asks ---

    def look(self) -> dict[str, Any]:
        """Held-out pictures and clips with exact captions; at the end retrieval of all towers, which is printed."""
        name, _ = self.spec.place(max(0, self.step - 1))
        last = self.step == self.spec.steps
        if last:
            self.measured[MERGED] = self.looks.measure(self.tuned)
        row = self.looks.row(name, self.captioner, self.tuned)
        if last:
            row |= _flat(self.measured) | _flat(written.qualities(self), "says_")
            print(written.report(self))
        return {"step": self.step, "part": name, **row}

    def write_weights(self, folder: Path) -> None:
        written.write_weights(self, folder)

    def describe(self, folder: Path) -> dict[str, Any]:
        return written.describe(self, folder)

    @cached_property
    def mark(self) -> str:
        """Of pictures, clips and the tower at the start."""
        seen = hashlib.sha256(self.material.mark.encode() + json.dumps(self.start.config, sort_keys=True).encode())
        for tensor in self.frozen.state_dict().values():
            seen.update(tensor.cpu().numpy().tobytes())
        return seen.hexdigest()[:12]

    def state(self) -> dict[str, Any]:
        return {
            "spec": self.spec.dump(), "step": self.step, "captioner": self.captioner.state_dict(),
            "tuned": self.tuned.state_dict(), "written": self.written, "measured": self.measured,
            "optimiser": None if self.optimiser is None else self.optimiser.state_dict(),
            "record": self.record.state(), "mark": self.mark,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Raises `SpecError` where the run started from another tower, or saw other pictures or clips."""
        if state["mark"] != self.mark:
            raise SpecError(
                "the stopped run began with another tower or other clips: use --fresh, or another folder with --out"
            )
        self.step = state["step"]
        if state["optimiser"] is not None:
            self._begin(self.spec.place(self.step - 1)[0])
            assert self.optimiser is not None
            self.optimiser.load_state_dict(state["optimiser"])
        self.captioner.load_state_dict(state["captioner"])
        self.tuned.load_state_dict(state["tuned"])
        self.written, self.measured, self._said = state["written"], state["measured"], {}
        self.record = Record.restored(state["record"])


def _flat(table: dict[str, dict[str, float]], before: str = "") -> dict[str, float]:
    return {f"{before}{one}_{what}": value for one, row in table.items() for what, value in row.items()}


def _told(captioner: Captioner, seen: Tensor, captions: list[str]) -> Loss:
    own, trivial = captioner.loss(seen, captions)
    return Loss(own, own, trivial)
