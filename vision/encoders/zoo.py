"""The zoo of vision: small towers trained by several objectives on the same pictures, with weights in `vision/zoo/`.

Layers: `embedding`, `block.i`, `norm`, `pool` (the attention pooling, or what stands for it) and, where images and
captions share a space, `projection`. A folder that `tsprobe pretrain` wrote is loaded as `vision:FOLDER`.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from tsprobe.encoders import hub
from tsprobe.encoders.base import Tap, trunk_taps
from tsprobe.encoders.registry import Card
from tsprobe.errors import EncoderError, UnknownNameError
from tsprobe.types import Inputs
from vision.encoders.base import ImageEncoder, Look, image_facts
from vision.encoders.pixels import NAME, Pixels
from vision.models import MODEL_TYPE, build, load_tower

if TYPE_CHECKING:
    from torch import Tensor

FAMILY = "vision"
_HALF = (0.5, 0.5, 0.5)  # images go in from -1 to 1


class VisionZoo(ImageEncoder):
    """Square pictures of any number of whole patches; `size`, in pixels, by default that of the training."""

    module: Any
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}/NAME",
        objective="contrastive, autoregressive, self-distillation; none for pixels",
        package=None,
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        final_is="the image embedding of a contrastive tower; of others the tokens after the last norm",
    )

    @classmethod
    def load(cls, source: str, *, size: int | None = None) -> ImageEncoder:
        """A shipped tower by name, `pixels`, or the folder of a finished run. Raises `EncoderError`."""
        if f"{FAMILY}/{source}" == NAME:
            return Pixels()
        if source in names():
            with as_file(files("vision") / "zoo" / source) as folder:
                return cls._from_folder(folder, f"{FAMILY}/{source}", size)
        if Path(source).expanduser().is_dir() or "/" in source:
            return cls._from_folder(hub.find_folder(source, FAMILY), f"{FAMILY}:{source}", size)
        raise UnknownNameError("encoder", f"{FAMILY}/{source}", [NAME, *(f"{FAMILY}/{name}" for name in names())])

    @classmethod
    def _from_folder(cls, folder: Path, name: str, size: int | None) -> VisionZoo:
        config = hub.read_config(folder, FAMILY, MODEL_TYPE)
        module = load_tower(config, folder, FAMILY)
        with hub.building(folder, FAMILY):
            return cls(name, module, config, size)

    def __init__(self, name: str, module: Any, config: dict[str, Any], size: int | None = None) -> None:
        shape = module.shape
        size = size or shape.size
        if size < shape.patch or size % shape.patch:
            raise EncoderError(f"{name}: size={size}: pictures must be whole patches of {shape.patch} pixels")
        taps = trunk_taps([f"blocks.{i}" for i in range(len(module.blocks))], "norm")
        heads = {"pool": Tap("pool", select=_as_token)}
        if not isinstance(module.projection, nn.Identity):
            heads["projection"] = Tap("projection", select=_as_token)
        facts = image_facts(
            objective=str(config.get("objective", "unknown")),
            pretrained_on=str(config.get("pretrained_on", "not declared")),
            code_licence=self.card.code_licence,
            weights_licence=self.card.weights_licence,
            final_is=self.card.final_is,
            overlaps=tuple(map(str, config.get("overlaps", ()))),
        )
        look = Look(size, size // shape.patch, _HALF, _HALF, prefix=int(shape.cls), cls=0 if shape.cls else None)
        final = "projection" if "projection" in heads else "norm"
        super().__init__(name, module, taps | heads, final, facts, look, heads=heads)
        self.attention = {f"block.{i}": f"blocks.{i}" for i in range(len(module.blocks))}
        self._config = config

    def run(self, inputs: Inputs) -> Tensor:
        return self.module.encode(inputs.kwargs["x"])

    def fresh_module(self) -> nn.Module:
        return build(self._config)


def names() -> list[str]:
    """The towers whose weights are shipped."""
    folder: Any = files("vision") / "zoo"
    return (
        sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file()) if folder.is_dir() else []
    )


def _as_token(vector: Tensor) -> Tensor:
    return vector[:, None]  # [R, 1, D]
