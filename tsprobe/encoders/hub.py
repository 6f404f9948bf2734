"""Weights from a local folder or the Hugging Face hub: all of them, in safetensors, or none.

A checkpoint is compared with the architecture by name and shape before anything is loaded. The loaders of the model
packages fill weights that a checkpoint lacks with random numbers (Chronos-Bolt even lists its patch embeddings as
ignorable), and an encoder loaded in part looks just like a bad one. Remote code is never run, pickles are never read.
"""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tsprobe.errors import EncoderError

if TYPE_CHECKING:
    from torch import nn

_HUB_FILES = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


def find_folder(source: str, family: str) -> Path:
    """The folder with the files of `source`: a local folder, or a hub id, from the cache or fetched.

    Raises `EncoderError` for a folder that does not exist and for an id that the hub does not give.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise EncoderError(f"{family}: {source} is a file; give its folder, which holds config.json too")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source):
        raise EncoderError(f"{family}: there is no folder {source}")
    return _download(source, family)


def _download(source: str, family: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo_id=source, allow_patterns=_HUB_FILES))
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
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EncoderError(f"{family}: {folder} has no config.json") from error
    except (OSError, ValueError) as error:
        raise EncoderError(f"{family}: {file} cannot be read: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or (model_type is not None and found != model_type):
        raise EncoderError(f"{family}: {file} describes a model of type {found!r}, not {model_type!r}")
    return config


@contextmanager
def building(folder: Path, family: str) -> Iterator[None]:
    """Tell what is wrong with a `config.json` from which the model's own classes cannot be built."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, StrictDataclassError) as error:
        what = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {what[0]}" if what else type(error).__name__
        raise EncoderError(f"{family}: {folder / 'config.json'} does not describe such a model ({reason})") from error


def load_pretrained(
    model_class: Any, config: Any, folder: Path, family: str, *, unused: tuple[str, ...] = ()
) -> nn.Module:
    """A transformers model in float32 with exactly the weights of a folder.

    `unused` are prefixes of weights that the folder may hold beside them, such as a head. Raises `EncoderError`
    that names the first weights missing, unexpected or of another shape.
    """
    from transformers.utils import logging

    with building(folder, family), torch.device("meta"):
        skeleton = model_class(copy.deepcopy(config))  # building may write to the config
    check_weights(skeleton, folder, family, prefix=f"{skeleton.base_model_prefix}.", unused=unused)
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its load report would say again what was checked above
    try:
        return model_class.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_state(module: nn.Module, folder: Path, family: str) -> nn.Module:
    """Fill a plain module with exactly the weights of a folder. Raises `EncoderError` as `load_pretrained` does."""
    from safetensors.torch import load_file

    check_weights(module, folder, family)
    state: dict[str, torch.Tensor] = {}
    for file in _weight_files(folder, family):
        state |= load_file(file)
    module.load_state_dict(state)
    return module


def check_weights(
    module: nn.Module, folder: Path, family: str, *, prefix: str = "", unused: tuple[str, ...] = ()
) -> None:
    """Raise `EncoderError` unless a folder holds each weight of the module, in its shape, and no other.

    Of tied weights one is enough. Names in the folder may carry `prefix`.
    """
    stored = {name.removeprefix(prefix) if prefix else name: s for name, s in _stored(folder, family).items()}
    own = module.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = defaultdict(list)
    for name, tensor in own.items():
        tied[id(tensor)].append(name)
    missing = [names[0] for names in tied.values() if not any(name in stored for name in names)]
    unexpected = [name for name in stored if name not in own and not name.startswith(unused or ("\0",))]
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
