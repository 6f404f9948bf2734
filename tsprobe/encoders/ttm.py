"""Tiny Time Mixers (Ekambaram et al. 2024, arXiv 2401.03955), in the implementation that sktime carries.

Three levels of mixers, each of which cuts the patches finer inside and puts them together again: `block.i` is what
leaves a level. The model's own `hidden_states` mix these with the finer shapes inside and with the decoder's states.
It takes windows of exactly its context: shorter series are padded on the left and stand at the mean of the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.patchtsmixer import rows_of, whole_context
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import before_end, refuse_longer, token_map
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "ttm"


class TTM(Encoder):
    """The backbone of a Tiny Time Mixer forecaster, one channel a row. `module` is the whole forecaster; only its
    backbone is run.

    A model with a token for the sampling rate gets 0, "out of vocabulary", as in the package where none is given; that
    token and register tokens are masked. Models with patches at several scales, in the frequency domain or of a
    decomposed series are refused.
    """

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="transformers",
        extra="models",
        also=("sktime.libs.granite_ttm",),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (ibm-granite/granite-timeseries-ttm-r1, -r2)",
        final_is="TinyTimeMixerForPrediction(...).backbone_hidden_state: the states after the last level of mixers",
        sizes=(Size("r2", 3, 192, 805_280),),
    )

    @classmethod
    def load(cls, source: str) -> TTM:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from sktime.libs.granite_ttm.configuration_tinytimemixer import TinyTimeMixerConfig
        from sktime.libs.granite_ttm.modeling_tinytimemixer import TinyTimeMixerForPrediction

        folder = hub.find_folder(source, FAMILY)
        raw = hub.read_config(folder, FAMILY, "tinytimemixer")
        strange = [key for key in ("multi_scale", "fft_length", "decompose") if raw.get(key)]
        if strange:
            raise EncoderError(f"{FAMILY}: {source} is a model with {', '.join(strange)}, which is not supported")
        with hub.building(folder, FAMILY):
            config = TinyTimeMixerConfig.from_dict(raw)
        return cls(source, hub.load_pretrained(TinyTimeMixerForPrediction, config, folder, FAMILY))

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith(("ibm-granite/granite-timeseries-ttm", "ibm/TTM"))
        config = module.config
        joint = config.mode != "common_channel"
        facts = Facts(
            objective="forecasting",
            context=config.context_length,
            patch=config.patch_length,
            masks_missing=True,
            joint_channels=joint,
            channels=config.num_input_channels if joint else None,
            pretrained_on="Monash and LibCity subsets and other public series; see the model card"
            if official
            else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official and "research" not in source else "not declared",
            final_is=self.card.final_is,
        )
        count = len(module.backbone.encoder.mlp_mixer_encoder.mixers)
        taps = trunk_taps([f"backbone.encoder.mlp_mixer_encoder.mixers.{i}" for i in range(count)], select=rows_of)
        super().__init__(f"{FAMILY}:{source}", module, taps, list(taps)[-1], facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of the patches of a whole context, after the tokens for rate and registers where the model has
        them. Raises `EncoderError` past the context."""
        config, patching = self.module.config, self.module.backbone.patching
        refuse_longer(batch, config.context_length, self.name)
        values, observed = whole_context(batch, config, one_by_one=not self.facts.joint_channels)
        starts = patching.sequence_start + config.patch_stride * torch.arange(patching.num_patches)
        prefix = config.register_tokens + bool(config.resolution_prefix_tuning)
        starts = before_end(batch, config.context_length - starts)
        tokens = token_map(batch, starts, config.patch_length, prefix=prefix)
        kwargs = {
            "past_values": values.to(self.device, self.dtype),
            "past_observed_mask": observed.to(self.device),
            "freq_token": torch.zeros(len(values), dtype=torch.long, device=self.device),
            "return_dict": True,
        }
        return Inputs(kwargs, tokens, batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        return self.module.backbone(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        with hub.quiet():
            return type(self.module)(self.module.config)
