"""Vision transformers of timm: Perception Encoder (Bolya et al. 2025, arXiv 2504.13181) in all its sizes, and what it
is compared with (AIMv2, DINOv2 and v3, SigLIP, CLIP, plain ViTs).

`timm:SOURCE` takes what `vision.encoders.sources` lists, and settings behind a question mark or as options:

| setting | meaning |
|---|---|
| size | of the pictures in pixels, whole patches; by default the size that the model was trained for |
| positions | at another size: `meta` (PE's own code, its default) or `timm` (`vision.encoders.sizes`) |

`timm:vit_pe_spatial_small_patch16_512?size=384&positions=timm`. Layers: `embedding`, what enters the first block (after
PE's norm before it); `block.i`; `norm`, where there is one (PE lang and spatial have none); `pool`, the output of the
attention pooling, or the normalised mean; `projection`, the image embedding in the space shared with text;
`classifier`, the logits of a supervised model. The class
token and registers lie before the patches (PE G has neither), and are no part of pooled vectors but of `cls`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, urlencode

from tsprobe.encoders import hub
from tsprobe.encoders.base import Tap, trunk_taps
from tsprobe.encoders.registry import Card, Size
from tsprobe.encoders.tivit import build
from tsprobe.errors import EncoderError
from vision.encoders import sources
from vision.encoders.base import ImageEncoder, Look, image_facts
from vision.encoders.declared import CONTRASTIVE, objective, pretrained_on
from vision.encoders.sizes import chosen_rule, config_at, moved
from vision.encoders.sources import FAMILY, Source

if TYPE_CHECKING:
    from torch import Tensor, nn

_PARTS = ("blocks", "norm", "patch_embed", "num_prefix_tokens")
_SETTINGS = ("size", "positions")
_CLASSIFIER = "classifier"


class VisionTransformer(ImageEncoder):
    """`final` is what users take: the projected embedding of contrastive models, else the pooled output of models that
    have one, else the tokens after the last norm (of PE lang and spatial after the last block)."""

    module: Any  # with the attributes of timm's own classes
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:MODEL_OR_FOLDER_OR_FILE",
        objective="contrastive, language alignment, spatial alignment, self-distillation, autoregressive, supervised",
        package="timm",
        extra="vision",
        code_licence="Apache-2.0",
        weights_licence="that of the model; Apache-2.0 for PE",
        final_is="PE core, CLIP: the projected embedding; SigLIP: the pooled output; PE lang: the tokens after the "
        "last block; others: the tokens after the last norm",
        sizes=(
            Size("PE core T", 12, 192, 6_140_000),
            Size("PE core S", 12, 384, 23_780_000),
            Size("PE core B", 12, 768, 93_670_000),
            Size("PE core L", 24, 1024, 317_150_000),
            Size("PE core G", 50, 1536, 1_882_030_000),
        ),
    )

    @classmethod
    def load(cls, source: str, *, size: int | None = None, positions: str | None = None) -> VisionTransformer:
        """From what stands behind `timm:`. Raises `EncoderError`."""
        place, size, positions = _settings(source, size, positions)
        found = sources.find(place)
        config, rule = found.config, chosen_rule(found.config["architecture"], positions)
        with hub.building(found.place, FAMILY, file=""):
            module: Any = build(config)
        if not all(hasattr(module, part) for part in _PARTS):
            raise EncoderError(f"{FAMILY}: {place} is a {type(module).__name__}, which is no plain vision transformer")
        if hub.wants_weights():
            found.fill(module)
        height, width = module.patch_embed.img_size
        if height != width and size is None:
            raise EncoderError(f"{FAMILY}: {place} takes pictures of {height} x {width}; give a size, for squares")
        if size not in (None, height) or positions is not None:
            config = config_at(config, size or height, module.patch_embed.patch_size[0], rule)
            with hub.building(found.place, FAMILY, file=""):
                module = moved(module, config, rule)
        given = {"size": size, "positions": positions}
        query = urlencode({key: value for key, value in given.items() if value is not None})
        return cls(f"{FAMILY}:{place}{'?' if query else ''}{query}", module, config, found)

    def __init__(self, name: str, module: Any, config: dict[str, Any], source: Source) -> None:
        self._config = config
        declared = module.pretrained_cfg
        objective_of = objective(source.model)
        taps, heads = _layers(module, objective_of)
        facts = image_facts(
            objective=objective_of,
            pretrained_on=pretrained_on(source.model),
            code_licence=self.card.code_licence,
            weights_licence=str(declared.get("license") or "not declared"),
            final_is=self.card.final_is,
        )
        look = Look(
            size=module.patch_embed.img_size[0],
            grid=module.patch_embed.grid_size[0],
            mean=tuple(declared["mean"]),
            std=tuple(declared["std"]),
            prefix=module.num_prefix_tokens,
            cls=0 if getattr(module, "cls_token", None) is not None else None,
        )
        final = [name for name in taps if name != _CLASSIFIER][-1]
        super().__init__(name, module, taps, final, facts, look, heads=heads)
        self.attention = {f"block.{i}": f"blocks.{i}.attn" for i in range(len(module.blocks))}

    def fresh_module(self) -> nn.Module:
        return build(self._config)

    def fingerprint(self) -> str:
        """As of any encoder of images, and with the rule of positions, which need not be among the weights."""
        given = sorted(self._config.get("model_args", {}).items())
        return hashlib.sha256(f"{super().fingerprint()} {given}".encode()).hexdigest()


def _settings(source: str, size: int | None, positions: str | None) -> tuple[str, int | None, str | None]:
    """The source without its query, and the settings in that, over which options go."""
    place, _, query = source.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [key for key in given if key not in _SETTINGS]
    if unknown:
        raise EncoderError(f"{FAMILY}: no setting {unknown[0]!r}; there are {', '.join(_SETTINGS)}")
    size = given.get("size") if size is None else size  # type: ignore[assignment]
    if size is not None:
        try:
            size = int(size)
        except ValueError:
            raise EncoderError(f"{FAMILY}: size={size!r} is no number of pixels") from None
    return place, size, given.get("positions") if positions is None else positions


def _layers(module: Any, objective_of: str) -> tuple[dict[str, Tap], list[str]]:
    """The taps of a vision transformer, and the names of those past its trunk."""
    from torch.nn import Identity, Linear

    blocks = [f"blocks.{i}" for i in range(len(module.blocks))]
    taps = trunk_taps(blocks, None if isinstance(module.norm, Identity) else "norm")
    heads = {}
    if getattr(module, "attn_pool", None) is not None:
        heads["pool"] = Tap("attn_pool", select=_as_token)
    elif not isinstance(getattr(module, "fc_norm", Identity()), Identity):
        heads["pool"] = Tap("fc_norm", select=_as_token)
    if isinstance(getattr(module, "head", None), Linear):
        heads["projection" if objective_of == CONTRASTIVE else _CLASSIFIER] = Tap("head", select=_as_token)
    return taps | heads, list(heads)


def _as_token(vector: Tensor) -> Tensor:
    return vector[:, None]  # [R, 1, D]
