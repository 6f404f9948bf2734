"""Timer (Liu et al. 2024, arXiv 2402.02368), in the implementation that sktime carries: a causal decoder over patches.

It takes whole patches (96 steps in the published weights) and has no mask for part of one: the first S mod 96 steps of
a series are dropped, as by its `generate`, and no token covers them. The rest is standardised as there (n - 1 in the
spread). Its blocks end in a norm, and one more follows the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import (
    patch_starts,
    refuse_longer,
    refuse_missing,
    refuse_shorter,
    right_aligned,
    standardised,
    token_map,
)
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "timer"
CONTEXT = 2880  # steps of its pretraining windows; the config does not say


class Timer(Encoder):
    """The decoder of a Timer forecaster, one channel a row. `module` is the whole forecaster; its heads are not run.
    Series of fewer steps than a patch are refused, as by the package."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="transformers",
        extra="models",
        also=("sktime.libs.timer",),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (thuml/timer-base-84m)",
        final_is="TimerModel(...).last_hidden_state: the states after the last norm (there is no embed call)",
        sizes=(Size("base", 8, 1024, 84_142_080),),
    )

    @classmethod
    def load(cls, source: str) -> Timer:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from sktime.libs.timer.configuration_timer import TimerConfig
        from sktime.libs.timer.modeling_timer import TimerForPrediction

        return cls(source, hub.load_vendored(TimerForPrediction, source, FAMILY, "timer", TimerConfig))

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith("thuml/timer-")
        config = module.config
        facts = Facts(
            objective="forecasting",
            context=CONTEXT // config.input_token_len * config.input_token_len,
            min_length=config.input_token_len,
            patch=config.input_token_len,
            pretrained_on="UTSD and LOTSA" if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        taps = trunk_taps([f"model.layers.{i}" for i in range(config.num_hidden_layers)], "model.norm")
        super().__init__(f"{FAMILY}:{source}", module, taps, "norm", facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of floor(S / patch) tokens. Raises `EncoderError` past the context, for series shorter than a
        patch, and for missing values."""
        refuse_longer(batch, self.facts.context or 0, self.name)
        refuse_missing(batch, self.name)
        patch = self.module.config.input_token_len
        refuse_shorter(batch, patch, self.name)
        width = batch.values.shape[-1] // patch * patch
        values, observed = right_aligned(batch, width)  # [R, W]
        whole = observed.unfold(-1, patch, patch).all(-1)  # [R, T]
        kept = whole.repeat_interleave(patch, -1)
        kwargs = {
            "input_ids": standardised(values * kept, kept, correction=1).to(self.device, self.dtype),
            "attention_mask": whole.long().to(self.device),
        }
        starts = patch_starts(batch, patch)[:, -width // patch :]
        tokens = token_map(batch, starts.where(starts >= 0, -patch), patch)
        return Inputs(kwargs, tokens, batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        embedded = self.module.model.embed_layer(inputs.kwargs["input_ids"])  # the model would count steps for tokens
        mask = inputs.kwargs["attention_mask"]
        with hub.quiet():
            return self.module.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False, return_dict=True)

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)
