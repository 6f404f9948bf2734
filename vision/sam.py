"""Mask logits of SAM 2.1 over a grid of points: which pixels the model would take together with each point.

Perception Encoder (arXiv 2504.13181, section 5.2): one mask a point, no threshold on quality or on the mask itself, and
logits rather than the encoder's features, which have global tokens and blur when they are resized. The model is
transformers' `Sam2Model`, from a folder or the hub. Its maps are made once a picture and then read from disk.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from tsprobe.encoders import hub
from tsprobe.errors import DAMAGE, EncoderError, MissingPackageError, first_line
from tsprobe.files import read_array, replace_file

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

POINTS = 16  # a side; PE has 32 at 1024 pixels
MAP = 32  # pixels a side of the maps that are kept
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AT_ONCE = 64  # points
_FAMILY = "sam2"


class Masks:
    """Maps `[B, POINTS², MAP, MAP]` of pictures."""

    def __init__(self, model: Any, name: str, folder: Path | None = None) -> None:
        self._model, self._size = model, int(model.config.vision_config.backbone_config.image_size[0])
        weights = hashlib.sha256(next(model.parameters()).detach().cpu().numpy().tobytes()).hexdigest()[:8]
        mark = hashlib.sha256(f"{name} {weights} {POINTS} {MAP}".encode()).hexdigest()[:12]
        self.folder = (folder or Path(tempfile.gettempdir(), "tsprobe-masks")) / mark

    @classmethod
    def load(cls, source: str, device: torch.device) -> Masks:
        """Raises `EncoderError` for a folder or id that holds no SAM 2, `MissingPackageError` without transformers."""
        try:
            from transformers import Sam2Config, Sam2Model
        except ModuleNotFoundError as error:
            raise MissingPackageError("transformers", f"masks of {source}", "vision") from error
        folder = hub.find_folder(source, _FAMILY)
        config = hub.read_config(folder, _FAMILY)  # without names of code, which transformers would fetch and run
        try:
            model: Any = Sam2Model.from_pretrained(folder, config=Sam2Config.from_dict(config), use_safetensors=True)
        except (OSError, SafetensorError, *DAMAGE) as error:
            raise EncoderError(f"{_FAMILY}: {source} cannot be loaded: {first_line(error)}") from error
        return cls(model.to(device).eval().requires_grad_(False), source)

    def of(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M h w"]:
        """Of pictures from 0 to 1; those of a picture that has been seen are read."""
        found = []
        for picture in pictures:
            shown = hashlib.sha256(picture.numpy().tobytes()).hexdigest()[:16]
            file = self.folder / f"{shown}.npy"
            kept = _read(file)
            if kept is None:
                kept = self._logits(picture).half().cpu().numpy()
                replace_file(file, lambda handle, kept=kept: np.save(handle, kept))  # type: ignore[misc]
            found.append(torch.from_numpy(kept).float())
        return torch.stack(found)

    @torch.no_grad()
    def _logits(self, picture: Float[Tensor, "3 H W"]) -> Float[Tensor, "M h w"]:
        device = next(self._model.parameters()).device
        x = picture[None].to(device)
        x = F.interpolate(x, (self._size, self._size), mode="bilinear", align_corners=False, antialias=True)
        mean, std = (x.new_tensor(part)[:, None, None] for part in (_MEAN, _STD))
        seen = self._model.get_image_embeddings((x - mean) / std)
        middles = (torch.arange(POINTS, device=device) + 0.5) * self._size / POINTS
        points = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), -1).view(1, -1, 1, 2)
        maps = []
        for part in points.split(_AT_ONCE, 1):
            labels = torch.ones(part.shape[:3], dtype=torch.int64, device=device)
            out = self._model(
                image_embeddings=seen, input_points=part, input_labels=labels, multimask_output=False
            ).pred_masks  # [1, m, 1, h, w]
            maps.append(F.interpolate(out[0].float(), (MAP, MAP), mode="bilinear", antialias=True)[:, 0])
        return torch.cat(maps)


def _read(file: Path) -> np.ndarray | None:
    """None where there is none, or a damaged one."""
    try:
        found = read_array(file)
    except (OSError, ValueError):
        return None
    return found if found.shape == (POINTS * POINTS, MAP, MAP) and found.dtype == np.float16 else None
