"""Zero-shot retrieval: the right caption for a picture or clip, and the other way, among all held-out ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from vision.engine.things import reversed_in_time, things

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from vision.models import TextTower

_TOGETHER = 256


def retrieval(seen: Float[Tensor, "N E"], said: Float[Tensor, "N E"], captions: Sequence[str]) -> dict[str, float]:
    """R@1 and R@5 both ways. What has the same caption word by word counts as right too."""
    cosines = F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T
    right = same(captions).to(cosines.device)
    found = {}
    for way, scores in (("captions", cosines), ("seen", cosines.T)):
        for k in (1, 5):
            found[f"{way}_r{k}"] = recall(scores, right, k)
    return found


def recall(scores: Float[Tensor, "N N"], right: Bool[Tensor, "N N"], k: int) -> float:
    """The share of rows that have a right column among the k highest."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float(right.gather(1, best).any(1).float().mean())


def same(captions: Sequence[str]) -> Bool[Tensor, "N N"]:
    """Which captions are the same."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    rows = torch.tensor([number[caption] for caption in captions])
    return rows[:, None] == rows


def mean_of_frames(frames: Float[Tensor, "B*T E"], count: int, *, normalise: bool) -> Float[Tensor, "B E"]:
    """The embedding of a clip: the mean of those of its `count` frames, each of length 1 before or not (PE, 2.3)."""
    frames = F.normalize(frames, dim=-1) if normalise else frames
    return frames.unflatten(0, (-1, count)).mean(1)


@torch.no_grad()
def embedded(text: TextTower, captions: Sequence[str]) -> Float[Tensor, "N E"]:
    return torch.cat([text.encode(captions[i : i + _TOGETHER]) for i in range(0, len(captions), _TOGETHER)])


def direction(seen: Float[Tensor, "N E"], text: TextTower, captions: Sequence[str]) -> dict[str, float]:
    """How often a clip is nearer to its caption than to the caption with every motion turned round, by kind of motion.

    One half is what a guess has. A mean over frames has no order: clip and reversed clip are the same to it.
    """
    found = {}
    moved = [_moves(caption) - {"still"} for caption in captions]
    for name, asked in (("sideways", {"left", "right"}), ("in_depth", {"closer", "away"})):
        rows = [i for i, motions in enumerate(moved) if motions and motions <= asked]
        if not rows:
            continue
        mine = [captions[i] for i in rows]
        video = F.normalize(seen[rows], dim=-1)
        true, turned = (
            (video * F.normalize(embedded(text, texts), dim=-1)).sum(1)
            for texts in (mine, [reversed_in_time(caption) for caption in mine])
        )
        found[f"direction_{name}"] = float(((true > turned).float() + (true == turned).float() / 2).mean())
    return found


def _moves(caption: str) -> set[str]:
    return {thing.motion for thing in things(caption) if thing.motion}
