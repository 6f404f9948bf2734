"""Chronos-T5 (Ansari et al. 2024, arXiv 2403.07815): each step becomes one token of a vocabulary of value bins.

The tokenizer divides by the mean absolute value of the window, so level and scale are partly lost; it appends an EOS
token, which `ChronosPipeline.embed` returns among the steps and which is masked here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import before_end, refuse_longer, token_map, with_nan
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "chronos-t5"


class ChronosT5(Encoder):
    """The T5 encoder of a Chronos forecaster, one channel a row. `module` is the whole forecaster; only its encoder
    is run."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="chronos",
        extra="models",
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (amazon/chronos-t5-*)",
        final_is="ChronosPipeline.embed(): the encoder's states after its final norm, EOS aside",
        sizes=(
            Size("tiny", 4, 256, 8_394_496),
            Size("mini", 4, 384, 20_456_192),
            Size("small", 6, 512, 46_154_240),
            Size("base", 12, 768, 201_374_976),
            Size("large", 24, 1024, 708_963_328),
        ),
    )

    @classmethod
    def load(cls, source: str) -> ChronosT5:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from chronos.chronos import ChronosConfig
        from transformers import T5Config, T5ForConditionalGeneration

        folder, raw, architecture = hub.described(source, FAMILY, "t5", T5Config)
        module = hub.load_pretrained(T5ForConditionalGeneration, architecture, folder, FAMILY)
        with hub.building(folder, FAMILY):
            config = ChronosConfig(**raw["chronos_config"])
            tokenizer = config.create_tokenizer()
        if config.model_type != "seq2seq":
            raise EncoderError(f"{FAMILY}: {source} is a {config.model_type} model; only seq2seq ones have an encoder")
        return cls(source, module, tokenizer)

    def __init__(self, source: str, module: Any, tokenizer: Any) -> None:
        official = source.startswith("amazon/chronos-t5-")
        facts = Facts(
            objective="forecasting",
            context=tokenizer.config.context_length,
            masks_missing=True,
            pretrained_on="the Chronos corpus (28 public forecasting datasets), TSMixup, KernelSynth"
            if official
            else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        blocks = [f"encoder.block.{i}" for i in range(len(module.encoder.block))]
        super().__init__(f"{FAMILY}:{source}", module, trunk_taps(blocks, "encoder.final_layer_norm"), "norm", facts)
        self._tokenizer = tokenizer

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of S tokens, and the EOS token where the model uses it. Raises `EncoderError` past the context."""
        config = self._tokenizer.config
        refuse_longer(batch, config.context_length, self.name)
        steps = batch.values.shape[-1]
        # the tokenizer keeps its bins on the CPU
        ids, attend, _ = self._tokenizer.context_input_transform(with_nan(batch).cpu())
        start = before_end(batch, torch.arange(steps, 0, -1))
        tokens = token_map(batch, start, 1, suffix=ids.shape[1] - steps)
        kwargs = {"input_ids": ids.to(self.device), "attention_mask": attend.to(self.device)}
        return Inputs(kwargs, tokens, batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        return self.module.encoder(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)
