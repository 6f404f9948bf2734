"""The zoo: one small backbone trained with several objectives, everything else equal. The weights ship with tsprobe.

Layers: `embedding`, `block.0` … `block.11`, `norm`, and past it the part that the objective added (`head`,
`projector` or `predictor`), which users throw away. A folder that `tsprobe pretrain` wrote is loaded as `zoo:FOLDER`.
"""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from tsprobe.encoders import hub
from tsprobe.encoders.backbone import Shape
from tsprobe.encoders.base import Encoder, Facts, Tap, trunk_taps
from tsprobe.encoders.registry import Card
from tsprobe.encoders.rows import patch_starts, refuse_longer, right_aligned, token_map
from tsprobe.encoders.zoo_model import RECIPES, ZooModel, normalise
from tsprobe.errors import UnknownNameError
from tsprobe.types import Batch, Inputs, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

FAMILY = "zoo"
MODEL_TYPE = "tsprobe-zoo"
CONTROL = "untrained"


class Zoo(Encoder):
    """One channel a row, patches that end with the series. Missing steps are told to the network, step by step.

    Each window is scaled by its own mean and spread, so level and amplitude of a series are not in the features.
    `forecasting` and `next-latent` attend backwards only (the scale, too, knows the whole window).
    """

    module: ZooModel
    card: ClassVar[Card] = Card(
        pattern="zoo/NAME",
        objective=", ".join(RECIPES),
        package=None,
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        final_is="the tokens after the last norm, before the part that the objective added",
    )

    @classmethod
    def load(cls, source: str | None) -> Encoder:
        """A shipped encoder by name, `untrained`, or the folder of a finished run. Raises `EncoderError`."""
        assert source is not None  # the pattern has no bare name
        if source == CONTROL:
            return cls._control()
        if source in names():
            with as_file(files("tsprobe") / "zoo" / source) as folder:
                return cls._from_folder(folder, f"{FAMILY}/{source}")
        if source in aligned_names():
            from tsprobe.encoders.aligned import Aligned

            with as_file(files("tsprobe") / "zoo" / source) as folder:
                return Aligned.load(str(folder), name=f"{FAMILY}/{source}")
        if Path(source).expanduser().is_dir() or "/" in source:
            return cls._from_folder(hub.find_folder(source, FAMILY), f"{FAMILY}:{source}")
        raise UnknownNameError(
            "encoder", f"{FAMILY}/{source}", [f"{FAMILY}/{name}" for name in (*names(), *aligned_names(), CONTROL)]
        )

    @classmethod
    def _from_folder(cls, folder: Path, name: str) -> Zoo:
        config = hub.read_config(folder, FAMILY, MODEL_TYPE)
        with hub.building(folder, FAMILY):
            shape, objective = Shape(**config["shape"]), config["objective"]
            with torch.device("meta"):
                skeleton = ZooModel(shape, objective)
            hub.refuse_larger(skeleton, folder, FAMILY)
            if hub.wants_weights():  # before sizes of the config are made real
                hub.check_weights(skeleton, folder, FAMILY)
            module = ZooModel(shape, objective)
            recipe, trained_on = RECIPES[objective], str(config["pretrained_on"])
            overlaps = tuple(map(str, config["overlaps"]))
        hub.load_state(module, folder, FAMILY)  # half precision in the file, float32 in the module
        facts = cls._facts(shape, objective, trained_on, overlaps)
        return cls(name, module, objective, recipe.layer, facts)

    @classmethod
    def _control(cls) -> Zoo:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(0)
            module = ZooModel(Shape())
        return cls(f"{FAMILY}/{CONTROL}", module, None, None, cls._facts(Shape(), CONTROL, "nothing", ()))

    @classmethod
    def _facts(cls, shape: Shape, objective: str, trained_on: str, overlaps: tuple[str, ...]) -> Facts:
        return Facts(
            objective=objective,
            context=shape.context,
            min_length=shape.patch,
            patch=shape.patch,
            masks_missing=True,
            pretrained_on=trained_on,
            code_licence=cls.card.code_licence,
            weights_licence=cls.card.weights_licence,
            final_is=cls.card.final_is,
            overlaps=overlaps,
        )

    def __init__(self, name: str, module: ZooModel, objective: str | None, head: str | None, facts: Facts) -> None:
        shape = module.backbone.shape
        taps = trunk_taps([f"backbone.blocks.{i}" for i in range(shape.depth)], "backbone.norm")
        if head is not None:
            taps[head] = Tap("head")
        super().__init__(name, module, taps, "norm", facts, heads=int(head is not None))
        self.attention = {f"block.{i}": f"backbone.blocks.{i}" for i in range(shape.depth)}
        self._objective, self._head = objective, head

    def prepare(self, batch: Batch) -> Inputs:
        """B * C rows of patches. Raises `EncoderError` past the context."""
        shape = self.module.backbone.shape
        refuse_longer(batch, shape.context, self.name)
        start = patch_starts(batch, shape.patch)
        values, observed = right_aligned(batch, start.shape[1] * shape.patch)
        values, observed = values.to(self.device), observed.to(self.device)
        kwargs = {
            "values": normalise(values, observed).unflatten(-1, (-1, shape.patch)).to(self.dtype),  # [R, T, P]
            "observed": observed.unflatten(-1, (-1, shape.patch)),
        }
        tokens = token_map(batch, start, shape.patch)
        maps = dict.fromkeys(self.taps, tokens)
        if self._objective == "contrastive":
            maps[str(self._head)] = _one_token(tokens)
        return Inputs(kwargs, maps, batch.values.shape[1])

    def fresh_module(self) -> nn.Module:
        return ZooModel(self.module.backbone.shape, self._objective)


def names() -> list[str]:
    """The encoders whose weights are shipped, in the order of their objectives; `aligned_names` are not among them."""
    return [name for name in RECIPES if name in _shipped(MODEL_TYPE)]


def aligned_names() -> list[str]:
    """Those of them that alignment tuning gave back: NAME-RECIPE."""
    from tsprobe.encoders.aligned import MODEL_TYPE as TUNED

    return sorted(_shipped(TUNED))


def _shipped(model_type: str) -> set[str]:
    folder: Any = files("tsprobe") / "zoo"
    entries = folder.iterdir() if folder.is_dir() else ()
    configs = {entry.name: entry / "config.json" for entry in entries if entry.is_dir()}
    return {
        name
        for name, config in configs.items()
        if config.is_file() and json.loads(config.read_text())["model_type"] == model_type
    }


def _one_token(tokens: TokenMap) -> TokenMap:
    """The map of a layer with one token a row, which has seen all the real tokens."""
    mask: Bool[Tensor, "R 1"] = tokens.mask.any(1, keepdim=True)
    late = torch.iinfo(tokens.start.dtype).max
    start = torch.where(tokens.mask, tokens.start, late).amin(1, keepdim=True)
    return TokenMap(mask, torch.where(mask, start, 0), tokens.stop.amax(1, keepdim=True))
