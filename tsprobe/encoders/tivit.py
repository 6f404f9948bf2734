"""TiViT (Roschmann et al. 2025, arXiv 2506.08641): a series as a picture, read by a vision transformer of timm.

Each channel becomes one grey picture, as in the authors' `ts2image_transformation`: centred at its median and divided
by its interquartile range, cut into windows of P = floor(sqrt(S)) steps, one every P / 10 steps and each a line of the
picture, stretched to [0, 1], raised to the power 0.8, and resized to what the transformer takes by nearest neighbours.
Level and scale are lost. Where there are more windows than lines, from about 550 steps on for 224 lines, windows are
skipped, and with the last of them the last steps of the series; beyond about 50,000 steps, others too.

An image patch is a rectangle of that picture: for each of some windows, some steps from the middle of it. These need
not be next to one another. The token map tells the span from the first of them up to the last; tokens are put in the
order of their first step, since the left part of a line may come after the right part of the line before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.registry import Card
from tsprobe.encoders.rows import refuse_missing
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

FAMILY = "tivit"
OVERLAP, CONTRAST = 0.1, 0.8  # the authors' defaults: a window every tenth of its length; the power of the grey values
EPSILON = 1e-5
DEPTH = 14 / 32  # where the authors read CLIP's ViT-H/14


@dataclass
class _Order:
    """The order of tokens in the pass that is running: `[R, T]`, special tokens first."""

    index: Tensor | None = None

    def apply(self, x: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
        assert self.index is not None
        return x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))


class TiViT(Encoder):
    """A timm vision transformer that looks at series, one channel a row.

    Layers: `embedding` (patches with their positions, special tokens before them), `block.i`, `norm`. `final` is a
    block in the middle, which the authors take; they average the class token with the others, we leave it aside.
    """

    module: Any  # with the attributes of timm's own classes
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:TIMM_ID_OR_FOLDER",
        objective="unknown",
        package="timm",
        extra="vision",
        code_licence="Apache-2.0",
        weights_licence="that of the vision model",
        final_is="TiViT's get_tivit(model_layer=14, aggregation='mean') for a ViT-H/14: the states after 14 of 32 "
        "blocks, before any norm; that share of the blocks for other depths",
    )

    @classmethod
    def load(cls, source: str) -> TiViT:
        """From the id of a timm model, or a folder as `timm.models.save_for_hf` writes it. Raises `EncoderError`."""
        known = Path(source).expanduser().exists() or "/" in source
        folder = hub.find_folder(source if known else f"timm/{source}", FAMILY)
        config = hub.read_config(folder, FAMILY)
        with hub.building(folder, FAMILY):
            module = build(config)
        if not all(hasattr(module, part) for part in ("blocks", "norm", "patch_embed", "num_prefix_tokens")):
            raise EncoderError(f"{FAMILY}: {source} is a {type(module).__name__}, which is no plain vision transformer")
        return cls(source, hub.fill(module, hub.read_state(folder, FAMILY), folder, FAMILY), config)

    def __init__(self, source: str, module: Any, config: dict[str, Any]) -> None:
        self._config = config
        self._order = _Order()
        cfg = module.pretrained_cfg
        self._mean, self._std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
        height, width = module.patch_embed.img_size
        if height != width:
            raise EncoderError(f"{FAMILY}: {source} takes pictures of {height} x {width}; only squares are drawn")
        self._size = height
        facts = Facts(
            objective="unknown",
            min_length=4,
            pretrained_on="pictures, no series",
            code_licence=self.card.code_licence,
            weights_licence=str(cfg.get("license") or "not declared"),
            final_is=self.card.final_is,
        )
        select = self._order.apply
        taps = {"embedding": Tap("blocks.0", "input", select=lambda value: select(_first(value)))}
        for i in range(len(module.blocks)):
            taps[f"block.{i}"] = Tap(f"blocks.{i}", select=lambda value: select(_first(value)))
        taps["norm"] = Tap("norm", select=lambda value: select(_first(value)))
        final = f"block.{max(1, round(DEPTH * len(module.blocks))) - 1}"
        super().__init__(f"{FAMILY}:{source}", module, taps, final, facts)

    def prepare(self, batch: Batch) -> Inputs:
        """B * C pictures; each row has one token a patch behind the special tokens. Raises `EncoderError` for missing
        values."""
        refuse_missing(batch, self.name)
        lengths = batch.lengths.tolist()
        channels = batch.values.shape[1]
        grids = {length: _steps(length, self._size) for length in set(lengths)}
        pictures = torch.stack(
            [
                draw(batch.values[b, c, :length].cpu().float(), grids[length])
                for b, length in enumerate(lengths)
                for c in range(channels)
            ]
        )
        pixels = (pictures[:, None] - self._mean) / self._std  # [R, 3, H, W]
        spans = {length: self._spans(grid) for length, grid in grids.items()}
        rows = [spans[length] for length in lengths for _ in range(channels)]
        start, stop, order = (torch.stack(part).to(batch.lengths.device) for part in zip(*rows, strict=True))
        special = self.module.num_prefix_tokens
        mask = torch.ones_like(start, dtype=torch.bool)
        mask[:, :special] = False
        cls = 0 if getattr(self.module, "cls_token", None) is not None else None
        tokens = TokenMap(mask, start, stop, cls)
        return Inputs({"x": pixels.to(self.device, self.dtype), "order": order.to(self.device)}, tokens, channels)

    def _spans(self, grid: Int[Tensor, "H W"]) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"], Int[Tensor, " T"]]:
        """Of the tokens in order: first step, last step + 1, and the place of each in the transformer's own order."""
        high, wide = self.module.patch_embed.patch_size
        rows, columns = self._size // high, self._size // wide
        patches = grid.unfold(0, high, high).unfold(1, wide, wide).reshape(rows * columns, -1)  # [patches, pixels]
        start, stop = patches.amin(1), patches.amax(1) + 1
        order = torch.argsort(start, stable=True)
        special = torch.zeros(self.module.num_prefix_tokens, dtype=order.dtype)
        place = torch.cat([torch.arange(len(special)), order + len(special)])
        return torch.cat([special, start[order]]), torch.cat([special, stop[order]]), place

    def run(self, inputs: Inputs) -> Any:
        self._order.index = inputs.kwargs["order"]
        try:
            return self.module.forward_features(inputs.kwargs["x"])
        finally:
            self._order.index = None

    def fresh_module(self) -> nn.Module:
        return build(self._config)


def build(config: dict[str, Any]) -> nn.Module:
    """The model that a timm `config.json` names, with new weights. Raises `ValueError` and `TypeError`."""
    import timm

    if not timm.is_model(config.get("architecture", "")):
        raise ValueError(f"timm has no architecture {config.get('architecture')!r}")
    args = {key: config[key] for key in ("num_classes", "global_pool") if key in config} | config.get("model_args", {})
    return timm.create_model(
        config["architecture"], pretrained=False, pretrained_cfg_overlay=config.get("pretrained_cfg"), **args
    )


def draw(series: Float[Tensor, " S"], grid: Int[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """Grey values of a picture that shows the step `grid[y, x]` at each place."""
    quartiles = torch.quantile(series, torch.tensor([0.25, 0.75]))
    scaled = (series - series.median()) / (quartiles.diff() + EPSILON)
    low, high = scaled.min(), scaled.max()
    return (((scaled - low) / (high - low + EPSILON)) ** CONTRAST)[grid]


def _steps(length: int, size: int) -> Int[Tensor, "H W"]:
    """The step that each place of the picture shows: line by line the windows, the first one filled up with step 0."""
    window = math.isqrt(length)
    stride = max(1, int(window * OVERLAP))
    filled = -(length - window) % stride
    count = (length + filled - window) // stride + 1
    place = torch.arange(size)
    first = stride * (place * count // size)  # nearest neighbours
    return (first[:, None] + place * window // size - filled).clamp(min=0)


def _first(value: Any) -> Tensor:
    return value if isinstance(value, torch.Tensor) else value[0]
