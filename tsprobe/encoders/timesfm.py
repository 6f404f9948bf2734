"""TimesFM 2.0 and 2.5 (Das et al. 2024, arXiv 2310.10688) in the implementation of transformers: causal patch decoders.

There is no norm after the last block, so `final` is what its output head reads. Series are aligned at their end and
the first patch of a series may be filled in part. A window is scaled inside: 2.0 by the mean and spread of its first
patch, 2.5 by those of all steps up to each patch, so tokens of x and 3x + 7 are the same and nothing looks ahead.
`TimesFm2_5ModelForPrediction` scales by the whole padded window before that, which the running scale undoes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import patch_starts, refuse_longer, refuse_missing, right_aligned, token_map
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn


class TimesFM(Encoder):
    """The decoder of a TimesFM forecaster without its output head, one channel a row."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card]
    family: ClassVar[str]
    corpus: ClassVar[str]
    overlaps: ClassVar[tuple[str, ...]]

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith("google/")
        config = module.config
        facts = Facts(
            objective="forecasting",
            context=config.context_length,
            patch=config.patch_length,
            pretrained_on=self.corpus if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
            overlaps=self.overlaps if official else (),
        )
        taps = trunk_taps([f"layers.{i}" for i in range(config.num_hidden_layers)])
        super().__init__(f"{self.family}:{source}", module, taps, list(taps)[-1], facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of ceil(S / patch) tokens. Raises `EncoderError` past the context and for missing values, which
        the package interpolates."""
        config = self.module.config
        refuse_longer(batch, config.context_length, self.name)
        refuse_missing(batch, self.name)
        patch = config.patch_length
        values, observed = right_aligned(batch, math.ceil(batch.values.shape[-1] / patch) * patch)  # [R, W]
        kwargs = {
            "past_values": values.to(self.device, self.dtype),
            "past_values_padding": (~observed).to(self.device, self.dtype),
        }
        return Inputs(kwargs, token_map(batch, patch_starts(batch, patch), patch), batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)


class TimesFM20(TimesFM):
    """TimesFM 2.0. Its frequency token is 0, "high or unknown", as in the package where none is given."""

    family = "timesfm-2.0"
    corpus = "Google Trends, Wikipedia page views, LOTSA and synthetic series; see arXiv 2310.10688 and the model card"
    overlaps = ("m4", "electricity", "traffic", "weather")
    card: ClassVar[Card] = Card(
        pattern=f"{family}:ID_OR_FOLDER",
        objective="forecasting",
        package="transformers",
        extra="models",
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (google/timesfm-2.0-500m-pytorch)",
        final_is="TimesFmModel(...).last_hidden_state: the states after the last block (the package has no embed call)",
        sizes=(Size("500m", 50, 1280, 498_828_960),),
    )

    @classmethod
    def load(cls, source: str) -> TimesFM20:
        """From a hub id or a local folder in the format of transformers. Raises `EncoderError`."""
        from transformers import TimesFmConfig, TimesFmModel

        folder, _, config = hub.described(source, cls.family, "timesfm", TimesFmConfig)
        module = hub.load_pretrained(TimesFmModel, config, folder, cls.family, unused=("horizon_ff_layer.",))
        return cls(source, module)

    def prepare(self, batch: Batch) -> Inputs:
        inputs = super().prepare(batch)
        freq = torch.zeros(len(inputs.kwargs["past_values"]), 1, dtype=torch.long, device=self.device)
        return Inputs({**inputs.kwargs, "freq": freq}, inputs.tokens, inputs.rows)


class TimesFM25(TimesFM):
    """TimesFM 2.5."""

    family = "timesfm-2.5"
    corpus = "GIFT-Eval pretraining data, Wikipedia page views, Google Trends and synthetic series; see the model card"
    overlaps = ()
    card: ClassVar[Card] = Card(
        pattern=f"{family}:ID_OR_FOLDER",
        objective="forecasting",
        package="transformers",
        extra="models",
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (google/timesfm-2.5-200m-transformers)",
        final_is="TimesFm2_5Model(...).last_hidden_state: the states after the last block (there is no embed call)",
        sizes=(Size("200m", 20, 1280, 231_289_280),),
    )

    @classmethod
    def load(cls, source: str) -> TimesFM25:
        """From a hub id or a local folder in the format of transformers. Raises `EncoderError`."""
        from transformers import TimesFm2_5Config, TimesFm2_5Model

        folder, _, config = hub.described(source, cls.family, "timesfm2_5", TimesFm2_5Config)
        heads = ("output_projection_point.", "output_projection_quantiles.")
        names = {".ff0.": ".fc1.", ".ff1.": ".fc2."}
        return cls(
            source, hub.load_pretrained(TimesFm2_5Model, config, folder, cls.family, unused=heads, renamed=names)
        )
