"""TSPulse (Ekambaram et al. 2025, arXiv 2505.13033): a mixer that reconstructs masked series in time and in frequency.

A window of exactly the context is standardised, cut into P patches, and its Fourier transform into P more; R register
tokens follow. Mixers cross all of them. Only the P patches of time are tokens of steps; those of frequency hold the
whole window each, and registers none of it.

Of the masking of pretraining only what a user asks for is left (`mask_type="user"`): missing steps, and those before a
series that is shorter than the context, count neither for the mean nor for the scale, and the learned mask token stands
in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import before_end, refuse_longer, right_aligned, token_map
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "tspulse"


class TSPulse(Encoder):
    """The backbone and decoder of a TSPulse, one channel a row. `block.i` are the mixers of the backbone, `decoder.i`
    those of the decoder after them."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="reconstruction",
        package="tsfm_public",
        install_as="granite-tsfm",
        requirements=("granite-tsfm==0.3.11",),
        sizes=(Size("r1", 16, 24, 1_080_000),),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (ibm-granite/granite-timeseries-tspulse-r1)",
        final_is="get_embeddings(component='decoder', mode='time'); the default mode takes the register tokens",
    )

    @classmethod
    def load(cls, source: str) -> TSPulse:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from tsfm_public.models.tspulse import TSPulseConfig, TSPulseForReconstruction

        folder, _, config = hub.described(source, FAMILY, "tspulse", TSPulseConfig)
        _refuse(config, source)
        config.mask_type, config.fft_mask_ratio, config.batch_aware_masking = "user", None, False
        return cls(source, hub.load_pretrained(TSPulseForReconstruction, config, folder, FAMILY))

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith("ibm-granite/granite-timeseries-tspulse")
        config = module.config
        facts = Facts(
            objective="reconstruction",
            context=config.context_length,
            patch=config.patch_length,
            masks_missing=True,
            pretrained_on="about a billion points of Monash and LibCity series" if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        encoder, decoder = "backbone.encoder_block.mixers", "decoder_with_head.decoder.decoder_block.mixers"
        taps = {"embedding": Tap(f"{encoder}.0", "input", select=lambda x: x.flatten(0, 1))}
        for name, path in (("block", encoder), ("decoder", decoder)):
            count = len(module.get_submodule(path))
            taps |= {f"{name}.{i}": Tap(f"{path}.{i}", select=lambda x: x.flatten(0, 1)) for i in range(count)}
        super().__init__(f"{FAMILY}:{source}", module, taps, list(taps)[-1], facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of P tokens of time, P of frequency where the model has them, and R registers. Raises
        `EncoderError` past the context."""
        config = self.module.config
        refuse_longer(batch, config.context_length, self.name)
        values, observed = right_aligned(batch, config.context_length)  # [R, W]
        count = config.context_length // config.patch_length
        special = count * bool(config.fuse_fft) + config.patch_register_tokens
        start = before_end(batch, torch.arange(config.context_length, 0, -config.patch_length))
        tokens = token_map(batch, start, config.patch_length, suffix=special)
        kwargs = {
            "past_values": values[..., None].to(self.device, self.dtype),  # [R, W, 1]
            "past_observed_mask": observed[..., None].to(self.device),
        }
        return Inputs(kwargs, tokens, batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        """Backbone and decoder; the heads are not run."""
        backbone = self.module.backbone(**inputs.kwargs, return_dict=True)
        decoder = self.module.decoder_with_head
        return decoder.decoder(backbone.last_hidden_flatten_state.reshape(decoder.reshape_dims))

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)


def _refuse(config: Any, source: str) -> None:
    """Raise `EncoderError` for architectures whose tokens do not stay what they are, from patch to end."""
    levels = (
        config.num_patches_layerwise_scale,
        config.decoder_num_patches_layerwise_scale,
        config.d_model_layerwise_scale,
        config.decoder_d_model_layerwise_scale,
    )
    if any(scale != 1 for level in levels for scale in level or ()):
        raise EncoderError(
            f"{FAMILY}: {source} changes the number or width of its tokens on the way, which is not read"
        )
    if config.patch_stride != config.patch_length or config.context_length % config.patch_length:
        raise EncoderError(
            f"{FAMILY}: {source} has patches of {config.patch_length} steps every {config.patch_stride} in a window of "
            f"{config.context_length}; only patches side by side that fill the window are supported"
        )
    if config.mode != "common_channel" or config.decoder_mode != "common_channel" or config.num_input_channels != 1:
        raise EncoderError(f"{FAMILY}: {source} mixes channels; only channel by channel is supported")
