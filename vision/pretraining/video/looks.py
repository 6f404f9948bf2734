"""Looks at held-out pictures and clips, whose captions are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.diagnostics.measures import effective_rank
from vision.engine.quality import quality
from vision.pretraining.video.material import Material, tokens
from vision.pretraining.video.retrieval import direction, embedded, mean_of_frames, retrieval
from vision.pretraining.video.spec import VideoSpec

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from vision.engine.captioner import Captioner
    from vision.models import Tower
    from vision.pretraining.video.tuned import Tuned


class Looks:
    """All at the size of the run. Tokens of the frozen tower are made once."""

    def __init__(self, spec: VideoSpec, material: Material, frozen: Tower) -> None:
        self.spec, self.held, self.frozen = spec, material.held, frozen
        rows = np.arange(len(material.held_pictures.captions))
        self.pictures, self.captions = material.some_pictures(material.held_pictures, rows)
        self.frames = material.held.pictures(np.arange(material.held.n), np.arange(spec.clips.frames))
        self.read = material.held.pictures(np.arange(material.held.n), material.read)
        self._tokens: dict[str, Tensor] = {}

    def tokens(self, of: str) -> Float[Tensor, "B F P D"]:
        """Of the held-out "pictures" or "clips"."""
        if of not in self._tokens:
            values, frames = (self.pictures, 1) if of == "pictures" else (self.read, self.spec.captioner.frames)
            self._tokens[of] = tokens(self.frozen, values, frames)
        return self._tokens[of]

    @torch.no_grad()
    def row(self, part: str, captioner: Captioner, tuned: Tuned) -> dict[str, Any]:
        """The loss of the part that is under way, of a guess, and the effective rank of means of patches."""
        if part.startswith("tune"):
            seen = tokens(tuned.tower, self.pictures)
            loss = tuned.loss(self.pictures.to(seen.device), self.captions, self.pictures[:0].to(seen.device), [],
                              normalise=self.spec.tuning.normalise)  # fmt: skip
            numbers = {"own": float(loss.own), "trivial": float(loss.trivial)}
        else:
            of = "pictures" if part.endswith(("pictures", "frames")) else "clips"
            captions = self.captions if of == "pictures" else self.held.captions
            seen = self.tokens("pictures")
            captioner.eval()
            own, trivial = captioner.loss(self.tokens(of), captions)
            numbers = {"own": float(own), "trivial": float(trivial)}
            if of == "clips":
                said = quality(captioner.write(self.tokens(of)), self.held.truth)
                numbers |= {f"says_{what}": value for what, value in said.items()}
            captioner.train()
        rank = effective_rank(seen.mean((1, 2)).double())
        return {**{name: round(value, 6) for name, value in numbers.items()}, "rank_means": round(rank, 2)}

    @torch.no_grad()
    def measure(self, tuned: Tuned) -> dict[str, float]:
        """Retrieval of pictures and of clips by both towers, and whether the direction of motion is told."""
        tuned.eval()
        tower, count = tuned.tower, self.spec.clips.frames
        device = next(tower.parameters()).device

        def encoded(values: Tensor) -> Tensor:
            return torch.cat([tower.encode(part.to(device)) for part in values.split(256)])

        pictures = retrieval(encoded(self.pictures), embedded(tuned.text, self.captions), self.captions)
        video = mean_of_frames(encoded(self.frames), count, normalise=self.spec.tuning.normalise)
        clips = retrieval(video, embedded(tuned.text, self.held.captions), self.held.captions)
        found = {f"pictures_{name}": value for name, value in pictures.items()}
        found |= {f"clips_{name}": value for name, value in clips.items()}
        found |= direction(video, tuned.text, self.held.captions)
        tuned.train()
        return {name: round(value, 4) for name, value in found.items()}
