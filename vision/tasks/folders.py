"""Pictures in folders: `imagefolder/DIR` (classes), `nyu/DIR` (depth), `davis/DIR` (tracking).

| source | files below DIR | task |
|---|---|---|
| imagefolder | train/CLASS/*, val/CLASS/* (or test) | classification |
| nyu | train/ and val/ (or test), each with rgb/NAME, depth/NAME, or with rgb_NAME, sync_depth_NAME | depth at pixels |
| davis | JPEGImages/480p/CLIP/*, Annotations/480p/CLIP/*, ImageSets/2017/val.txt (2016; else all clips) | tracking |

Depths are 16-bit pictures in `unit` parts of a metre, or `.npy` in metres; 0 or less, and what is not finite, was not
measured. A path may be followed by settings, as in `nyu/~/data/nyu?size=448&n_train=500`:

| setting | default | meaning |
|---|---|---|
| size | 224 | pixels a side; pictures are squashed to a square |
| n_train, n_test | 0 | pictures, of davis clips (n_train alone), drawn at random; 0 for all |
| seed | 0 | of that draw, and of the pixels that are asked about |
| grid | 16 | pixels asked about: one in each cell of a grid of so many a side |
| unit | 1000 | of nyu: of 1 metre in the numbers of a depth picture |
| frames | 16 | of davis: the first so many frames of each clip, evenly spaced |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.errors import DataError, SpecError, reason
from tsprobe.tasks.base import Classification, Task
from vision.tasks import files, pixels, tracking

if TYPE_CHECKING:
    from jaxtyping import Integer, UInt8

_MOST = 65535  # the largest number of an object
_TRAIN, _TEST = ("train", "training"), ("val", "validation", "test")


@dataclass(frozen=True)
class _Depth(files.Drawn):
    grid: int = 16
    unit: float = 1000.0


@dataclass(frozen=True)
class _Tracked:
    size: int = 224
    n_train: int = 0
    seed: int = 0
    grid: int = 16
    frames: int = 16


def load_imagefolder(name: str) -> Task:
    """Raises `DataError` for a folder, class or picture that is missing or broken, `SpecError` for settings."""
    settings, full, path = files.asked("imagefolder", name, files.Drawn())
    root = files.folder(full, path)
    pairs = []
    for is_test, (names, n) in enumerate(((_TRAIN, settings.n_train), (_TEST, settings.n_test))):
        part = files.subfolder(full, root, names)
        classes = sorted(p for p in part.iterdir() if p.is_dir() and not p.name.startswith("."))
        labelled = [(file, each.name) for each in classes for file in _filled(full, each)]
        chosen = files.some(labelled, n, (settings.seed, is_test))
        split = "test" if is_test else "training"
        pairs.append((files.panel(full, [f for f, _ in chosen], settings.size, split), [c for _, c in chosen]))
    return Classification(full, *pairs, source=str(root))


def _filled(name: str, each: Path) -> list[Path]:
    found = files.pictures(each)
    if not found:
        raise DataError(f"task {name!r}: the class folder {each} has no picture; remove it or fill it")
    return found


def load_nyu(name: str) -> Task:
    """Raises as `load_imagefolder` does, and `DataError` for a picture without a depth, or of other proportions."""
    settings, full, path = files.asked("nyu", name, _Depth())
    if not settings.unit > 0:
        raise SpecError(f"task {full!r}: unit={settings.unit}; give how much of a depth picture is one metre")
    root = files.folder(full, path)
    panels, truths = [], []
    for is_test, (names, n) in enumerate(((_TRAIN, settings.n_train), (_TEST, settings.n_test))):
        pairs = files.some(_pairs(full, files.subfolder(full, root, names)), n, (settings.seed, is_test))
        panels.append(files.panel(full, [rgb for rgb, _ in pairs], settings.size, "test" if is_test else "training"))
        truths.append(np.stack([_depth(depth, settings) for _, depth in pairs]))
    return pixels.ask(
        full, "regression", "r2", (panels[0], panels[1]), (truths[0], truths[1]), ("depth",),
        grid=settings.grid, seed=settings.seed, source=str(root),
    )  # fmt: skip


def _pairs(name: str, part: Path) -> list[tuple[Path, Path]]:
    """Pictures and their depths, by name."""
    if (part / "rgb").is_dir():
        where, start, mates = part / "rgb", "", _named(part / "depth", "")
    else:
        where, start, mates = part, "rgb_", _named(part, "sync_depth_")
    found = []
    for picture in files.pictures(where):
        if picture.name.startswith(start):
            key = (picture.parent.relative_to(where), picture.stem.removeprefix(start))
            if key not in mates:
                raise DataError(f"task {name!r}: the picture {picture} has no depth beside it")
            found.append((picture, mates[key]))
    if not found:
        raise DataError(f"task {name!r}: {part} has neither rgb/ and depth/ nor rgb_* and sync_depth_* with pictures")
    return found


def _named(where: Path, start: str) -> dict[tuple[Path, str], Path]:
    found = [*files.pictures(where), *where.rglob("*.npy")]
    return {(p.parent.relative_to(where), p.stem.removeprefix(start)): p for p in found if p.name.startswith(start)}


def _depth(path: Path, settings: _Depth) -> np.ndarray:
    values = files.shrink(files.read_map(path), settings.size).astype(np.float64)
    values = values if path.suffix == ".npy" else values / settings.unit
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def load_davis(name: str) -> Task:
    """Raises as `load_imagefolder` does, and `DataError` for frames without masks, masks of another size, and clips
    of fewer than four frames."""
    settings, full, path = files.asked("davis", name, _Tracked())
    if settings.frames < 4:
        raise SpecError(f"task {full!r}: frames={settings.frames}; give at least 4")
    root = files.folder(full, path)
    shots, masks = read_davis(
        full, root, settings.size, most=settings.frames, clips=settings.n_train, seed=settings.seed
    )
    return tracking.task(full, shots, masks, grid=settings.grid, seed=settings.seed, source=str(root))


def read_davis(
    name: str, root: Path, size: int, *, most: int = 0, clips: int = 0, seed: int = 0
) -> tuple[list[UInt8[np.ndarray, "T 3 H W"]], list[Integer[np.ndarray, "T H W"]]]:
    """Frames and numbers of objects of each clip, at most so many frames (evenly spaced) and clips; 0 for all.

    Raises as `load_davis` does.
    """
    shots, masks = [], []
    for clip in files.some(_clips(name, root), clips, (seed,)):
        pairs = _frames(name, root, clip)
        if most and len(pairs) > most:
            pairs = [pairs[i * len(pairs) // most] for i in range(most)]
        shots.append(np.stack([files.read(frame, size) for frame, _ in pairs]))
        masks.append(np.stack([files.shrink(_mask(mask), size) for _, mask in pairs]))
    return shots, masks


def _clips(name: str, root: Path) -> list[str]:
    lists = [root / "ImageSets" / year / "val.txt" for year in ("2017", "2016")]
    listed = next((file for file in lists if file.exists()), None)
    if listed is None:
        found: Sequence[str] = sorted(p.name for p in _at(name, root, "JPEGImages").iterdir() if p.is_dir())
    else:
        try:
            found = listed.read_text(encoding="utf-8").split()
            for clip in found:
                files.below(root, clip)
        except (OSError, ValueError) as error:
            raise DataError(f"{listed} cannot be read as a list of clips ({reason(error)})") from error
    if not found:
        raise DataError(f"task {name!r}: no clip in {listed or root / 'JPEGImages'}")
    return list(found)


def _at(name: str, root: Path, what: str) -> Path:
    return files.subfolder(name, root, (f"{what}/480p", f"{what}/Full-Resolution", what))


def _frames(name: str, root: Path, clip: str) -> list[tuple[Path, Path]]:
    frames = files.pictures(_at(name, root, "JPEGImages") / clip)
    if len(frames) < 4:
        raise DataError(
            f"task {name!r}: clip {clip!r} has {len(frames)} frame{'s' * (len(frames) != 1)}; give at least 4"
        )
    masks = {p.stem: p for p in files.pictures(_at(name, root, "Annotations") / clip)}
    lacking = [frame for frame in frames if frame.stem not in masks]
    if lacking:
        raise DataError(f"task {name!r}: the frame {lacking[0]} has no mask in Annotations")
    return [(frame, masks[frame.stem]) for frame in frames]


def _mask(path: Path) -> np.ndarray:
    """Numbers of objects, -1 where it is not said (255)."""
    values = files.read_map(path)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > _MOST:
        raise DataError(f"{path} holds other numbers than objects from 0 to {_MOST}")
    if values.dtype.kind == "b" or set(np.unique(values).tolist()) == {0, 255}:  # one object, in black and white
        return (values > 0).astype(np.int64)
    return np.where(values == 255, -1, values.astype(np.int64))
