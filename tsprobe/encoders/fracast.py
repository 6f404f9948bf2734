"""Fracast-0: one causal convolution block, run ten times at dilations 1, 2, 4, … over a window of 2048 steps.

The weights come with the installed package. `block.i` is the i-th call of the one block; `embedding` is its stream
before the first scale conditioning; `norm` is what the forecast head consumes. Every window is padded on the left to
2048 steps and scaled to [0, 1] over its observed values, as `fracast.FracastModel` does.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.rows import before_end, refuse_longer, right_aligned, token_map
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

FAMILY = "fracast"


class Fracast(Encoder):
    """Core and head of a Fracast forecaster, one channel a row; only the core is run.

    Series shorter than 8 steps are refused, as by the package, which needs 8 observed values.
    """

    module: Any  # with the attributes of the package's own class
    card: ClassVar[Card] = Card(
        pattern="fracast[:ID_OR_FOLDER]",
        objective="forecasting",
        package="fracast",
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        final_is="the output of FracastModel.core, which its forecast head consumes (the package has no embed call)",
        sizes=(Size("", 10, 64, 85_001),),
    )

    @classmethod
    def load(cls, source: str | None) -> Fracast:
        """The float32 weights of the installed package, or of a hub id or local folder. Raises `EncoderError`."""
        if source is not None:
            return cls._from_folder(hub.find_folder(source, FAMILY), source)
        with as_file(files("fracast") / "weights") as folder:
            return cls._from_folder(folder, None)

    @classmethod
    def _from_folder(cls, folder: Path, source: str | None) -> Fracast:
        config = hub.read_config(folder, FAMILY)
        with hub.building(folder, FAMILY):
            module = build(config)
        return cls(hub.load_state(module, folder, FAMILY), config, source)

    def __init__(self, module: Any, config: dict[str, Any], source: str | None) -> None:
        core = module["core"]
        facts = Facts(
            objective="forecasting",
            context=core.W,
            min_length=8,
            masks_missing=True,
            pretrained_on="GIFT-Eval pretraining, LOTSA, Chronos, BOOM and fev corpora, TinyCast synthetic series"
            if source is None
            else "not declared",
            code_licence=self.card.code_licence,
            weights_licence=self.card.weights_licence if source is None else "not declared",
            final_is=self.card.final_is,
        )
        shared = core.share_stages
        taps = {"embedding": Tap("core.block" if shared else "core.blocks.0", "input")}
        if core.scale is not None:
            taps["embedding"] = Tap("core.scale", "input")
        for i in range(core.n_stages):
            taps[f"block.{i}"] = Tap("core.block", call=i) if shared else Tap(f"core.blocks.{i}")
        taps["norm"] = Tap("core.norm")
        super().__init__(FAMILY if source is None else f"{FAMILY}:{source}", module, taps, "norm", facts)
        self._config = config
        self._width = core.W

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of 2048 tokens, a step each. Raises `EncoderError` past 2048 steps."""
        refuse_longer(batch, self._width, self.name)
        values, observed = right_aligned(batch, self._width)
        start = before_end(batch, torch.arange(self._width, 0, -1))
        observed = observed.to(self.device)
        kwargs = {
            "values": _to_unit_range(values.to(self.device), observed)[:, None],  # [R, 1, W]
            "mask": observed[:, None],
            "cov": observed[:, None].float(),
        }
        return Inputs(kwargs, token_map(batch, start, 1), batch.values.shape[1])

    def run(self, inputs: Inputs) -> Any:
        return self.module["core"](**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        return build(self._config)


def build(config: dict[str, Any]) -> nn.ModuleDict:
    """Core and head with new weights, named as in the released files."""
    from fracast.inference import build_from_cfg

    core, head = build_from_cfg({key: config[key] for key in ("model", "pyramid")})
    return nn.ModuleDict({"core": core, "head": head})


def _to_unit_range(values: Float[Tensor, "R W"], observed: Bool[Tensor, "R W"]) -> Float[Tensor, "R W"]:
    """(x - min) / max(max - min, 1e-5) over the observed values, in float64 as in the package; 0 elsewhere."""
    values = values.double()
    low = torch.where(observed, values, torch.inf).amin(-1, keepdim=True)
    high = torch.where(observed, values, -torch.inf).amax(-1, keepdim=True)
    return torch.where(observed, (values - low) / (high - low).clamp(min=1e-5), 0).float()
