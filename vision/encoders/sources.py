"""From what stands behind `timm:` to an architecture and its weights.

| source | architecture | weights |
|---|---|---|
| `vit_pe_core_base_patch16_224`, with or without `.tag` | timm's own | the hub's `timm/MODEL.TAG` |
| `FOLDER`, `OWNER/NAME` as `timm.models.save_for_hf` writes it | `config.json` | `model.safetensors` |
| `PE-Core-B16-224.pt`, or a folder or hub id of that name (`facebook/PE-Core-B16-224`) | by Meta's name | that file |
| `MODEL@FILE`, `FOLDER@FILE` | the left | the right, a pickle of tensors or safetensors |

Weights in another layout than timm's, such as Meta's, are converted by timm's own filter for the architecture. Whatever
the way, they must be all of the model's weights and no others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.encoders import hub, pickles
from tsprobe.errors import EncoderError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILY = "timm"
_META = re.compile(r"PE-(Core|Lang|Spatial)-([TSBLG])(\d+)-(\d+)(-Tiling)?")
_SIZES = {"T": "tiny", "S": "small", "B": "base", "L": "large", "G": "gigantic"}
_PICKLES = (".pt", ".pth", ".bin")
_Read = Callable[[], "Mapping[str, Tensor]"]


@dataclass(frozen=True)
class Source:
    """A model that can be built: `config` as in timm's `config.json`, `read` for its weights, `place` for messages."""

    config: dict[str, Any]
    place: Path
    read: _Read

    @property
    def model(self) -> str:
        """The name of the architecture, with the tag of its weights behind it where there is one."""
        tag = (self.config.get("pretrained_cfg") or {}).get("tag")
        return f"{self.config['architecture']}.{tag}" if tag else self.config["architecture"]

    def fill(self, module: nn.Module) -> nn.Module:
        """Give the module these weights. Raises `EncoderError` unless they are all of its own and no others."""
        state = self.read()
        if set(state) != set(module.state_dict()):
            state = _converted(state, module, self.place)
        return hub.fill(module, state, self.place, FAMILY)


def find(source: str) -> Source:
    """Raise `EncoderError` for what is none of the above."""
    left, at, right = source.partition("@")
    if at and not Path(source).expanduser().exists():
        known = find(left)
        file = Path(right).expanduser()
        return Source(known.config, file, lambda: _tensors(file))
    path = Path(source).expanduser()
    if path.is_file():
        return Source(registered(_timm_name(path.stem, path)), path, lambda: _tensors(path))
    if not path.exists() and _is_model(source):
        return Source(registered(source), Path(source), lambda: _from_hub(source))
    if not path.exists() and re.fullmatch(r"[\w.-]*\w", source):
        import timm

        raise UnknownNameError("timm model", source, timm.list_models())
    meta = _META.fullmatch(path.name)
    if meta is None or (path / "config.json").exists():
        folder = hub.find_folder(source, FAMILY)
        return Source(_described(folder), folder, lambda: hub.read_state(folder, FAMILY))
    file = hub.find_folder(source, FAMILY, [f"{path.name}.pt"]) / f"{path.name}.pt" if hub.wants_weights() else path
    return Source(registered(_timm_name(path.name, path)), file, lambda: _tensors(file))


def registered(model: str) -> dict[str, Any]:
    """The config of a model that timm has under this name. Raises `EncoderError` for others."""
    from timm.models import get_pretrained_cfg

    if not _is_model(model):
        raise EncoderError(f"{FAMILY}: timm has no architecture {model!r}")
    known = get_pretrained_cfg(model)
    if known is None:
        if "." in model:
            raise EncoderError(f"{FAMILY}: timm knows of no weights {model!r}")
        return {"architecture": model}
    return {"architecture": model.partition(".")[0], "pretrained_cfg": known.to_dict()}


def _is_model(name: str) -> bool:
    import timm

    return timm.is_model(name.partition(".")[0])


def _timm_name(meta: str, path: Path) -> str:
    match = _META.fullmatch(meta)
    if match is None:
        raise EncoderError(
            f"{FAMILY}: {path} is none of Meta's names, such as PE-Core-B16-224.pt: write {FAMILY}:MODEL@{path} with "
            "the name of its architecture"
        )
    kind, letter, patch, size, tiling = match.groups()
    name = f"vit_pe_{kind.lower()}_{_SIZES[letter]}_patch{patch}_{size}"
    return f"{name}.fb_tiling" if tiling else f"{name}.fb"


def _described(folder: Path) -> dict[str, Any]:
    config = hub.read_config(folder, FAMILY)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not _is_model(architecture):
        raise EncoderError(f"{FAMILY}: {folder / 'config.json'}: timm has no architecture {architecture!r}")
    return config


def _from_hub(model: str) -> dict[str, Tensor]:
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(model)
    if known is None or not known.hf_hub_id:
        raise EncoderError(f"{FAMILY}: timm has no weights for {model}; give {FAMILY}:{model}@FILE")
    return hub.read_state(hub.find_folder(known.hf_hub_id, FAMILY), FAMILY)


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, out of the dicts around them. Raises `EncoderError`."""
    if not file.exists():
        raise EncoderError(f"{FAMILY}: there is no file {file}")
    if file.is_dir():
        return hub.read_state(file, FAMILY)
    if file.suffix == ".safetensors":
        return _safetensors(file)
    if file.suffix not in _PICKLES:
        raise EncoderError(f"{FAMILY}: {file} must end in {', '.join(_PICKLES)} or .safetensors")
    loaded = pickles.read_pickle(file, FAMILY)
    for key in ("model", "state_dict", "weights"):
        inner = loaded.get(key)
        loaded = inner if isinstance(inner, dict) else loaded
    return {name.removeprefix("module."): value for name, value in pickles.tensors_in(loaded, file, FAMILY).items()}


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{FAMILY}: {file} is not a whole safetensors file ({error})") from error


def _converted(state: Mapping[str, Tensor], module: nn.Module, place: Path) -> Mapping[str, Tensor]:
    """The weights under timm's names, by the filter that stands beside the module's class."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(dict(state), module)
    except (KeyError, IndexError, RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        what = type(module).__name__
        raise EncoderError(f"{FAMILY}: {place} does not hold the weights of this {what} ({error!r})") from error
