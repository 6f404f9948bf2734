"""Moirai 2.0 (Liu et al. 2025, arXiv 2511.11698), in the implementation that sktime carries from uni2ts.

A causal decoder over patches of 16 steps that is trained on single channels, so each channel is a row. The whole window
is standardised first. As in `Moirai2Forecast`, what is missing is filled with the mean of the steps before it and told
to the model as not observed, and a series shorter than whole patches begins with zeros that are not observed.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import patch_starts, refuse_longer, right_aligned, token_map
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor, nn

FAMILY = "moirai-2"


class Moirai2(Encoder):
    """The decoder of a Moirai 2.0 forecaster, one channel a row."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="sktime",
        also=("sktime.libs.uni2ts.moirai2_module", "huggingface_hub"),
        code_licence="Apache-2.0",
        weights_licence="CC-BY-NC-4.0 (Salesforce/moirai-2.0-R-small)",
        final_is="the output of Moirai2Module.encoder, after its norm, which out_proj reads (there is no embed call)",
        sizes=(Size("small", 6, 384, 11_387_208),),
    )

    @classmethod
    def load(cls, source: str) -> Moirai2:
        """From a hub id or a local folder. Raises `EncoderError`."""
        with warnings.catch_warnings():  # gluonts recommends another JSON library
            warnings.simplefilter("ignore")
            from sktime.libs.uni2ts.moirai2_module import Moirai2Module

        folder = hub.find_folder(source, FAMILY)
        raw = hub.read_config(folder, FAMILY)
        with hub.building(folder, FAMILY):
            module = Moirai2Module(**raw)
        return cls(source, hub.load_state(module, folder, FAMILY), raw)

    def __init__(self, source: str, module: Any, config: dict[str, Any]) -> None:
        official = source.startswith("Salesforce/moirai-2")
        facts = Facts(
            objective="forecasting",
            context=module.max_seq_len * module.patch_size,
            patch=module.patch_size,
            masks_missing=True,
            pretrained_on="GIFT-Eval pretraining and training data, Chronos-Mixup, KernelSynth, Salesforce's telemetry"
            if official
            else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="CC-BY-NC-4.0" if official else "not declared",
            final_is=self.card.final_is,
            overlaps=("the training parts of GIFT-Eval",) if official else (),
        )
        taps = trunk_taps([f"encoder.layers.{i}" for i in range(module.num_layers)], "encoder.norm")
        super().__init__(f"{FAMILY}:{source}", module, taps, "norm", facts)
        self._config = config

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of ceil(S / patch) tokens. Raises `EncoderError` past the context."""
        refuse_longer(batch, self.facts.context or 0, self.name)
        patch = self.module.patch_size
        width = math.ceil(batch.values.shape[-1] / patch) * patch
        values, observed = right_aligned(batch, width)  # [R, W]
        inside = torch.arange(width, device=observed.device) >= width - batch.lengths[:, None]  # [B, W]
        inside = inside.repeat_interleave(batch.values.shape[1], 0)
        values = torch.where(inside, causal_means(values.float(), observed, inside), 0)
        seen = observed.unfold(-1, patch, patch)  # [R, T, patch]
        # tokens are counted from the first with an observed step
        time = (seen.any(-1).cummax(-1).values.cumsum(-1) - 1).clamp(min=0)
        kwargs = {
            "target": values.unfold(-1, patch, patch),
            "observed_mask": seen,
            "sample_id": inside.unfold(-1, patch, patch).any(-1).long(),
            "time_id": time,
            "variate_id": torch.zeros_like(time),
            "prediction_mask": torch.zeros_like(time, dtype=torch.bool),
        }
        tokens = token_map(batch, patch_starts(batch, patch), patch)
        return Inputs({key: value.to(self.device) for key, value in kwargs.items()}, tokens, batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return type(self.module)(**self._config)


def causal_means(
    values: Float[Tensor, "R W"], observed: Bool[Tensor, "R W"], inside: Bool[Tensor, "R W"]
) -> Float[Tensor, "R W"]:
    """Missing values inside a series become the mean of all steps before them, gaps held at their last known value: the
    `CausalMeanValueImputation` of gluonts. At the beginning stands the first known value."""
    width = values.shape[-1]
    steps = torch.arange(width, device=values.device).expand_as(values)
    first = torch.where(observed, steps, width - 1).amin(-1, keepdim=True)  # the first known step
    last = torch.where(observed, steps, -1).cummax(-1).values
    held = values.gather(-1, torch.where(last < 0, first, last))
    held = torch.where(inside, held, 0)
    count = inside.cumsum(-1) - 1  # steps of the series before this one
    mean = (F.pad(held.double().cumsum(-1), (1, 0))[:, :-1] / count.clamp(min=1)).to(values.dtype)
    filled = torch.where(count == 0, held, mean)
    return torch.where(observed, values, filled)
