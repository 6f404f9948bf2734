"""TimesFM 3 (package timesfm): a causal patch decoder that mixes over time and over the channels of a series.

The pass is the package's own `decode`, as for a forecast: it takes a linear trend out of a window where that leaves
less than half of the spread, scales each patch by the mean and spread of all steps up to it, and puts masked patches of
the horizon after the series. These are special tokens here, and nothing before them sees them.

Positions are counted from the start of the batch, padding included, and queries and keys are normalised after they are
rotated, so that the place matters: padding would change the tokens of a series, and series of unlike length are not put
in one batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.patchtsmixer import rows_of
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import patch_starts, refuse_longer, refuse_missing, right_aligned, token_map
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "timesfm-3"
CONTEXT = 15360  # the package's forecaster reads no more; the config does not say


class TimesFM3(Encoder):
    """The transformer of a TimesFM 3 forecaster, a row a channel; the channels of a series see each other. There is no
    norm after the last block: `final` is what the output head reads."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="timesfm3",
        install_as="timesfm[torch]>=3",
        code_licence="Apache-2.0",
        weights_licence="timesfm-non-commercial-license-v1.0 (google/timesfm-3.0-pytorch)",
        final_is="the output of TimesFM3Torch.transformer_stack, which output_head reads (there is no embed call)",
        sizes=(Size("3.0", 20, 1280, 330_665_536),),
    )

    @classmethod
    def load(cls, source: str) -> TimesFM3:
        """From a hub id or a local folder. Raises `EncoderError`."""
        from timesfm3 import TimesFM3Torch

        folder = hub.find_folder(source, FAMILY)
        raw = hub.read_config(folder, FAMILY)
        with hub.building(folder, FAMILY):
            module = TimesFM3Torch(**raw)
        return cls(source, hub.load_state(module, folder, FAMILY))

    def __init__(self, source: str, module: Any) -> None:
        official = source.startswith("google/")
        facts = Facts(
            objective="forecasting",
            context=CONTEXT // module.input_patch_len * module.input_patch_len,
            patch=module.input_patch_len,
            pads=False,
            joint_channels=bool(module.use_variate_attention),
            code_licence=self.card.code_licence,
            weights_licence="timesfm-non-commercial-license-v1.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        blocks = [f"transformer_stack.layers.{i}" for i in range(len(module.transformer_stack.layers))]
        taps = trunk_taps(blocks, select=rows_of)
        super().__init__(f"{FAMILY}:{source}", module, taps, list(taps)[-1], facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of ceil(S / patch) tokens, then those of the horizon. Raises `EncoderError` past the context, for
        series of unlike length, and for missing values, which the package interpolates."""
        refuse_longer(batch, self.facts.context or 0, self.name)
        refuse_missing(batch, self.name)
        if not bool(batch.inside.all()):
            raise EncoderError(f"{self.name} cannot mask padding: batch series of one length")
        patch, channels = self.module.input_patch_len, batch.values.shape[1]
        width = math.ceil(batch.values.shape[-1] / patch) * patch
        values, observed = right_aligned(batch, width)  # [R, W]
        kwargs = {
            "target": values.unflatten(0, (-1, channels)).to(self.device, self.dtype),  # [B, C, W]
            "mask": ~observed.unflatten(0, (-1, channels))[:, 0].to(self.device),  # [B, W]
            "horizon": 1,
        }
        # one patch to forecast, and the rest of the output patch that begins with it where forecasts are stitched
        horizon = self.module.rolls
        return Inputs(kwargs, token_map(batch, patch_starts(batch, patch), patch, suffix=horizon), channels)

    def run(self, inputs: Inputs) -> Any:
        return self.module.decode(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        return type(self.module)(**self.module.to_dict())
