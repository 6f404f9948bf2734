"""DAVIS and ADE20k at each block of a vision transformer, as PE measures frozen features (arXiv 2504.13181, B.3).

| protocol | readout | score |
|---|---|---|
| davis | labels carried by the nearest tokens (`vision.tasks.tracking`) | J&F of the validation clips |
| ade20k | batch normalisation and a linear layer, all blocks at once | mean IoU, over all validation pictures |

Pictures are squashed to the encoder's own size; tokens are taken as they leave a block, without the last norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tsprobe.capture.hooks import layer_tokens
from tsprobe.errors import DataError, SpecError
from tsprobe.types import Batch
from vision.encoders.base import ImageEncoder
from vision.images import to_panel
from vision.tasks import ade20k as files_of
from vision.tasks import files, tracking
from vision.tasks.folders import read_davis

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from tsprobe.encoders.base import Encoder

RATE, STEPS, BATCH = 1e-3, 2000, 16  # of AdamW (PE, B.3.3, gives the rate alone)


def davis(encoder: Encoder, folder: Path) -> dict[str, float]:
    """J&F of DAVIS 2017, in points, at each block. Raises `DataError` for a folder in another format."""
    seen = _image_encoder(encoder)
    names = blocks(seen)
    frames, objects = read_davis("davis", files.folder("davis", str(folder)), seen.look.size)
    found = tracking.by_layer(seen, frames, objects, grid=seen.look.grid, layers=names)
    return {name: 50 * (region + border) for name, (region, border) in found.items()}


def ade20k(encoder: Encoder, folder: Path, *, steps: int = STEPS, seed: int = 0) -> dict[str, float]:
    """Mean IoU of the validation pictures, in points, at each block, of linear layers trained on the others.

    Classes that no validation picture shows and no pixel is given do not count. Raises `DataError` for a folder in
    another format.
    """
    seen = _image_encoder(encoder)
    names, size = blocks(seen), seen.look.size
    root = files.folder("ade20k", str(folder))
    train, test = (files_of.pairs("ade20k", root, split) for split in files_of.SPLITS)
    count = 1 + max(int(files_of.classes("ade20k", mask, size).max()) for _, mask in (*train, *test))
    if count < 1:
        raise DataError(f"ade20k: no mask in {root} shows a class")
    heads = _trained(seen, names, train, count, steps, seed)
    tables = {name: torch.zeros(count, count, dtype=torch.long) for name in names}
    for pictures, truth in _batches(seen, test, np.arange(len(test))):
        for name, tokens in _tokens(seen, names, pictures).items():
            with torch.no_grad():
                found = _grown(heads[name.replace(".", "_")](tokens), seen.look.grid, size).argmax(1)
            tables[name] += confusion(truth, found.cpu(), count)
    return {name: 100 * mean_iou(table) for name, table in tables.items()}


def blocks(encoder: Encoder) -> list[str]:
    found = [name for name in encoder.taps if name.startswith("block.")]
    if not found:
        raise SpecError(f"{encoder.name} has no blocks")
    return found


def confusion(truth: Int[Tensor, "B H W"], found: Int[Tensor, "B H W"], count: int) -> Int[Tensor, "C C"]:
    """Pixels of each class (rows) by what they were taken for; -1 is not counted."""
    known = truth >= 0
    return torch.bincount(truth[known] * count + found[known], minlength=count * count).view(count, count)


def mean_iou(table: Int[Tensor, "C C"]) -> float:
    """Mean over the classes that occur, in truth or by mistake."""
    right = table.diagonal()
    either = table.sum(0) + table.sum(1) - right
    return float((right[either > 0] / either[either > 0]).mean())


def _image_encoder(encoder: Encoder) -> ImageEncoder:
    if not isinstance(encoder, ImageEncoder):
        raise SpecError(f"{encoder.name} is no encoder of images")
    return encoder


def _trained(
    encoder: ImageEncoder, names: list[str], pairs: list[tuple[Path, Path]], count: int, steps: int, seed: int
) -> nn.ModuleDict:
    """One head a block, batch normalisation and linear, each with the loss of its own; one pass serves all."""
    rng = np.random.default_rng(seed)
    heads: nn.ModuleDict | None = None
    optimiser: torch.optim.Optimizer | None = None
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-steps * BATCH // len(pairs)))])
    for pictures, truth in _batches(encoder, pairs, order[: steps * BATCH]):
        tokens = _tokens(encoder, names, pictures)
        if heads is None or optimiser is None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                heads = nn.ModuleDict({n.replace(".", "_"): _Head(tokens[n].shape[-1], count) for n in names})
            heads.to(encoder.device)
            optimiser = torch.optim.AdamW(heads.parameters(), RATE)
        small = torch.from_numpy(np.stack([files.shrink(m, encoder.look.grid * 4) for m in truth.numpy()]))
        loss = torch.stack([
            F.cross_entropy(
                _grown(heads[name.replace(".", "_")](x), encoder.look.grid, small.shape[-1]),
                small.to(x.device), ignore_index=-1,
            )
            for name, x in tokens.items()
        ]).sum()  # fmt: skip
        if not bool(loss.isfinite()):  # a batch without a labelled pixel
            continue
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    if heads is None:
        raise DataError("ade20k: there is nothing to train on")
    return heads.eval()


class _Head(nn.Module):
    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(width), nn.Linear(width, count)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T C"]:
        return self.linear(self.norm(x.flatten(0, 1))).view(*x.shape[:2], -1)


def _grown(logits: Float[Tensor, "B T C"], grid: int, size: int) -> Float[Tensor, "B C size size"]:
    maps = logits.transpose(1, 2).unflatten(2, (grid, grid))
    return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)


def _batches(
    encoder: ImageEncoder, pairs: list[tuple[Path, Path]], order: np.ndarray
) -> Iterator[tuple[Batch, Int[Tensor, "B H W"]]]:
    size, read = encoder.look.size, files.read
    for first in range(0, len(order), BATCH):
        part = [pairs[i] for i in order[first : first + BATCH].tolist()]
        x = torch.from_numpy(to_panel(np.stack([read(picture, size) for picture, _ in part])))
        truth = np.stack([files_of.classes("ade20k", mask, size) for _, mask in part])
        yield Batch.whole(x).to(encoder.device), torch.from_numpy(truth)


def _tokens(encoder: ImageEncoder, names: list[str], batch: Batch) -> dict[str, Float[Tensor, "B T D"]]:
    """Patches alone, in float32."""
    with torch.no_grad():
        found = layer_tokens(encoder, encoder.prepare(batch), names)
    first = encoder.look.prefix
    return {name: x[:, first:].float() for name, x in found.items()}


PROTOCOLS: dict[str, Callable[[Encoder, Path], dict[str, float]]] = {"davis": davis, "ade20k": ade20k}
