"""Reading layers with hooks that live for one forward pass.

A module that is never called inside the pass would leave its layer silently empty, and one with tied weights is
called many times: every layer asked for must be seen exactly once, at the call that its tap names, or it is an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tsprobe.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor

    from tsprobe.encoders.base import Encoder, Tap
    from tsprobe.types import Inputs


class _AllRead(Exception):
    """Raised inside the pass when the last layer has been read: what follows need not run."""


def read_layers(encoder: Encoder, inputs: Inputs, layers: Iterable[str], visit: Callable[[str, Tensor], None]) -> None:
    """Run the encoder once and hand each layer's tokens `[R, T, D]` to `visit` as they appear.

    Nothing is kept: a layer's tokens are gone when the pass moves on, unless `visit` keeps them. Layers past the last
    one asked for are not run. Raises `EncoderError` for a layer that the pass never reaches or whose tokens are not
    a tensor of rank 3.
    """
    wanted = {name: encoder.taps[name] for name in layers}
    seen: set[str] = set()

    def hand_over(name: str, value: Any) -> None:
        tokens = wanted[name].read(value)
        if tokens.ndim != 3:
            raise EncoderError(f"{encoder.name}: layer {name!r} has shape {tuple(tokens.shape)}, not [R, T, D]")
        visit(name, tokens)
        seen.add(name)
        if len(seen) == len(wanted):
            raise _AllRead

    with _hooks(encoder, wanted, hand_over):
        try:
            encoder.run(inputs)
        except _AllRead:
            return
    missing = [name for name in wanted if name not in seen]
    if missing:
        paths = ", ".join(f"{name} ({wanted[name].path}, call {wanted[name].call})" for name in missing)
        raise EncoderError(f"{encoder.name}: the forward pass never reaches {paths}")


def layer_tokens(encoder: Encoder, inputs: Inputs, layers: Iterable[str]) -> dict[str, Tensor]:
    """The tokens of these layers, kept: for a batch that is small enough. Raises as `read_layers` does."""
    found: dict[str, Tensor] = {}
    read_layers(encoder, inputs, layers, found.__setitem__)
    return found


@contextmanager
def _hooks(encoder: Encoder, wanted: dict[str, Tap], hand_over: Callable[[str, Any], None]) -> Iterator[None]:
    """Hooks on the tapped modules, removed when the pass ends, however it ends."""
    by_place: dict[tuple[str, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, tap in wanted.items():
        by_place[tap.path, tap.side][tap.call].append(name)
    handles = []
    try:
        for (path, side), by_call in by_place.items():
            handles.append(_hook(encoder.module.get_submodule(path), side, by_call, hand_over))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: Any, side: str, by_call: dict[int, list[str]], hand_over: Callable[[str, Any], None]) -> Any:
    calls = 0

    def count_and_hand(value: Any) -> None:
        nonlocal calls
        calls += 1
        for name in by_call.get(calls - 1, ()):
            hand_over(name, value)

    if side == "input":
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: count_and_hand(args if args else tuple(kwargs.values())), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, __, output: count_and_hand(output))
