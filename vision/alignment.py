"""What an encoder of pictures learns on: generated scenes, and the masks that say which patches belong together.

The masks are the scenes' own (exact), or the logits of SAM 2.1, `locality_from: sam2:FOLDER_OR_HUB_ID`, as Perception
Encoder has it (section 5.2), over the scenes or over the training pictures of tasks (`series:` in the config). Found
through the entry point `vision` of `tsprobe.lessons`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.alignment.series import HELD_OUT, Lesson, held_out
from tsprobe.errors import SpecError
from tsprobe.types import Batch
from vision.encoders.base import ImageEncoder
from vision.images import to_images, to_panel
from vision.sam import Masks
from vision.world.plan import MOST
from vision.world.scenes import scenes

if TYPE_CHECKING:
    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Encoder

_SIZE = 64  # pixels a side of the scenes, which the encoder brings to its own
_SAM = "sam2:"


class Pictures:
    """Batches of scenes, or of pictures that are given; where asked with maps of what belongs together."""

    def __init__(self, encoder: ImageEncoder, panels: list[Panel], source: str, seed: int, *, segments: bool) -> None:
        if segments and panels and not source:
            raise SpecError("pictures of tasks have no masks: give locality_from: sam2:FOLDER, or locality: 0")
        self._seed, self._segments = seed, segments
        self.what = "training pictures" if panels else "generated scenes"
        self._masks = Masks.load(source.removeprefix(_SAM), encoder.device) if segments and source else None
        self._pictures = np.concatenate([panel.stack() for panel in panels]) if panels else None
        if self._pictures is not None:
            self._parts = held_out(len(self._pictures), seed)

    def lesson(self, number: int, size: int) -> Lesson:
        """The same for the same number, in whatever order it is asked for."""
        maps = None
        if self._pictures is not None:
            rows = self._parts[int(number >= HELD_OUT)]
            picked = np.random.default_rng([self._seed, number]).choice(rows, min(size, len(rows)), replace=False)
            series = self._pictures[picked]
        else:
            found = scenes(size, size=_SIZE, seed=(6, self._seed, number))
            series = to_panel(found.images)
            if self._segments:
                maps = torch.from_numpy(found.instance[:, None] == np.arange(MOST + 1)[:, None, None]).float()
        if self._masks is not None:
            maps = self._masks.of(torch.from_numpy(to_images(series)))
        return Lesson(Batch.whole(torch.from_numpy(np.ascontiguousarray(series, np.float32))), maps=maps)


def lessons(encoder: Encoder, panels: list[Panel], settings: Any, *, segments: bool) -> Pictures | None:
    """None for an encoder that is not one of pictures. Raises `SpecError` for masks of another kind."""
    if not isinstance(encoder, ImageEncoder):
        return None
    source = settings.locality_from
    if source and not source.startswith(_SAM):
        raise SpecError(f"locality_from: {source!r}; for pictures give sam2:FOLDER_OR_HUB_ID, or nothing")
    if source and not source.removeprefix(_SAM):
        raise SpecError("locality_from: sam2: needs a folder or a hub id, such as facebook/sam2.1-hiera-large")
    return Pictures(encoder, panels, source, settings.seed, segments=segments)
