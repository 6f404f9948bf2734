"""MOMENT (Goswami et al. 2024, arXiv 2402.03885), in the implementation that sktime carries: a T5 encoder over patches.

It reads windows of 512 steps, 64 patches of 8. A shorter series stands at the end of the window, and a patch counts
only where it is whole: the first S mod 8 steps of a series are covered by no token, as in the package, which gives NaN
where no patch is whole. The window is standardised first, so tokens of x and 3x + 7 are the same.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import before_end, refuse_longer, refuse_missing, refuse_shorter, right_aligned, token_map
from tsprobe.types import Batch, Inputs, TokenMap

if TYPE_CHECKING:
    from torch import nn

FAMILY = "moment"


class Moment(Encoder):
    """The encoder of MOMENT, one channel a row. `module` is the whole pipeline; only its embedding is run.

    Series of fewer steps than a patch are refused. Missing values are interpolated before: with one of them in a patch
    the model would see nothing of it.
    """

    family: ClassVar[str] = FAMILY
    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="reconstruction",
        package="transformers",
        extra="models",
        also=("sktime.libs.momentfm", "huggingface_hub"),
        code_licence="MIT",
        weights_licence="MIT (AutonLab/MOMENT-1-*)",
        final_is="MOMENTPipeline.embed(): the encoder's states after its final norm, before they are averaged",
        sizes=(
            Size("small", 8, 512, 35_341_512),
            Size("base", 12, 768, 109_641_608),
            Size("large", 24, 1024, 341_248_520),
        ),
    )

    @classmethod
    def load(cls, source: str) -> Moment:
        """From a hub id or a local folder. Raises `EncoderError`."""
        folder = hub.find_folder(source, cls.family)
        raw = hub.read_config(folder, cls.family)
        with hub.building(folder, cls.family):
            module = cls.build(raw)
        state = hub.read_state(folder, cls.family)
        # the word embedding of T5, which no patch goes through
        hub.fill(module, state, folder, cls.family, absent=("encoder.embed_tokens.",))
        return cls(source, module, raw)

    def __init__(self, source: str, module: Any, config: dict[str, Any]) -> None:
        official = source.startswith("AutonLab/MOMENT-1-")
        facts = Facts(
            objective="reconstruction",
            context=module.seq_len,
            min_length=module.patch_len,
            patch=module.patch_len,
            pretrained_on="the Time Series Pile" if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="MIT" if official else "not declared",
            final_is=self.card.final_is,
            overlaps=("the training parts of UCR and UEA, TSB-UAD, Monash and long-horizon sets",) if official else (),
        )
        blocks = [f"encoder.block.{i}" for i in range(len(module.encoder.block))]
        super().__init__(
            f"{self.family}:{source}", module, trunk_taps(blocks, "encoder.final_layer_norm"), "norm", facts
        )
        self._config = config

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of the 64 patches of a whole window. Raises `EncoderError` past the window, for series shorter
        than a patch, and for missing values."""
        refuse_longer(batch, self.module.seq_len, self.name)
        refuse_shorter(batch, self.module.patch_len, self.name)
        refuse_missing(batch, self.name)
        width, patch = self.module.seq_len, self.module.patch_len
        values, observed = right_aligned(batch, width)  # [R, W]
        starts = before_end(batch, torch.arange(width, 0, -patch))
        tokens = token_map(batch, starts, patch)
        whole = tokens.stop - tokens.start == patch
        tokens = TokenMap(whole, tokens.start * whole, tokens.stop * whole)
        kwargs = {
            "x_enc": values[:, None].to(self.device, self.dtype),  # [R, 1, W]
            "input_mask": observed.to(self.device, self.dtype),
        }
        return Inputs(kwargs, tokens, batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        return self.module.embed(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        return self.build(self._config)

    @staticmethod
    def build(config: dict[str, Any]) -> nn.Module:
        """The model that a `config.json` describes, with new weights.

        Raises `ValueError` for one without `t5_config`.
        """
        if not isinstance(config.get("t5_config"), dict):
            raise ValueError("it has no t5_config, the sizes of the T5 encoder")
        ours = {"enable_gradient_checkpointing": False, "task_name": "reconstruction"}
        ours["d_model"] = config.get("d_model") or config["t5_config"]["d_model"]
        with hub.quiet():
            return _pipeline()(config | ours, model_kwargs={"task_name": "reconstruction"})


@cache
def _pipeline() -> type[nn.Module]:
    from sktime.libs.momentfm import MOMENTPipeline
    from transformers import T5Config, T5EncoderModel

    class Pipeline(MOMENTPipeline):
        """MOMENT whose T5 comes from its own config, as in momentfm 0.1.4, not from google/flan-t5 on the hub."""

        def _get_transformer_backbone(self, config: Any) -> Any:
            return T5EncoderModel(T5Config.from_dict(config.t5_config)).get_encoder()

    return Pipeline
