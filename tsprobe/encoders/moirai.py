"""Moirai 1.0 and 1.1 (Woo et al. 2024, arXiv 2402.02592), in the implementation that sktime carries from uni2ts.

A masked encoder: every patch sees every other, and behind the window stands a masked patch, the horizon of a forecast,
as in all that the model was trained on. The window is standardised first. The model has an input projection for each of
several patch sizes, of which `MoiraiForecast` picks the one that fits the end of the series best; here it is the
caller's choice. Each channel is a row of its own, so the attention between channels is left unused. As in
`MoiraiForecast` a series shorter than whole patches begins with zeros that are not observed; missing values would be
such zeros too, in the midst of the series, so they are interpolated.
"""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import patch_starts, refuse_longer, refuse_missing, right_aligned, token_map
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch import nn

FAMILY = "moirai-1"
# outputs of which the mixture head is made, and where they are; a config names them as uni2ts does
_OUTPUTS = {
    "MixtureOutput": "mixture",
    "StudentTOutput": "student_t",
    "NormalOutput": "normal",
    "NormalFixedScaleOutput": "normal",
    "NegativeBinomialOutput": "negative_binomial",
    "LogNormalOutput": "log_normal",
}


class Moirai(Encoder):
    """The encoder of a Moirai 1.x forecaster, one channel a row."""

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective="forecasting",
        package="sktime",
        also=("sktime.libs.uni2ts.moirai_module", "huggingface_hub"),
        code_licence="Apache-2.0",
        weights_licence="CC-BY-NC-4.0 (Salesforce/moirai-1.*-R-*)",
        final_is="the output of MoiraiModule.encoder, after its norm, which param_proj reads (there is no embed call)",
        sizes=(
            Size("small", 6, 384, 13_800_000),
            Size("base", 12, 768, 91_400_000),
            Size("large", 24, 1024, 311_000_000),
        ),
    )

    @classmethod
    def load(cls, source: str, patch_size: int = 32) -> Moirai:
        """From a hub id or a local folder, to be read in patches of so many steps: 32 is among the sizes that the paper
        gives to every frequency from minutes to weeks. Raises `EncoderError`."""
        folder = hub.find_folder(source, FAMILY)
        raw = hub.read_config(folder, FAMILY)
        with hub.building(folder, FAMILY):
            module = build(raw)
        return cls(source, hub.load_state(module, folder, FAMILY), raw, patch_size)

    def __init__(self, source: str, module: Any, config: dict[str, Any], patch_size: int) -> None:
        official = source.startswith("Salesforce/moirai-1")
        if patch_size not in module.patch_sizes:
            raise EncoderError(
                f"{FAMILY}: {source} has no patches of {patch_size} steps, only {list(module.patch_sizes)}"
            )
        facts = Facts(
            objective="forecasting",
            context=(module.max_seq_len - 1) * patch_size,  # one token is the masked horizon
            patch=patch_size,
            pretrained_on="LOTSA, 27 billion observations" if official else "not declared",
            code_licence=self.card.code_licence,
            weights_licence="CC-BY-NC-4.0" if official else "not declared",
            final_is=self.card.final_is,
        )
        taps = trunk_taps([f"encoder.layers.{i}" for i in range(module.num_layers)], "encoder.norm")
        super().__init__(f"{FAMILY}:{source}", module, taps, "norm", facts)
        self._config = config

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of ceil(S / patch) tokens and a masked one. Raises `EncoderError` past the context and for missing
        values."""
        refuse_longer(batch, self.facts.context or 0, self.name)
        refuse_missing(batch, self.name)
        patch = self.facts.patch
        width = math.ceil(batch.values.shape[-1] / patch) * patch
        values, observed = right_aligned(batch, width)  # [R, W]
        around = (0, max(self.module.patch_sizes) - patch, 0, 1)  # to the largest patch, and a patch to predict
        seen = F.pad(observed.unfold(-1, patch, patch), around)  # [R, T, largest patch]
        inside = F.pad(seen.any(-1)[:, :-1], (0, 1), value=True)  # [R, T]
        time = (inside.cumsum(-1) - 1).clamp(min=0)
        kwargs = {
            "target": F.pad(values.float().unfold(-1, patch, patch), around),
            "observed_mask": seen,
            "sample_id": inside.long(),
            "time_id": time,
            "variate_id": torch.zeros_like(time),
            "prediction_mask": F.pad(torch.zeros_like(inside[:, :-1]), (0, 1), value=True),
            "patch_size": torch.full_like(time, patch),
        }
        tokens = token_map(batch, patch_starts(batch, patch), patch, suffix=1)
        return Inputs({key: value.to(self.device) for key, value in kwargs.items()}, tokens, batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return build(self._config)


def build(config: dict[str, Any]) -> Any:
    """A Moirai with new weights."""
    module = _import("moirai_module").MoiraiModule
    return module(**{**config, "distr_output": output(config["distr_output"])})


def output(config: dict[str, Any]) -> Any:
    """The output that a config describes by the name of its class. Only those known here are made: uni2ts would import
    and call whatever the config names. Raises `ValueError`."""
    name = str(config["_target_"]).rpartition(".")[2]
    if name not in _OUTPUTS:
        raise ValueError(f"unknown distr_output {name!r}")
    given = {key: value for key, value in config.items() if key != "_target_"}
    if "components" in given:
        given["components"] = [output(component) for component in given["components"]]
    return getattr(_import(f"distribution.{_OUTPUTS[name]}"), name)(**given)


def _import(name: str) -> Any:
    with warnings.catch_warnings():  # gluonts recommends another JSON library
        warnings.simplefilter("ignore")
        return import_module(f"sktime.libs.uni2ts.{name}")
