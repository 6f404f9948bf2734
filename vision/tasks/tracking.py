"""Tracking by correspondence: masks of the first frames are carried to later ones by the nearest features.

Two ways. `task` makes a dense task for the probe `correspondence`: of each clip, pixels of the first half of the frames
are annotated, and pixels of the second half take the labels of the nearest annotated ones, those of all other clips
among them. `by_layer` runs the protocol of DAVIS as DINO's script has it (Caron et al. 2021;
`eval_video_segmentation.py`), frame by frame, with `propagate` and `region_and_border`. How they differ:

| | `task` with `correspondence` | DAVIS protocol |
|---|---|---|
| annotated | half of the frames | the first frame |
| labels come from | those frames, true | the first frame, and the last 7 with what was carried to them |
| candidates | pixels of all clips | tokens of the same clip, at most 12 tokens away |
| nearest | k is chosen in inner folds | the 5 nearest |
| features | standardised, then of length 1 | of length 1 |
| score | mean IoU of sampled pixels, background included | J and F of whole masks, objects alone |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tsprobe.capture import Reading, extract
from tsprobe.capture.steps import Steps, coarse_layers
from tsprobe.data.panel import Panel
from tsprobe.errors import DataError
from tsprobe.tasks.base import Task
from vision.images import to_panel
from vision.tasks import pixels

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8

    from tsprobe.encoders.base import Encoder

CONTEXT, NEAREST, TEMPERATURE, RADIUS = 7, 5, 0.1, 12  # frames, tokens, of cosine similarities, tokens
_BORDER = 0.008  # of the image's diagonal: how far off a border may be found


def task(
    name: str,
    frames: Sequence[UInt8[np.ndarray, "T 3 H W"]],
    objects: Sequence[Int[np.ndarray, "T H W"]],
    *,
    grid: int,
    seed: int,
    **rest: Any,
) -> Task:
    """A dense task about clips, `objects` 1, 2, ... at their pixels, 0 for the background and -1 for neither.

    The first T // 2 frames of each clip are for training. An object has a class of its own, the background of all clips
    shares one; what no training pixel shows is not asked about. Folds hold out the same moment of all clips.

    Raises `DataError` for a clip of fewer than four frames.
    """
    for i, clip in enumerate(frames):
        if len(clip) < 4:
            raise DataError(f"task {name!r}: clip {i} has {len(clip)} frame{'s' * (len(clip) != 1)}; give at least 4")
    stride = 1 + max(int(ids.max()) for ids in objects)
    unique = [np.where(ids > 0, ids + i * stride, ids) for i, ids in enumerate(objects)]
    halves = [len(clip) // 2 for clip in frames]
    parts = [slice(0, half) for half in halves], [slice(half, None) for half in halves]
    panels = [
        Panel(tuple(to_panel(np.concatenate([clip[part] for clip, part in zip(frames, split, strict=True)]))))
        for split in parts
    ]
    maps = [np.concatenate([ids[part] for ids, part in zip(unique, split, strict=True)]) for split in parts]
    made = pixels.ask(
        name, "classification", "jaccard", (panels[0], panels[1]), (maps[0], maps[1]), (), grid=grid, seed=seed,
        groups=np.concatenate([np.arange(half) for half in halves]), **rest,
    )  # fmt: skip
    seen = np.unique(made.y_train[made.y_train >= 0])
    number = np.full(max(int(ids.max()) for ids in unique) + 2, -1)
    number[seen] = np.arange(len(seen))  # the last number, of what is not asked about, stays -1
    labels = tuple("background" if s == 0 else f"clip {s // stride}, object {s % stride}" for s in seen.tolist())
    return replace(made, y_train=number[made.y_train], y_test=number[made.y_test], labels=labels)


def by_layer(
    encoder: Encoder,
    frames: Sequence[UInt8[np.ndarray, "T 3 H W"]],
    objects: Sequence[Int[np.ndarray, "T H W"]],
    *,
    grid: int,
    layers: Sequence[str] | None = None,
) -> dict[str, tuple[float, float]]:
    """J and F of DAVIS at each layer, means over clips, by the protocol of DAVIS as far as it depends on features.

    Features are read at the middles of `grid * grid` cells, best as many as the encoder has tokens a side; layers
    without tokens of places are left out. Clips that show no object in their first frame are, too.

    Raises `DataError` for a clip of one frame, or where no clip shows an object in its first frame.
    """
    size = frames[0].shape[-1]
    middles = ((np.arange(grid) + 0.5) * size / grid).astype(np.int64)
    cells = (middles[:, None] * size + middles).ravel()
    scores: dict[str, list[tuple[float, float]]] = {}
    for clip, ids in zip(frames, objects, strict=True):
        if not (ids[0] > 0).any():
            continue
        panel = Panel(tuple(to_panel(clip)))
        steps = Steps(np.tile(cells, (len(clip), 1)))
        coarse = coarse_layers(encoder, panel, layers or encoder.taps)
        usable = [name for name in layers or encoder.taps if name not in coarse]
        features = extract(encoder, panel, Reading((steps.pooling,), steps=steps), layers=usable)
        first = one_hot(ids[0], grid, grid, int(ids.max()) + 1)
        for name in usable:
            tokens = torch.from_numpy(features.arrays[name]).reshape(len(clip), grid, grid, -1)
            found = to_masks(propagate(tokens, first), size).numpy()
            scores.setdefault(name, []).append(region_and_border(ids, found))
    if not scores:
        raise DataError("no clip shows an object in its first frame, so there is nothing to track")
    means = {name: np.mean(pairs, axis=0).tolist() for name, pairs in scores.items()}
    return {name: (region, border) for name, (region, border) in means.items()}


def propagate(
    tokens: Float[Tensor, "T h w D"],
    first: Float[Tensor, "h w C"],
    *,
    context: int = CONTEXT,
    nearest: int = NEAREST,
    temperature: float = TEMPERATURE,
    radius: int = RADIUS,
) -> Float[Tensor, "T h w C"]:
    """Shares of C labels at the tokens of each frame, carried from those of the first frame.

    A token takes the labels of the `nearest` tokens of the first and the last `context` frames, by cosine similarity
    over a temperature; candidates lie at most `radius` rows and columns away (0: anywhere).

    Raises `DataError` where labels do not fit the tokens, or there is one frame alone.
    """
    if tokens.ndim != 4 or first.ndim != 3 or first.shape[:2] != tokens.shape[1:3]:
        raise DataError(f"tokens {list(tokens.shape)}, labels {list(first.shape)}: give [T, h, w, D] and [h, w, C]")
    if len(tokens) < 2:
        raise DataError("a clip of one frame has nothing to be tracked; give at least 2")
    (_, h, w, _), c = tokens.shape, first.shape[2]
    unit = torch.nn.functional.normalize(tokens.flatten(1, 2), dim=2)  # [T, h w, D]
    row, column = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    far = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()).to(tokens.device) > radius
    carried = [first.flatten(0, 1).to(unit)]
    for t in range(1, len(tokens)):
        sources = sorted({0, *range(max(t - context, 0), t)})
        similarity = torch.stack([unit[t] @ unit[s].T for s in sources], 1)  # [h w, sources, h w]
        if radius:
            similarity = similarity.masked_fill(far[:, None], -torch.inf)
        similarity = similarity.flatten(1)
        near, index = similarity.topk(min(nearest, similarity.shape[1]), dim=1)
        weights = (near / temperature).softmax(1)
        labels = torch.cat([carried[s] for s in sources])
        carried.append((labels[index] * weights[..., None]).sum(1))
    return torch.stack(carried).reshape(-1, h, w, c)


def to_masks(shares: Float[Tensor, "T h w C"], size: int) -> Int[Tensor, "T H W"]:
    """The label at each of `size * size` pixels: shares read between tokens, each label scaled to its range first."""
    grown = torch.nn.functional.interpolate(shares.movedim(3, 1), (size, size), mode="bilinear", align_corners=False)
    low, high = grown.amin((2, 3), keepdim=True), grown.amax((2, 3), keepdim=True)
    scaled = torch.where(high > 0, (grown - low) / (high - low).clamp(min=1e-12), grown)
    return scaled.argmax(1)


def one_hot(objects: Int[np.ndarray, "H W"], h: int, w: int, labels: int) -> Float[Tensor, "h w C"]:
    """Labels 0 to C - 1 at the middle of each token; -1 counts as 0."""
    at = [((np.arange(n) + 0.5) * side / n).astype(np.int64) for n, side in zip((h, w), objects.shape, strict=True)]
    small = torch.from_numpy(np.maximum(objects[np.ix_(*at)], 0).astype(np.int64))
    return torch.nn.functional.one_hot(small, labels).float()


def region_and_border(truth: Int[np.ndarray, "T H W"], found: Int[np.ndarray, "T H W"]) -> tuple[float, float]:
    """J and F of DAVIS: intersection over union of masks, and F1 of borders, which may be 0.8 % of the diagonal off.

    Means over objects of means over frames, without the first frame, whose masks are given, and the last, as the
    official script has it for more than two frames. Objects are those of the first frame.

    Raises `DataError` where there is none.
    """
    objects = [k for k in np.unique(truth[0]).tolist() if k > 0]
    if not objects:
        raise DataError("the first frame shows no object that could be tracked")
    part = slice(1, -1 if len(truth) > 2 else None)
    reach = max(1, int(np.ceil(_BORDER * np.hypot(*truth.shape[1:]))))
    scores = []
    for k in objects:
        pairs = [(a == k, b == k) for a, b in zip(truth[part], found[part], strict=True)]
        scores.append(np.mean([(_overlap(a, b), _border_f1(a, b, reach)) for a, b in pairs], axis=0))
    region, border = np.mean(scores, axis=0).tolist()
    return region, border


def _overlap(a: Bool[np.ndarray, "H W"], b: Bool[np.ndarray, "H W"]) -> float:
    either = int((a | b).sum())
    return float((a & b).sum() / either) if either else 1.0


def _border_f1(truth: Bool[np.ndarray, "H W"], found: Bool[np.ndarray, "H W"], reach: int) -> float:
    from scipy.ndimage import binary_dilation

    a, b = _border(truth), _border(found)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disc = x * x + y * y <= reach * reach
    precision = (b & binary_dilation(a, disc)).sum() / b.sum()
    recall = (a & binary_dilation(b, disc)).sum() / a.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _border(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels that differ from the one to the right, below, or both, as DAVIS' `seg2bmap`."""
    grown = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = grown[:-1, :-1]
    return (here != grown[:-1, 1:]) | (here != grown[1:, :-1]) | (here != grown[1:, 1:])
