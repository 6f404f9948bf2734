"""Weights from a local folder or the Hugging Face hub: all of them, in safetensors, or none.

A checkpoint is compared with the architecture by name and shape before anything is loaded. The loaders of the model
packages fill weights that a checkpoint lacks with random numbers (Chronos-Bolt even lists its patch embeddings as
ignorable), and an encoder loaded in part looks just like a bad one. Remote code is never run. Pickles are read only
where a family is published as nothing else, and then as bare tensors (`weights_only=True`).
"""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tsprobe.encoders.pickles import read_pickle, tensors_in
from tsprobe.errors import DAMAGE, EncoderError, TsprobeError, reason
from tsprobe.files import read_json

if TYPE_CHECKING:
    from torch import nn

_WITH_WEIGHTS = ContextVar("with weights", default=True)
_HUB_FILES = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


def find_folder(source: str, family: str, files: Collection[str] = ()) -> Path:
    """The folder with the files of `source`: a local folder, or a hub id, from the cache or fetched.

    `files` are names that this family needs beside config.json and safetensors. Raises `EncoderError` for a folder
    that does not exist and for an id that the hub does not give.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise EncoderError(f"{family}: {source} is a file; give its folder, which holds config.json too")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source):
        raise EncoderError(f"{family}: there is no folder {source}")
    return _download(source, family, files)


def _download(source: str, family: str, files: Collection[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo_id=source, allow_patterns=[*_HUB_FILES, *files]))
    except RepositoryNotFoundError as error:
        raise EncoderError(
            f"{family}: there is no folder {source!r}, and the hub has no model of that name that it lets you read"
        ) from error
    except (OSError, HTTPError, HFValidationError) as error:
        raise EncoderError(
            f"{family}: {source!r} is neither a folder nor in the local cache, and the hub does not give it "
            f"({str(error).strip().splitlines()[0]}); where it does, run `hf download {source} --local-dir FOLDER`, "
            f"bring the folder here and give {family}:FOLDER"
        ) from error


def read_config(folder: Path, family: str, model_type: str | None = None) -> dict[str, Any]:
    """The contents of `config.json`, which must be of the given model type. Raises `EncoderError`."""
    file = folder / "config.json"
    try:
        config = read_json(file)
    except FileNotFoundError as error:
        raise EncoderError(f"{family}: {folder} has no config.json") from error
    except (OSError, ValueError) as error:
        raise EncoderError(f"{family}: {file} cannot be read: {reason(error)}") from error
    found = config.get("model_type")
    if model_type is not None and found != model_type:
        raise EncoderError(f"{family}: {file} describes a model of type {found!r}, not {model_type!r}")
    return _harmless(config, family, file)


# How attention and experts are computed says nothing of what a model is; transformers takes names of the hub for it,
# and runs the code that it finds there.
_COMPUTED = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
             "_experts_implementation", "_experts_implementation_internal")  # fmt: skip


_LAYERS, _DEEPEST = re.compile("layer|depth|block"), 10_000  # building more of them, even without weights, takes hours


def _harmless(config: dict[str, Any], family: str, file: Path) -> dict[str, Any]:
    """A config, and those in it, without `_COMPUTED`. Raises `EncoderError` for names of code among these, for
    quantized weights and for more layers than can be built."""
    if config.get("quantization_config"):
        raise EncoderError(f"{family}: {file} describes quantized weights, which are not read")
    deep = next((key for key, value in config.items() if _LAYERS.search(str(key)) and _is_more(value, _DEEPEST)), None)
    if deep is not None:
        raise EncoderError(f"{family}: {file} says {deep}: {str(config[deep])[:20]}; no network is that deep")
    code = next((config[key] for key in _COMPUTED if "/" in str(config.get(key))), None)
    if code is not None:
        raise EncoderError(f"{family}: {file} asks for code from elsewhere ({str(code)[:100]!r}), which is never run")
    return {
        key: _harmless(value, family, file) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _COMPUTED
    }


def _is_more(value: Any, most: int) -> bool:
    return isinstance(value, (int, float)) and value > most


def architecture(config: dict[str, Any]) -> str:
    """The class that saved a checkpoint, as its config says; empty where it does not."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def described(source: str, family: str, model_type: str, config_class: Any) -> tuple[Path, dict[str, Any], Any]:
    """The folder of a source, its `config.json`, and what `config_class` makes of that. Raises `EncoderError`."""
    folder = find_folder(source, family)
    raw = read_config(folder, family, model_type)
    with building(folder, family):
        return folder, raw, config_class.from_dict(raw)


@contextmanager
def building(folder: Path, family: str, file: str = "config.json") -> Iterator[None]:
    """Tell what is wrong with a config from which the model's own classes cannot be built."""
    try:
        from huggingface_hub.errors import StrictDataclassError
    except ImportError:  # older ones, in a worker's environment, have no such error
        StrictDataclassError = ValueError  # type: ignore[misc, assignment]

    try:
        yield
    except TsprobeError:
        raise
    except (*DAMAGE, ImportError, StrictDataclassError) as error:
        why = f"{type(error).__name__}: {reason(error)}"
        raise EncoderError(f"{family}: {folder / file} does not describe such a model ({why})") from error


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, `load_pretrained` and `load_state` make the network that a config describes, and look for no weights."""
    token = _WITH_WEIGHTS.set(False)
    try:
        yield
    finally:
        _WITH_WEIGHTS.reset(token)


def wants_weights() -> bool:
    """False inside `without_weights`, for families that find their weights in a way of their own."""
    return _WITH_WEIGHTS.get()


def load_pretrained(
    model_class: Any,
    config: Any,
    folder: Path,
    family: str,
    *,
    unused: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
) -> nn.Module:
    """A transformers model in float32 with exactly the weights of a folder.

    `unused` are prefixes of weights that the folder may hold beside them, such as a head. `renamed` are parts of names
    in the folder, and what transformers makes of them. Raises `EncoderError` that names the first weights missing,
    unexpected or of another shape.
    """
    with building(folder, family), quiet(), torch.device("meta"):
        skeleton = model_class(copy.deepcopy(config))  # building may write to the config
    refuse_larger(skeleton, folder, family)
    if not _WITH_WEIGHTS.get():
        with building(folder, family), quiet():
            return model_class(copy.deepcopy(config))
    prefix = f"{skeleton.base_model_prefix}."
    check_weights(skeleton, folder, family, prefix=prefix, unused=unused, renamed=renamed)
    with building(folder, family), quiet():  # its load report would say again what was checked above
        return model_class.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, reports, and remarks on the age of the code, which only its authors can act on."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def refuse_larger(skeleton: nn.Module, folder: Path, family: str) -> None:
    """Raise `EncoderError` for a network that this machine has no memory for; a skeleton (on torch's device `meta`) has
    its sizes alone."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    size = sum(each.numel() * each.element_size() for each in skeleton.state_dict().values())
    if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise EncoderError(
            f"{family}: {folder} describes a network of {size / 1e9:.0f} GB; this machine has {memory / 1e9:.0f} GB"
        )


def load_vendored(model_class: Any, source: str, family: str, model_type: str, config_class: Any) -> nn.Module:
    """A model of a class that is not transformers' own, with exactly the weights of a source. Raises `EncoderError`.

    Not by its `from_pretrained`: that leaves the tables of rotary positions, which no checkpoint holds, uninitialised.
    """
    folder, _, config = described(source, family, model_type, config_class)
    with building(folder, family):
        module = model_class(config)
    return load_state(module, folder, family)


def load_state(module: nn.Module, folder: Path, family: str) -> nn.Module:
    """Fill a plain module with exactly the weights of a folder. Raises `EncoderError` as `load_pretrained` does."""
    if not _WITH_WEIGHTS.get():
        return module
    return fill(module, read_state(folder, family), folder, family)


def read_state(folder: Path, family: str, pickle: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a folder's safetensors files; failing these, of the file named `pickle`. Raises `EncoderError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / (pickle or "")
    if pickle is None or not file.exists() or (folder / "model.safetensors").exists():
        state: dict[str, torch.Tensor] = {}
        for part in _weight_files(folder, family):
            try:
                state |= load_file(part)
            except (SafetensorError, OSError) as error:
                raise EncoderError(f"{family}: {part} is not a whole safetensors file ({error})") from error
        return state
    return tensors_in(read_pickle(file, family), file, family)


def fill(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    folder: Path,
    family: str,
    *,
    absent: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
) -> nn.Module:
    """Fill a plain module with exactly these weights: all of its own but those that begin with a prefix in `absent`,
    and none besides but those that begin with one in `unused`. Raises `EncoderError` as `load_pretrained` does."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    _compare(module, shapes, folder, family, absent, unused)
    own = module.state_dict()
    module.load_state_dict({**own, **{name: tensor for name, tensor in state.items() if name in own}})
    return module


def check_weights(
    module: nn.Module,
    folder: Path,
    family: str,
    *,
    prefix: str = "",
    unused: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Raise `EncoderError` unless a folder holds each weight of the module, in its shape, and no other.

    Of tied weights one is enough. Names in the folder may carry `prefix`.
    """
    stored = {}
    for name, shape in _stored(folder, family).items():
        for part, new in (renamed or {}).items():
            name = name.replace(part, new)
        stored[name.removeprefix(prefix)] = shape
    _compare(module, stored, folder, family, (), unused)


def _compare(
    module: nn.Module,
    stored: Mapping[str, tuple[int, ...]],
    folder: Path,
    family: str,
    absent: tuple[str, ...],
    unused: tuple[str, ...],
) -> None:
    own = module.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = defaultdict(list)
    for name, tensor in own.items():
        tied[id(tensor)].append(name)
    missing = [names[0] for names in tied.values() if not any(name in stored for name in names)]
    missing = [name for name in missing if not name.startswith(absent)]
    unexpected = [name for name in stored if name not in own and not name.startswith(unused)]
    wrong = [n for n, shape in stored.items() if n in own and shape != tuple(own[n].shape)]
    if not (missing or unexpected or wrong):
        return
    parts = [f"{kind} {_some(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if wrong:
        name = wrong[0]
        shapes = f"{list(stored[name])} where {list(own[name].shape)} is expected"
        parts.append(f"{name} of shape {shapes}{_more(wrong)}")
    raise EncoderError(f"{family}: {folder} does not hold the weights of this model: {'; '.join(parts)}")


def _stored(folder: Path, family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a folder, from the headers of its files."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(folder, family):
        try:
            with safe_open(file, framework="pt") as handle:
                shapes |= {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise EncoderError(f"{family}: {file} is not a whole safetensors file ({error})") from error
    return shapes


def _weight_files(folder: Path, family: str) -> list[Path]:
    whole = folder / "model.safetensors"
    files = [whole] if whole.exists() else sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise EncoderError(
            f"{family}: {folder} has no model.safetensors; other formats are not read, "
            "save the model anew with save_pretrained"
        )
    return files


def _some(names: Collection[str]) -> str:
    return f"{next(iter(names))}{_more(names)}"


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
