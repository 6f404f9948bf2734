"""PatchTST (Nie et al. 2023, arXiv 2211.14730) in the implementation of transformers.

It takes windows of exactly its context, so shorter series are padded on the left. `past_observed_mask` keeps padded
and missing steps out of the mean and scale, and they enter the patches as the value that scaling takes to zero; but
attention sees their tokens, so a padded window is not what an unpadded model would make of it. Batches do not matter:
each series is padded to the context, whatever else is in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.registry import Card
from tsprobe.encoders.rows import before_end, refuse_longer, right_aligned, token_map
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILY = "patchtst"


class PatchTST(Encoder):
    """The encoder of a PatchTST, without head, and without the random masking that pretraining leaves switched on.

    Channels that do not attend to each other and share the patch embedding are encoded one by one, so that any number
    of them is taken. There is no final norm: `final` is the last block.
    """

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting or reconstruction",
        package="transformers",
        extra="models",
        code_licence="Apache-2.0",
        weights_licence="see the checkpoint",
        final_is="PatchTSTModel(...).last_hidden_state: the states after the last block",
    )

    @classmethod
    def load(cls, source: str) -> PatchTST:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from transformers import PatchTSTConfig, PatchTSTModel

        folder, raw, config = hub.described(source, FAMILY, "patchtst", PatchTSTConfig)
        config.do_mask_input = False  # else a pretrained checkpoint masks half of the patches at random
        if config.share_embedding and not config.channel_attention:
            config.num_input_channels = 1
        module = hub.load_pretrained(PatchTSTModel, config, folder, FAMILY, unused=("head.",))
        return cls(source, module, _objective(raw))

    def __init__(self, source: str, module: Any, objective: str) -> None:
        config = module.config
        self._one_by_one = bool(config.share_embedding and not config.channel_attention)
        facts = Facts(
            objective=objective,
            context=config.context_length,
            patch=config.patch_length,
            masks_missing=True,
            joint_channels=bool(config.channel_attention),
            channels=None if self._one_by_one else config.num_input_channels,
            code_licence=self.card.code_licence,
            final_is=self.card.final_is,
        )
        taps = {"embedding": Tap("encoder.positional_encoder", select=_rows)}
        taps |= {f"block.{i}": Tap(f"encoder.layers.{i}", select=_rows) for i in range(len(module.encoder.layers))}
        super().__init__(f"{FAMILY}:{source}", module, taps, list(taps)[-1], facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of the patches of a whole context, and a class token where the model has one. Raises
        `EncoderError` past the context."""
        config, patchifier = self.module.config, self.module.patchifier
        context, channels = config.context_length, batch.values.shape[1]
        refuse_longer(batch, context, self.name)
        values, observed = right_aligned(batch, context)  # [R, W]
        if config.scaling == "std":
            mean = values.sum(-1, keepdim=True) / observed.sum(-1, keepdim=True).clamp(min=1)
            values = torch.where(observed, values, mean)
        starts = patchifier.sequence_start + config.patch_stride * torch.arange(patchifier.num_patches)
        prefix = int(config.use_cls_token)
        tokens = token_map(
            batch,
            before_end(batch, context - starts),
            config.patch_length,
            prefix=prefix,
            cls=0 if prefix else None,
        )
        shape = (-1, 1, context) if self._one_by_one else (-1, channels, context)
        kwargs = {
            "past_values": values.reshape(shape).transpose(1, 2).to(self.device, self.dtype),  # [R, W, 1] or [B, W, C]
            "past_observed_mask": observed.reshape(shape).transpose(1, 2).to(self.device),
        }
        return Inputs(kwargs, tokens, channels)

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)


def _rows(value: Any) -> Tensor:
    """`[B, C, T, D]`, or a tuple that begins with it, to `[R, T, D]`."""
    states = value if isinstance(value, torch.Tensor) else value[0]
    return states.flatten(0, 1)


def _objective(config: dict[str, Any]) -> str:
    architecture = hub.architecture(config)
    known = {"Pretraining": "reconstruction", "Prediction": "forecasting"}
    known |= {"Classification": "supervised", "Regression": "supervised"}
    return known.get(architecture.removeprefix("PatchTSTFor"), "unknown")
