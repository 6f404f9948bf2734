"""A vision transformer of timm at another size of pictures, and by whose rule its positions go there.

PE's own code counts rows and columns in whole patches for the rotary embedding, whatever the size, and resizes the
learned one bilinearly (perception_models, `core/vision_encoder/pe.py` and `rope.py`). timm stretches the rotary grid
to that of the pretraining, and resizes the learned one bicubically with antialiasing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from tsprobe.encoders.tivit import build
from tsprobe.errors import EncoderError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Positions = Literal["meta", "timm"]
RULES = ("meta", "timm")
PE = "vit_pe_"


def chosen_rule(architecture: str, positions: str | None) -> Positions:
    """The rule for an architecture: Meta's for PE, timm's for all others. Raises `EncoderError` for no such rule."""
    if positions not in (None, *RULES):
        raise EncoderError(f"positions={positions!r}: there are {' and '.join(RULES)}")
    own: Positions = "meta" if architecture.startswith(PE) else "timm"
    if positions == "meta" and own != "meta":
        raise EncoderError(f"positions=meta is the rule of PE's code; {architecture} goes by timm's")
    return "timm" if positions == "timm" else own


def config_at(config: dict[str, Any], size: int, patch: int, rule: Positions) -> dict[str, Any]:
    """The config of the same model for pictures of `size` x `size`. Raises `EncoderError` for parts of patches."""
    if size < patch or size % patch:
        raise EncoderError(f"size={size}: pictures must be whole patches of {patch} pixels")
    given: dict[str, Any] = {"img_size": size}
    if rule == "meta":
        given["ref_feat_shape"] = (size // patch, size // patch)  # then nothing is stretched
    return {**config, "model_args": {**config.get("model_args", {}), **given}}


def moved(module: Any, config: dict[str, Any], rule: Positions) -> Any:
    """A module of `config`, the same model for another size, with the weights of `module`. Raises `EncoderError`."""
    other: Any = build(config)
    if rule == "timm":
        if not hasattr(module, "set_input_size"):
            raise EncoderError(f"size: a {type(module).__name__} takes no other size of pictures")
        module.set_input_size(img_size=other.patch_embed.img_size)
    state = module.state_dict()
    if rule == "meta":
        state["pos_embed"] = bilinear(state["pos_embed"], other.patch_embed.grid_size, module.num_prefix_tokens)
    other.load_state_dict(state)
    return other


def bilinear(positions: Float[Tensor, "1 T D"], grid: tuple[int, int], prefix: int) -> Float[Tensor, "1 U D"]:
    """A learned square grid of positions resized without antialiasing; those of special tokens stay as they are."""
    special, patches = positions[:, :prefix], positions[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    picture = patches.transpose(1, 2).unflatten(2, (side, side))
    picture = F.interpolate(picture, size=grid, mode="bilinear", align_corners=False, antialias=False)
    return torch.cat([special, picture.flatten(2).transpose(1, 2)], 1)
