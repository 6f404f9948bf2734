"""Chronos-Bolt: patches of a window into a T5 encoder, quantiles of the horizon out of one decoder step.

The window is standardised first: embeddings of x and 3x + 7 are the same, so level and scale cannot be read from
them. The first patch of a series may be filled in part; the [REG] token at the end is masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import patch_starts, refuse_longer, token_map, with_nan
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "chronos-bolt"


class ChronosBolt(Encoder):
    """The encoder of a Chronos-Bolt forecaster, one channel a row. `module` is the whole forecaster; only its
    encoder is run."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="chronos",
        extra="models",
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (amazon/chronos-bolt-*)",
        final_is="ChronosBoltPipeline.embed(): the encoder's states after its final norm, [REG] aside",
        sizes=(
            Size("tiny", 4, 256, 8_652_672),
            Size("mini", 4, 384, 21_236_096),
            Size("small", 6, 512, 47_718_016),
            Size("base", 12, 768, 205_292_928),
        ),
    )

    @classmethod
    def load(cls, source: str) -> ChronosBolt:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from chronos.chronos_bolt import ChronosBoltModelForForecasting
        from transformers import T5Config

        folder, _, config = hub.described(source, FAMILY, "t5", T5Config)
        return cls(source, hub.load_pretrained(ChronosBoltModelForForecasting, config, folder, FAMILY))

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith("amazon/chronos-bolt-")
        config = module.chronos_config
        check_stride(config, source, FAMILY)
        facts = Facts(
            objective="forecasting",
            context=config.context_length,
            patch=config.input_patch_size,
            masks_missing=True,
            pretrained_on="the Chronos corpus, nearly 100 billion observations" if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        blocks = [f"encoder.block.{i}" for i in range(len(module.encoder.block))]
        super().__init__(f"{FAMILY}:{source}", module, trunk_taps(blocks, "encoder.final_layer_norm"), "norm", facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of ceil(S / patch) tokens, and [REG] where the model has it. Raises `EncoderError` past the
        context."""
        config = self.module.chronos_config
        refuse_longer(batch, config.context_length, self.name)
        patch = config.input_patch_size
        tokens = token_map(batch, patch_starts(batch, patch), patch, suffix=int(config.use_reg_token))
        return Inputs({"context": with_nan(batch).to(self.device)}, tokens, batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        return self.module.encode(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)


def check_stride(config: Any, source: str, family: str) -> None:
    """Raise `EncoderError` for patches that overlap or leave gaps: padding would then shift them over the series."""
    if config.input_patch_stride != config.input_patch_size:
        raise EncoderError(
            f"{family}: {source} has patches of {config.input_patch_size} steps every {config.input_patch_stride}; "
            "only patches side by side are supported"
        )
