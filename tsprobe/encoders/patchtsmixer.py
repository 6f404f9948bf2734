"""PatchTSMixer (Ekambaram et al. 2023, arXiv 2306.09364) in the implementation of transformers: MLPs over patches.

Like PatchTST it takes windows of exactly its context: shorter series are padded on the left, padded and missing steps
are kept out of the mean and scale and stand at the value that scaling takes to zero; mixers see their tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card
from tsprobe.encoders.rows import before_end, refuse_longer, right_aligned, token_map
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor, nn

FAMILY = "patchtsmixer"


class PatchTSMixer(Encoder):
    """The encoder of a PatchTSMixer, without head, and without the random masking of its pretraining class.

    In the mode `common_channel` channels are encoded one by one, so that any number of them is taken. There is no
    final norm: `final` is the last mixer.
    """

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting or reconstruction",
        package="transformers",
        extra="models",
        code_licence="Apache-2.0",
        weights_licence="see the checkpoint",
        final_is="PatchTSMixerModel(...).last_hidden_state: the states after the last mixer",
    )

    @classmethod
    def load(cls, source: str) -> PatchTSMixer:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from transformers import PatchTSMixerConfig, PatchTSMixerModel

        folder, raw, config = hub.described(source, FAMILY, "patchtsmixer", PatchTSMixerConfig)
        module = hub.load_pretrained(PatchTSMixerModel, config, folder, FAMILY, unused=("head.",))
        return cls(source, module, objective_of(raw, "PatchTSMixerFor"))

    def __init__(self, source: str, module: Any, objective: str) -> None:
        config = module.config
        joint = config.mode != "common_channel"
        facts = Facts(
            objective=objective,
            context=config.context_length,
            patch=config.patch_length,
            masks_missing=True,
            joint_channels=joint,
            channels=config.num_input_channels if joint else None,
            code_licence=self.card.code_licence,
            final_is=self.card.final_is,
        )
        count = len(module.encoder.mlp_mixer_encoder.mixers)
        taps = trunk_taps([f"encoder.mlp_mixer_encoder.mixers.{i}" for i in range(count)], select=rows_of)
        super().__init__(f"{FAMILY}:{source}", module, taps, list(taps)[-1], facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of the patches of a whole context. Raises `EncoderError` past the context."""
        config, patching = self.module.config, self.module.patching
        refuse_longer(batch, config.context_length, self.name)
        values, observed = whole_context(batch, config, one_by_one=not self.facts.joint_channels)
        starts = patching.sequence_start + config.patch_stride * torch.arange(patching.num_patches)
        tokens = token_map(batch, before_end(batch, config.context_length - starts), config.patch_length)
        kwargs = {"past_values": values.to(self.device, self.dtype), "observed_mask": observed.to(self.device)}
        return Inputs(kwargs, tokens, batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return type(self.module)(self.module.config)


def whole_context(
    batch: Batch, config: Any, *, one_by_one: bool
) -> tuple[Float[Tensor, "N W c"], Bool[Tensor, "N W c"]]:
    """Values and observed mask of right-aligned windows of the whole context W, for models whose scaler takes a mask
    but whose patches do not: what was not observed stands at the mean, where the scaler takes it out, or at 0.

    N = B * C windows of one channel each, or N = B windows of c = C channels.
    """
    values, observed = right_aligned(batch, config.context_length)  # [R, W]
    if config.scaling == "std" or config.scaling is True:
        mean = values.sum(-1, keepdim=True) / observed.sum(-1, keepdim=True).clamp(min=1)
        values = torch.where(observed, values, mean)
    shape = (-1, 1 if one_by_one else batch.values.shape[1], config.context_length)
    return values.reshape(shape).transpose(1, 2), observed.reshape(shape).transpose(1, 2)


def rows_of(value: Any) -> Tensor:
    """`[B, C, T, D]`, or a tuple that begins with it, to `[R, T, D]`."""
    states = value if isinstance(value, torch.Tensor) else value[0]
    return states.flatten(0, 1)


def objective_of(config: dict[str, Any], prefix: str) -> str:
    """What a checkpoint was trained for, from the class that saved it."""
    architecture = hub.architecture(config)
    known = {"Pretraining": "reconstruction", "PreTraining": "reconstruction", "Prediction": "forecasting"}
    known |= {"Classification": "supervised", "Regression": "supervised", "TimeSeriesClassification": "supervised"}
    return known.get(architecture.removeprefix(prefix), "unknown")
