"""What a video run works on: pictures, clips, titles, and the tokens that the frozen tower makes of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from tsprobe.errors import SpecError
from vision.engine.films import Films, films, moments
from vision.engine.titles import titles
from vision.pretraining.augment import plain
from vision.pretraining.pool import Pool, pools
from vision.pretraining.video.spec import VideoSpec

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from vision.models import Tower

_EXACT, _UNLABELLED, _HELD_OUT, _TITLES = range(1, 5)  # streams of the world's seed
_TOGETHER = 256  # pictures that go through a tower without gradients


class Material:
    """Drawn when the run starts: all of it follows from the spec."""

    def __init__(self, spec: VideoSpec, pictures: tuple[Pool, Pool] | None = None) -> None:
        self.spec = spec
        self.pool, self.held_pictures = pictures or pools(spec.world)
        self.exact = self._films(spec.clips.exact, _EXACT)
        self.unlabelled = self._films(spec.clips.unlabelled, _UNLABELLED)
        self.held = self._films(spec.clips.held_out, _HELD_OUT)
        self.titles = titles(
            self.unlabelled.truth,
            missing=spec.titles.missing,
            wrong=spec.titles.wrong,
            seed=(spec.world.seed, _TITLES),
        )
        given = sum(map(bool, self.titles))
        if "metadata" in spec.compare and given < spec.tuning.batch:
            raise SpecError(
                f"{given} clips have a title, a batch has {spec.tuning.batch}: lower titles.missing, or draw more clips"
            )
        self.read = moments(spec.clips.frames, spec.captioner.frames)
        self.described = moments(spec.clips.frames, spec.clips.described_frames)

    def _films(self, n: int, stream: int) -> Films:
        clips, world = self.spec.clips, self.spec.world
        return films(
            n, frames=clips.frames, size=self.spec.size, drawn=world.size, objects=clips.objects,
            seed=(world.seed, stream),
        )  # fmt: skip

    @property
    def mark(self) -> str:
        """Tells this material from another: a generator that has been changed draws other clips."""
        seen = hashlib.sha256(self.pool.mark.encode())
        for part in (self.exact, self.unlabelled, self.held):
            seen.update(part.frames[:4].tobytes() + "\n".join(part.captions).encode())
        return seen.hexdigest()[:12]

    def some_pictures(self, pool: Pool, rows: np.ndarray) -> tuple[Float[Tensor, "B 3 H W"], list[str]]:
        """Pictures at the size of the run, and their captions."""
        batch = pool.batch(rows, self.spec.size)
        return plain(batch.values, self.spec.size), batch.captions


@torch.no_grad()
def tokens(tower: Tower, pictures: Float[Tensor, "B*F 3 H W"], frames: int = 1) -> Float[Tensor, "B F P D"]:
    """Patch tokens after the last norm, without CLS, of clips of so many frames."""
    device = next(tower.parameters()).device
    parts = [tower(pictures[i : i + _TOGETHER].to(device)) for i in range(0, len(pictures), _TOGETHER)]
    return torch.cat(parts)[:, int(tower.shape.cls) :].unflatten(0, (-1, frames))
