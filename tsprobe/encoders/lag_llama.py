"""Lag-Llama (Rasul et al. 2023, arXiv 2310.08278), in the implementation that sktime carries: a causal decoder with a
token a step, which holds the value of that step and those at some lags before it.

The window is scaled first, by median and quartiles in the published checkpoint, and each token is told the logarithms
of that level and scale. The whole window is context: no history stands before it, so lags that reach further back read
zeros, as they do in the package for a series that begins there. No dates are known, so features of the calendar, where
a checkpoint has them, are zero, the middle of their range. The checkpoint was trained on contexts of 32 steps.

gluonts, on which the implementation stands, imports lightning.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from tsprobe.encoders import hub, pickles
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import refuse_longer, refuse_missing, token_map
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "lag-llama"
_CHECKPOINT = "lag-llama.ckpt"
_CALENDAR = 6  # features of a date
# a checkpoint of lightning holds the head and the loss as objects, which gluonts pickles as calls
_IGNORED = (
    "functools.partial",
    "builtins.getattr",
    "builtins.object",
    "gluonts.torch.distributions.studentT.StudentTOutput",
    "gluonts.torch.modules.loss.NegativeLogLikelihood",
    "sktime.libs.lag_llama.gluon.gluonts_torch_modules_loss_shim.NegativeLogLikelihood",
)


class LagLlama(Encoder):
    """The decoder of a Lag-Llama with a Student-t head, one channel a row."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="sktime",
        also=("sktime.libs.lag_llama.model.module", "lightning"),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0 (time-series-foundation-models/Lag-Llama)",
        final_is="the output of LagLlamaModel.transformer.ln_f, which the head reads (there is no embed call)",
        sizes=(Size("", 8, 144, 2_450_000),),
    )

    @classmethod
    def load(cls, source: str) -> LagLlama:
        """From a hub id or a local folder with lag-llama.ckpt. Raises `EncoderError`."""
        folder = hub.find_folder(source, FAMILY, [_CHECKPOINT])
        file = folder / _CHECKPOINT
        checkpoint = pickles.read_pickle(file, FAMILY, _IGNORED)
        settings = (checkpoint.get("hyper_parameters") or {}).get("model_kwargs")
        if not isinstance(settings, dict):
            raise EncoderError(f"{FAMILY}: {file} has no hyper_parameters with model_kwargs: it is no Lag-Llama")
        with hub.building(folder, FAMILY, _CHECKPOINT):
            module = build(settings)
        state = {name.removeprefix("model."): x for name, x in pickles.tensors_in(checkpoint, file, FAMILY).items()}
        return cls(source, hub.fill(module, state, folder, FAMILY), settings)

    def __init__(self, source: str, module: Any, settings: dict[str, Any]) -> None:
        official = source.startswith("time-series-foundation-models/")
        if min(module.lags_seq) != 0:  # the package counts a lag of one step as 0
            raise EncoderError(
                f"{FAMILY}: the lags of {source} begin at {min(module.lags_seq)}: no token reads its own step"
            )
        self._settings = settings
        facts = Facts(
            objective="forecasting",
            context=settings["max_context_length"],
            pretrained_on="27 open datasets of six domains, most from the Monash archive"
            if official
            else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="Apache-2.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        blocks = [f"transformer.h.{i}" for i in range(len(module.transformer.h))]
        super().__init__(f"{FAMILY}:{source}", module, trunk_taps(blocks, "transformer.ln_f"), "norm", facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of S tokens. Raises `EncoderError` past the context and for missing values."""
        refuse_longer(batch, self.facts.context or 0, self.name)
        refuse_missing(batch, self.name)
        history = (max(self.module.lags_seq), 0)
        values = F.pad(batch.values.flatten(0, 1), history).to(self.device, self.dtype)  # [R, lags + S]
        observed = F.pad(batch.observed.flatten(0, 1), history).to(self.device, self.dtype)
        kwargs = {"past_target": values, "past_observed_values": observed}
        if self._settings.get("time_feat", True):
            kwargs["past_time_feat"] = values.new_zeros(*values.shape, _CALENDAR)
            kwargs["future_time_feat"] = values.new_zeros(len(values), 1, _CALENDAR)
        steps = torch.arange(batch.values.shape[-1], device=batch.lengths.device).expand(len(batch.lengths), -1)
        return Inputs(kwargs, token_map(batch, steps, 1), batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return build(self._settings)


def build(settings: dict[str, Any]) -> Any:
    """A Lag-Llama with new weights. Its attention would drop out in evaluation too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gluonts recommends another JSON library
        from gluonts.torch.distributions import StudentTOutput
        from sktime.libs.lag_llama.model.module import LagLlamaModel

    return LagLlamaModel(**{**settings, "distr_output": StudentTOutput(), "dropout": 0.0})
