"""Time-MoE (Shi et al. 2024, arXiv 2409.16040), in the implementation that sktime carries: a causal decoder over steps.

Each step is a token, and each token goes through the two of eight experts that a router picks for it. The caller is to
standardise the window, so that is done here as in the model's card (n - 1 in the spread), over the observed steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import before_end, refuse_longer, right_aligned, standardised, token_map
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "time-moe"


class TimeMoE(Encoder):
    """The decoder of a Time-MoE forecaster, one channel a row. No token sees a padded or missing step; steps keep their
    distance in time. `module` is the whole forecaster; its heads are not run."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="transformers",
        extra="models",
        also=("sktime.libs.timemoe",),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (Maple728/TimeMoE-50M, -200M)",
        final_is="TimeMoeModel(...).last_hidden_state: the states after the last norm (there is no embed call)",
        sizes=(Size("50M", 12, 384, 113_352_192), Size("200M", 12, 768, 453_196_800)),
    )

    @classmethod
    def load(cls, source: str) -> TimeMoE:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from sktime.libs.timemoe.timemoe import TimeMoeForPrediction
        from sktime.libs.timemoe.timemoe_config import TimeMoeConfig

        return cls(source, hub.load_vendored(TimeMoeForPrediction, source, FAMILY, "time_moe", TimeMoeConfig))

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith("Maple728/TimeMoE")
        config = module.config
        facts = Facts(
            objective="forecasting",
            context=config.max_position_embeddings,
            masks_missing=True,
            pretrained_on="Time-300B" if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        taps = trunk_taps([f"model.layers.{i}" for i in range(config.num_hidden_layers)], "model.norm")
        super().__init__(f"{FAMILY}:{source}", module, taps, "norm", facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of S tokens, a step each. Raises `EncoderError` past the context."""
        refuse_longer(batch, self.module.config.max_position_embeddings, self.name)
        values, observed = right_aligned(batch)  # [R, S]
        kwargs = {
            "input_ids": standardised(values, observed, correction=1)[..., None].to(self.device, self.dtype),
            "attention_mask": observed.long().to(self.device),
            "use_cache": False,
            "return_dict": True,
        }
        starts = before_end(batch, torch.arange(values.shape[-1], 0, -1))
        return Inputs(kwargs, token_map(batch, starts, 1), batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        with hub.quiet():
            return self.module.model(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)
