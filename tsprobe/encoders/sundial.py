"""Sundial (Liu et al. 2025, arXiv 2502.00816), in the implementation that sktime carries: a causal patch decoder.

Its head draws the next patches by flow matching; the decoder below it is read here. The window is standardised first,
as `generate` does it (n in the spread). The first patch of a series may be filled in part: the patch embedding is told
how far, which the model itself does only where all series of a batch are of one length.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import patch_starts, refuse_longer, refuse_missing, right_aligned, standardised, token_map
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "sundial"
CONTEXT = 2880  # steps of its pretraining windows; the config does not say


class Sundial(Encoder):
    """The decoder of a Sundial forecaster, one channel a row. `module` is the whole forecaster; its head is not run."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="transformers",
        extra="models",
        also=("sktime.libs.sundial",),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (thuml/sundial-base-128m)",
        final_is="SundialModel(...).last_hidden_state: the states after the last norm (there is no embed call)",
        sizes=(Size("base", 12, 768, 128_329_680),),
    )

    @classmethod
    def load(cls, source: str) -> Sundial:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from sktime.libs.sundial.configuration_sundial import SundialConfig
        from sktime.libs.sundial.modeling_sundial import SundialForPrediction

        return cls(source, hub.load_vendored(SundialForPrediction, source, FAMILY, "sundial", SundialConfig))

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith("thuml/sundial-")
        config = module.config
        facts = Facts(
            objective="forecasting",
            context=CONTEXT,
            patch=config.input_token_len,
            pretrained_on="TimeBench" if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        taps = trunk_taps([f"model.layers.{i}" for i in range(config.num_hidden_layers)], "model.norm")
        super().__init__(f"{FAMILY}:{source}", module, taps, "norm", facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of ceil(S / patch) tokens. Raises `EncoderError` past the context and for missing values."""
        refuse_longer(batch, CONTEXT, self.name)
        refuse_missing(batch, self.name)
        patch = self.module.config.input_token_len
        width = math.ceil(batch.values.shape[-1] / patch) * patch
        values, observed = right_aligned(batch, width)  # [R, W]
        values = standardised(values, observed, correction=0, eps=1e-5)
        patches = torch.cat([part.unfold(-1, patch, patch) for part in (values, observed.to(values.dtype))], -1)
        kwargs = {
            "patches": patches.to(self.device, self.dtype),  # [R, T, 2 * patch]
            "attention_mask": observed.unfold(-1, patch, patch).any(-1).long().to(self.device),
        }
        return Inputs(kwargs, token_map(batch, patch_starts(batch, patch), patch), batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        parts = self.module.model.embed_layer
        patches = inputs.kwargs["patches"]
        embedded = parts.output_layer(parts.act(parts.hidden_layer(patches))) + parts.residual_layer(patches)
        mask = inputs.kwargs["attention_mask"]
        with hub.quiet():
            return self.module.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False, return_dict=True)

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)
