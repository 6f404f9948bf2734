"""The PE Video Dataset's format (Bolya et al. 2025, section 2.2 and appendix A.2): `pvd/PATH`.

Shards are tar files of pairs `ID.mp4` and `ID.json` (`facebook/PE-Video` on the Hugging Face hub: `train/000000.tar`,
..., `test/`, and `extended/` without captions). A json has `human_caption`, refined by people, `model_caption` and
`category`, one of ten, beside facts on the video. PATH is a shard, a folder of shards, of which a third of the clips is
for the test, or a folder with `train/` and `test/`.

| setting | default | meaning |
|---|---|---|
| ask | choice | which of four captions is that of the clip; or caption: say it (CIDEr); or category: which (accuracy) |
| frames | 4 | of a clip, evenly spread: a square number |
| text | human | or model: whose captions |
| size | 64 | pixels a side of a frame |
| n_train, n_test | 0 | clips, drawn at random; 0 for all |
| seed | 0 | of that draw, of the split, and of the captions to choose from |

A clip is shown as one picture, its frames in rows in the order of reading (an image grid, Kim et al. 2024, arXiv
2403.18406), so that a tower of pictures sees all of them, and order is a place. Wrong captions are those of other clips
of the split. Videos are decoded by PyAV (`vision.tasks.video`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.data.text import Question, normal
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks.base import Classification, Task
from tsprobe.tasks.language import Questions
from vision.images import to_panel
from vision.tasks import files, video
from vision.tasks.shards import Clip, clips

if TYPE_CHECKING:
    from jaxtyping import UInt8

LICENCE = "CC-BY-NC-4.0 (PE Video Dataset)"
ASKED = "what happens in the video?"
_ASKS, _TEXTS = ("choice", "caption", "category"), ("human", "model")
_CHOICES, _MOST = 4, 64  # captions to choose from, frames


@dataclass(frozen=True)
class _Settings:
    ask: str = "choice"
    frames: int = 4
    text: str = "human"
    size: int = 64
    n_train: int = 0
    n_test: int = 0
    seed: int = 0


def load_pvd(name: str) -> Task:
    """Raises `DataError`, which names shard and member, for what is missing or broken, `SpecError` for settings,
    `MissingPackageError` without PyAV."""
    settings, full, path = files.asked("pvd", name, _Settings())
    side = _check(full, settings)
    video.library(f"clips of {full}")  # before shards are gone through
    parts = [
        files.some(part, n, (settings.seed, is_test))
        for is_test, (part, n) in enumerate(
            zip(_splits(full, path, settings.seed), (settings.n_train, settings.n_test), strict=True)
        )
    ]
    field = "category" if settings.ask == "category" else f"{settings.text}_caption"
    texts = [[_said(clip, field) for clip in part] for part in parts]
    if settings.ask == "choice":
        questions = [_choices(full, each, (settings.seed, i)) for i, each in enumerate(texts)]
    panels = [Panel(tuple(to_panel(np.stack([sheet(clip, settings, side) for clip in part])))) for part in parts]
    if settings.ask == "category":
        pairs = list(zip(panels, texts, strict=True))
        return Classification(full, pairs[0], pairs[1], source=path, licence=LICENCE)
    if settings.ask == "caption":
        questions = [[Question(ASKED, (text,)) for text in each] for each in texts]
    asked = list(zip(panels, questions, strict=True))
    return Questions(full, asked[0], asked[1], source=path, licence=LICENCE)


def sheet(clip: Clip, settings: _Settings, side: int) -> UInt8[np.ndarray, "3 H W"]:
    """The frames of a clip in `side` rows of as many."""
    frames = video.decode(clip.content(), settings.frames, settings.size, clip.where)
    rows = frames.reshape(side, side, *frames.shape[1:]).transpose(2, 0, 3, 1, 4)  # [3, row, H, column, W]
    return rows.reshape(3, side * settings.size, side * settings.size)


def _check(name: str, settings: _Settings) -> int:
    """Rows of frames on a sheet."""
    if settings.ask not in _ASKS or settings.text not in _TEXTS:
        raise SpecError(
            f"task {name!r}: ask={settings.ask!r}, text={settings.text!r}; ask for {', '.join(_ASKS)}, by the text of "
            f"{' or '.join(_TEXTS)}"
        )
    side = math.isqrt(max(0, settings.frames))
    if side * side != settings.frames or not 1 <= settings.frames <= _MOST:
        raise SpecError(f"task {name!r}: frames={settings.frames}; give a square number from 1 to {_MOST}")
    return side


def _splits(name: str, path: str, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Clips for training and for the test. Raises `DataError`."""
    root = files.found(path)
    if root is None:
        raise DataError(f"task {name!r}: {path!r} is no shard, and no folder with shards *.tar")
    if (root / "train").is_dir() and (root / "test").is_dir():
        parts = [_all(name, sorted((root / split).glob("*.tar")), root / split) for split in ("train", "test")]
        return parts[0], parts[1]
    shards = sorted(root.glob("*.tar")) if root.is_dir() else [root]
    every = _all(name, shards, root)
    split = files.a_third(every, (seed, 2))
    if not split[1]:
        raise DataError(f"task {name!r}: {len(every)} clips in {root}; give at least three, or folders train and test")
    return split


def _all(name: str, shards: Sequence[Path], where: Path) -> list[Clip]:
    if not shards:
        raise DataError(f"task {name!r}: {str(where)!r} is no shard, and no folder with shards *.tar")
    found = [clip for shard in shards for clip in clips(shard)]
    if not found:
        raise DataError(f"task {name!r}: no clip in {where}")
    return found


def _said(clip: Clip, field: str) -> str:
    text = clip.said.get(field)
    if not isinstance(text, str) or not normal(text):
        raise DataError(f"{clip.shard}: {clip.key}.json has no {field}")
    return text.strip()


def _choices(name: str, texts: Sequence[str], seed: tuple[int, ...]) -> list[Question]:
    """Each text among three others, in random order. Raises `DataError` where there are not so many that differ."""
    different = list(dict.fromkeys(texts))
    if len(different) < _CHOICES:
        raise DataError(f"task {name!r}: {len(different)} different captions in a split; a choice needs {_CHOICES}")
    rng = np.random.default_rng((*seed, 3))
    asked = []
    for text in texts:
        others = [different[i] for i in rng.permutation(len(different))[:_CHOICES] if different[i] != text]
        offered = [text, *others[: _CHOICES - 1]]
        asked.append(Question(ASKED, text, tuple(offered[i] for i in rng.permutation(_CHOICES))))
    return asked
