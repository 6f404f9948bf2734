"""Chronos-2 (Ansari et al. 2025, arXiv 2510.15821): attention over time, and over the channels of a series.

Each series is a group of its own: its channels see each other, and no other series of the batch. Besides [REG] there
is a masked output patch at the end; both are masked. Like Chronos-Bolt it standardises each channel first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.chronos_bolt import check_stride
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import patch_starts, refuse_longer, token_map, with_nan
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "chronos-2"


class Chronos2(Encoder):
    """The encoder of a Chronos-2 forecaster, one row a channel, the channels of a series in one group. `module` is
    the whole forecaster; only its encoder is run."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="chronos",
        extra="models",
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (amazon/chronos-2, autogluon/chronos-2-*)",
        final_is="Chronos2Pipeline.embed(): the encoder's states after its final norm, [REG] and output patch aside",
        sizes=(Size("", 12, 768, 119_477_664),),
    )

    @classmethod
    def load(cls, source: str) -> Chronos2:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from chronos.chronos2 import Chronos2Model
        from chronos.chronos2.config import Chronos2CoreConfig

        folder, _, config = hub.described(source, FAMILY, "t5", Chronos2CoreConfig)
        return cls(source, hub.load_pretrained(Chronos2Model, config, folder, FAMILY))

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith(("amazon/chronos-2", "autogluon/chronos-2"))
        config = module.chronos_config
        check_stride(config, source, FAMILY)
        facts = Facts(
            objective="forecasting",
            context=config.context_length,
            patch=config.input_patch_size,
            masks_missing=True,
            joint_channels=True,
            pretrained_on="part of the Chronos and GIFT-Eval corpora, and synthetic series; see the model card"
            if official
            else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        blocks = [f"encoder.block.{i}" for i in range(len(module.encoder.block))]
        super().__init__(f"{FAMILY}:{source}", module, trunk_taps(blocks, "encoder.final_layer_norm"), "norm", facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of ceil(S / patch) tokens, then [REG] where the model has it and one masked output patch. Raises
        `EncoderError` past the context."""
        config = self.module.chronos_config
        refuse_longer(batch, config.context_length, self.name)
        patch, channels = config.input_patch_size, batch.values.shape[1]
        tokens = token_map(batch, patch_starts(batch, patch), patch, suffix=int(config.use_reg_token) + 1)
        groups = torch.arange(len(batch.lengths)).repeat_interleave(channels)  # [R]
        context = with_nan(batch)
        return Inputs({"context": context.to(self.device), "group_ids": groups.to(self.device)}, tokens, channels)

    def run(self, inputs: Inputs) -> Any:
        return self.module.encode(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)
