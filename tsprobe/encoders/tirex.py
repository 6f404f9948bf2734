"""TiRex (Auer et al. 2025, arXiv 2505.23719): patches of a window through a stack of sLSTM cells, trained to forecast.

The window is standardised by its mean and spread, and filled up with missing patches on the left to the whole training
context, so that the recurrent state is what the package makes it whatever the length of the series. Missing values
enter as zeros beside a mask that says so. The cells count in bfloat16.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from tsprobe.encoders import hub, pickles
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import before_end, refuse_longer, right_aligned, token_map
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from pathlib import Path

FAMILY = "tirex"
_CHECKPOINT = "model.ckpt"


class TiRex(Encoder):
    """The stack of a TiRex, one channel a row.

    The package's embedding takes all blocks: means over the tokens of each, normalised, side by side. `final` is the
    last of them; `norm` is what the forecast head consumes.
    """

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="tirex",
        install_as="tirex-ts",
        sizes=(Size("", 12, 512, 35_300_000),),
        code_licence="NXAI Community License",
        weights_licence="NXAI Community License (NX-AI/TiRex)",
        final_is="the last of the blocks in TiRexZero._embed_context(), all of which TiRexEmbedding puts side by side",
    )

    @classmethod
    def load(cls, source: str) -> TiRex:
        """From a hub id or a local folder with model.ckpt. Raises `EncoderError`."""
        folder = hub.find_folder(source, FAMILY, [_CHECKPOINT])
        checkpoint = pickles.read_pickle(folder / _CHECKPOINT, FAMILY)
        settings = _settings(checkpoint, folder)
        with hub.building(folder, FAMILY, _CHECKPOINT):
            module = build(settings)
        state = pickles.tensors_in(checkpoint, folder / _CHECKPOINT, FAMILY)
        state = {name.replace("block_stack.", ""): tensor for name, tensor in state.items()}  # older checkpoints
        return cls(source, hub.fill(module, state, folder, FAMILY), settings)

    def __init__(self, source: str, module: Any, settings: dict[str, Any]) -> None:
        official = source.startswith("NX-AI/TiRex")
        config = module.config
        self._settings = settings
        facts = Facts(
            objective="forecasting",
            context=config.train_ctx_len,
            patch=config.input_patch_size,
            masks_missing=True,
            pretrained_on="part of the Chronos and GIFT-Eval corpora, and synthetic series; see the model card"
            if official
            else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="NXAI Community License" if official else "not declared",
            final_is=self.card.final_is,
        )
        blocks = [f"blocks.{i}" for i in range(len(module.blocks))]
        final = f"block.{len(blocks) - 1}"
        super().__init__(f"{FAMILY}:{source}", module, trunk_taps(blocks, "out_norm"), final, facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of the patches of a whole training context. Raises `EncoderError` past it."""
        context, patch = self.facts.context or 0, self.facts.patch
        refuse_longer(batch, context, self.name)
        values, observed = right_aligned(batch, context)
        patches, _ = self.module.tokenizer.input_transform(torch.where(observed, values.float(), torch.nan))
        seen = patches.isfinite()
        x = torch.cat([torch.where(seen, patches, 0), seen.to(patches.dtype)], dim=-1)  # [R, T, 2 * patch]
        tokens = token_map(batch, before_end(batch, torch.arange(context, 0, -patch)), patch)
        return Inputs({"input": x.to(self.device, self.dtype)}, tokens, batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        return self.module._forward_model(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        """The package leaves the weights of its cells as memory was. They are drawn as in the package xlstm of the same
        authors: gates from N(0, 2 / (5 fan-in)), no recurrence, forget biases from 5 down to -7, steeper with depth."""
        module = build(self._settings)
        with torch.no_grad():
            for i, block in enumerate(module.blocks):
                layer = block.slstm_layer
                for gate in (layer.igate, layer.fgate, layer.zgate, layer.ogate):
                    gate.weight.normal_(std=math.sqrt(2 / (5 * gate.weight.shape[-1])))
                cell = layer.slstm_cell
                cell._recurrent_kernel_.zero_()
                size, depth = cell.config.head_dim, i / max(len(module.blocks) - 1, 1)
                bias = torch.zeros(cell.config.num_heads, cell.config.num_gates, size)
                bias[:, 1] = 5 - 12 * (torch.arange(size) / max(size - 1, 1)) ** (0.3 + 1.3 * depth)  # i, f, z, o
                cell._bias_.copy_(bias.flatten())
        return module


def build(settings: dict[str, Any]) -> Any:
    """A TiRex on the cells in plain torch, which run everywhere."""
    from tirex.models.tirex import TiRexZero

    return TiRexZero(backend="torch", **settings)


def _settings(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, dict):
        raise EncoderError(f"{FAMILY}: {folder / _CHECKPOINT} has no hyper_parameters: it is no checkpoint of TiRex")
    return settings
