"""Mantis (Feofanov et al. 2025, arXiv 2502.15637; 2026, arXiv 2602.17868) and UTICA (Moakher et al. 2026, arXiv
2603.01348): small transformers for classification, trained to tell series apart rather than to continue them.

A series of any length is resized to 512 points and cut into 32 tokens, so a token covers a 32nd of the series, whatever
that is in steps; from a series of more than 1024 steps the resizing reads some steps and skips others. The class token
comes first in MantisV1, of which UTICA is a checkpoint, and last in MantisV2. Shapes are standardised, but each token
also holds the mean and spread of its patch as they are, so level and scale can be read.

In MantisV1 a block is a `ModuleList` of attention and feed-forward that is never called, and the residual sum belongs
to neither: a block's output is read where it enters the next one.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, Tap, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import refuse_missing
from tsprobe.types import Batch, Inputs, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

FAMILY = "mantis"
LENGTH = 512  # points that MantisV2 was trained on; MantisV1 says so itself
_PICKLE = "pytorch_model.bin"  # UTICA is published as nothing else
_LAYERS = "transf_unit.transformer.layers"
_CAUKER = "CauKer-2M, two million synthetic series"
_ARCHIVES = ("UCR", "UEA")
# hub id: objective, pretraining data, evaluation sets among it, licence of the weights
_RELEASES: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "paris-noah/Mantis-8M": ("contrastive", "real series, among them those of UCR and UEA", _ARCHIVES, "MIT"),
    "paris-noah/MantisPlus": ("contrastive", _CAUKER, (), "MIT"),
    "paris-noah/MantisV2": ("contrastive", _CAUKER, (), "MIT"),
    "fegounna/Utica": ("self-distillation", "synthetic series of CauKer", (), "not declared"),
}


class Mantis(Encoder):
    """The transformer of a MantisV1 or MantisV2, one channel a row; its projector is not run.

    `final` is the last block. Its users take the class token (pooling `cls`), and the authors recommend an earlier
    block with class token and mean side by side.
    """

    module: Any  # with the attributes of the package's own classes
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="contrastive or self-distillation",
        package="mantis",
        extra="models",
        install_as="mantis-tsfm",
        sizes=(Size("Mantis-8M, MantisPlus, Utica", 6, 256, 8_103_936), Size("MantisV2", 6, 256, 4_188_672)),
        code_licence="Apache-2.0",
        weights_licence="MIT (paris-noah/*); not declared (fegounna/Utica)",
        final_is="MantisTrainer.transform(): the class token after the last block, of each channel, side by side",
    )

    @classmethod
    def load(cls, source: str) -> Mantis:
        """From a hub id or a local folder. Raises `EncoderError`."""
        folder = hub.find_folder(source, FAMILY, [_PICKLE])
        state = {_renamed(name): tensor for name, tensor in hub.read_state(folder, FAMILY, _PICKLE).items()}
        second = any(name.startswith(f"{_LAYERS}.0.attention.") for name in state)
        distilled = "transf_unit.mask_token" in state
        bare = distilled and not (folder / "config.json").exists()  # UTICA is of the default architecture
        config = {} if bare else hub.read_config(folder, FAMILY)
        with hub.building(folder, FAMILY):
            module = build(config, second)
        absent, unused = ((), ()) if not distilled else (("prj.",), ("transf_unit.mask_token", "transf_unit.norm."))
        hub.fill(module, state, folder, FAMILY, absent=absent, unused=unused)
        return cls(source, module, config, "self-distillation" if distilled else "contrastive")

    def __init__(self, source: str, module: Any, config: dict[str, Any], objective: str) -> None:
        objective, data, overlaps, licence = _RELEASES.get(source, (objective, "not declared", (), "not declared"))
        self._config = config
        self._second = hasattr(module, "remove_transf_layers")
        self._length = LENGTH if self._second else module.seq_len
        facts = Facts(
            objective=objective,
            min_length=2,  # one step is standardised to its own rounding error
            pretrained_on=data,
            overlaps=overlaps,
            code_licence=self.card.code_licence,
            weights_licence=licence,
            final_is=self.card.final_is,
        )
        depth = len(module.transf_unit.transformer.layers)
        if self._second:
            taps = trunk_taps([f"{_LAYERS}.{i}" for i in range(depth)], select=lambda states: states.squeeze(1))
        else:
            taps = {"embedding": Tap(f"{_LAYERS}.0.0", "input")}
            taps |= {f"block.{i}": Tap(f"{_LAYERS}.{i + 1}.0", "input") for i in range(depth - 1)}
            taps[f"block.{depth - 1}"] = Tap("transf_unit.transformer")
        super().__init__(f"{FAMILY}:{source}", module, taps, list(taps)[-1], facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of the tokens of one resized series, and the class token. Raises `EncoderError` for missing
        values, which it cannot mask."""
        refuse_missing(batch, self.name)
        resized = resize(batch, self._length)
        tokens = even_map(batch, self.module.num_patches, cls_last=self._second)
        return Inputs({"x": resized[:, None].to(self.device, self.dtype)}, tokens, batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return build(self._config, self._second)


def build(config: dict[str, Any], second: bool) -> Any:
    """MantisV1 or MantisV2 with new weights, which gives the last block. Like the package it takes what it knows of a
    config; the defaults are those of the released checkpoints."""
    from mantis.architecture import MantisV1, MantisV2

    architecture = MantisV2 if second else MantisV1
    known = inspect.signature(architecture).parameters
    given = {key: value for key, value in config.items() if key in known}
    module = architecture(**{**given, "device": "cpu", "pre_training": False})
    module.return_transf_layer = -1
    return module


def resize(batch: Batch, length: int) -> Float[Tensor, "R W"]:
    """Each channel of each series, without its padding, on a line between its steps, as the package recommends."""
    rows = batch.values.new_empty((*batch.values.shape[:2], length), dtype=torch.float32)  # [B, C, W]
    for steps in batch.lengths.unique().tolist():
        same = batch.lengths == steps
        series = batch.values[same, :, :steps].float()
        rows[same] = F.interpolate(series, size=length, mode="linear", align_corners=False)
    return rows.flatten(0, 1)


def even_map(batch: Batch, patches: int, *, cls_last: bool) -> TokenMap:
    """Token t of P covers the steps that overlap with [t S / P, (t + 1) S / P); the class token covers none."""
    steps = torch.arange(patches + 1, device=batch.lengths.device) * batch.lengths[:, None]  # [B, P + 1]
    start, stop = steps[:, :-1] // patches, -(-steps[:, 1:] // patches)
    around = (0, 1) if cls_last else (1, 0)
    rows = batch.values.shape[1]
    start, stop = (F.pad(edge, around).repeat_interleave(rows, 0) for edge in (start, stop))  # [R, P + 1]
    return TokenMap(stop > start, start, stop, patches if cls_last else 0)


def _renamed(name: str) -> str:
    """Checkpoints of the first release say `vit_unit` for what is called `transf_unit` today."""
    return re.sub(r"^vit_unit\.", "transf_unit.", name)
