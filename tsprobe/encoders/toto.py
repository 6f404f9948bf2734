"""Toto 1.0 (Cohen et al. 2025, arXiv 2505.14766): causal attention over the patches of a series, and in some blocks
attention over its channels, trained to forecast.

A patch is scaled by the mean and spread of all that was observed up to its end, so the states of a patch know nothing
of what follows. As in the package's forecaster patches end with the series, the first is filled up with zeros which
that scaling leaves out, and nothing but zeros stands for a missing value, so those are interpolated. Series of unlike
length are padded on the right, which causal attention does not see.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, Tap, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import refuse_longer, refuse_missing, token_map
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs, TokenMap

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILY = "toto"
CONTEXT = 4096  # steps, in pretraining and in the package's examples; a checkpoint does not say


class Toto(Encoder):
    """A Toto without its mixture head. Each channel is a row, and sees the other channels of its series.

    `output` are the states of the last block unembedded into one state a step of the next patch; each covers the patch
    that it was computed from.
    """

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="toto",
        install_as="toto-ts",
        requirements=("toto-ts==0.2.0",),
        sizes=(Size("Open-Base-1.0", 12, 768, 151_300_000),),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (Datadog/Toto-Open-Base-1.0)",
        final_is="TotoBackbone.backbone()[0], which the maintainers name for embeddings (github.com/DataDog/toto #58)",
    )

    @classmethod
    def load(cls, source: str) -> Toto:
        """From a hub id or a local folder. Raises `EncoderError`."""
        folder = hub.find_folder(source, FAMILY)
        config = hub.read_config(folder, FAMILY)
        with hub.building(folder, FAMILY):
            module = build(config)
        return cls(source, fill(module, config, folder), config)

    def __init__(self, source: str, module: Any, config: dict[str, Any]) -> None:
        official = source.startswith("Datadog/Toto-Open")
        embed = module.model.patch_embed
        if embed.stride != embed.patch_size:
            raise EncoderError(
                f"{FAMILY}: {source} has patches of {embed.patch_size} steps every {embed.stride}; "
                "only patches side by side are supported"
            )
        self._config = config
        facts = Facts(
            objective="forecasting",
            context=CONTEXT // embed.patch_size * embed.patch_size,
            patch=embed.patch_size,
            joint_channels=any(layer.attention_axis.name == "SPACE" for layer in module.model.transformer.layers),
            pretrained_on="Datadog's own metrics, part of the GIFT-Eval and Chronos corpora, synthetic series"
            if official
            else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        blocks = [f"model.transformer.layers.{i}" for i in range(len(module.model.transformer.layers))]
        taps = trunk_taps(blocks, select=_rows)
        taps["embedding"] = Tap("model.transformer", "input", select=_rows)  # the blocks take their own number first
        taps["output"] = Tap(
            "model.unembed", select=lambda x: _rows(x).unflatten(-1, (embed.patch_size, -1)).flatten(1, 2)
        )
        super().__init__(f"{FAMILY}:{source}", module, taps, "output", facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of ceil(S / patch) tokens. Raises `EncoderError` past the context and for missing values."""
        refuse_longer(batch, self.facts.context or CONTEXT, self.name)
        refuse_missing(batch, self.name)
        patch = self.facts.patch
        lead = (-batch.lengths) % patch  # [B], steps before the series in its first patch
        width = -(-int((batch.lengths + lead).max()) // patch) * patch
        source = torch.arange(width, device=lead.device) - lead[:, None]  # [B, W]
        inside = (source >= 0) & (source < batch.lengths[:, None])
        index = source.clamp(0, batch.values.shape[-1] - 1)[:, None].expand(-1, batch.values.shape[1], -1)
        observed = inside[:, None].expand(index.shape)
        values = torch.where(observed, batch.values.gather(-1, index), 0)  # [B, C, W]
        start = torch.arange(0, width, patch, device=lead.device) - lead[:, None]  # [B, P]
        tokens = token_map(batch, start, patch)
        kwargs = {
            "inputs": values.to(self.device, self.dtype),
            "input_padding_mask": observed.to(self.device),
            "id_mask": torch.zeros_like(values, dtype=torch.int).to(self.device),
        }
        maps = dict.fromkeys(self.taps, tokens)
        mask, start, stop = (edge.repeat_interleave(patch, 1) for edge in (tokens.mask, tokens.start, tokens.stop))
        maps["output"] = TokenMap(mask, start, stop)
        return Inputs(kwargs, maps, batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        return self.module.model.backbone(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        return build(self._config)


def build(config: dict[str, Any]) -> Any:
    """A Toto with new weights, with the attention that this machine has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # says that xformers is not installed, which is no fault
        from toto.model.attention import XFORMERS_AVAILABLE
        from toto.model.toto import Toto as Official

    fused = XFORMERS_AVAILABLE and config.get("use_memory_efficient_attention", True)
    return Official(**{**config, "use_memory_efficient_attention": fused})


def fill(module: Any, config: dict[str, Any], folder: Any) -> Any:
    """The weights of a folder, under the names that the feed-forward layers have here: they depend on xformers. The
    package's loader does so too, but takes a checkpoint in part."""
    from toto.model.transformer import XFORMERS_SWIGLU_AVAILABLE

    fused = XFORMERS_SWIGLU_AVAILABLE and not config.get("pre_xformers_checkpoint", False)
    state = type(module)._map_state_dict_keys(hub.read_state(folder, FAMILY), fused)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.freqs")}  # are computed
    return hub.fill(module, state, folder, FAMILY)


def _rows(states: Tensor) -> Tensor:
    """`[B, C, T, D]` to `[R, T, D]`."""
    return states.flatten(0, 1)
