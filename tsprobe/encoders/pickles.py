"""Weights in pickles, for families that are published as nothing else: tensors and plain containers of them are read,
and nothing in a file is run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from tsprobe.errors import DAMAGE, EncoderError, reason
from tsprobe.files import refuse_bomb

# What torch raises on pickles that hold code, are damaged, or fill the memory
PICKLE_ERRORS = (OSError, *DAMAGE)


def read_pickle(file: Path, family: str, ignored: Collection[str] = ()) -> dict[str, Any]:
    """The dict in a pickle of tensors, numbers, strings and containers of them. Raises `EncoderError` for any other.

    Objects that are made by the callables named in `ignored` (`"functools.partial"`) are read as `Ignored`; the
    callables themselves are never called.
    """
    stand_ins: list[Any] = [(Ignored, name) for name in ignored]
    try:
        with torch.serialization.safe_globals(stand_ins):
            loaded = load_pickle(file)
    except FileNotFoundError as error:
        raise EncoderError(f"{family}: {file.parent} has no {file.name}") from error
    except PICKLE_ERRORS as error:
        raise EncoderError(f"{family}: {file} holds more than tensors, or is damaged: {reason(error)}") from error
    if not isinstance(loaded, dict):
        raise EncoderError(f"{family}: {file} holds a {type(loaded).__name__} and no dict of weights")
    return loaded


def load_pickle(file: Path, device: torch.device | str = "cpu") -> Any:
    """Tensors, numbers, strings and containers of them. Raises one of `PICKLE_ERRORS` for all else, and for a file
    that unpacks to more than it can be meant to."""
    with file.open("rb") as handle:
        refuse_bomb(handle)
        return torch.load(handle, map_location=device, weights_only=True)


class Ignored:
    """What stands in a checkpoint for an object that is not made: it takes anything, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Whatever the object would have been made of."""

    def __call__(self, *_: object, **__: object) -> Ignored:
        return self

    def __eq__(self, other: object) -> bool:
        """As good as the class: the reader of torch calls what is among the callables that it was given, and a pickle
        may call what one of them gave."""
        return other is Ignored or isinstance(other, Ignored)

    __hash__ = object.__hash__

    def __setstate__(self, _: object) -> None:
        """Whatever the object would have held."""


def tensors_in(loaded: Mapping[str, Any], file: Path, family: str) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, or of the one in a training checkpoint. Raises `EncoderError` if there are none."""
    inside = loaded.get("state_dict", loaded)
    items = inside.items() if isinstance(inside, Mapping) else ()
    state = {name: tensor for name, tensor in items if isinstance(name, str) and isinstance(tensor, torch.Tensor)}
    if not state:
        raise EncoderError(f"{family}: {file} holds no weights")
    return state
