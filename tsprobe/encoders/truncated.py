"""An encoder that ends at one of its layers: what comes after is not there, and the layer is `final`.

Cutting is the free way to the best layer (Guillotine Regularization, Bordes et al. 2023), and a smaller, faster network
for deployment. Which modules come after is found by a trial run; each is replaced by one that passes on what it is
given, so that the network runs as before to its own end, and its weights are gone. Where a network would not run so
(its head expects other shapes, or one block with tied weights is called before and after the layer), it can be read up
to the layer, as studies do, but not be called as a whole: `runs_alone` says which.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tsprobe.errors import EncoderError, UnknownNameError

if TYPE_CHECKING:
    from tsprobe.encoders.base import Encoder


@dataclass(frozen=True)
class Cut:
    """Where an encoder was cut, and the modules that are passed over, with how many things each gave (0: a tensor)."""

    layer: str
    passed: tuple[tuple[str, int], ...]
    runs_alone: bool

    def applied(self, module: nn.Module) -> nn.Module:
        for path, count in self.passed:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, Passed(count))
        return module


class Passed(nn.Module):
    """In the place of a module that gave a tensor (`count` 0), or a tuple of so many things: its input, unchanged."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        return x if not self.count else (x, *(None,) * (self.count - 1))


def truncate(encoder: Encoder, layer: str) -> Encoder:
    """A copy that ends at a layer of the trunk. Raises `UnknownNameError`, and `EncoderError` for a head."""
    if layer not in encoder.taps:
        raise UnknownNameError(f"layer of {encoder.name}", layer, encoder.taps)
    if next(one.depth for one in encoder.layers if one.name == layer) is None:
        raise EncoderError(f"{encoder.name}: {layer} lies past the trunk; cut at a layer of the trunk")
    twin = copy.copy(encoder)
    twin.module = copy.deepcopy(encoder.module)
    names = list(encoder.taps)
    twin.taps = {name: encoder.taps[name] for name in names[: names.index(layer) + 1]}
    twin.final = twin.final_of_steps = layer
    twin._heads = 0
    twin.name = f"{encoder.name}..{layer}"
    read = [tap.path for tap in twin.taps.values()]  # what a layer before the last is read from must stay
    passed = tuple((path, count) for path, count in _after(encoder, layer).items() if not _holds(path, read))
    whole, _ = _run(twin, layer)
    Cut(layer, passed, runs_alone=False).applied(twin.module)
    tokens, given = _run(twin, layer)
    if not torch.equal(tokens, whole):
        raise EncoderError(f"{twin.name}: without what comes after it, {layer} is not what it was")
    alone = isinstance(given, Tensor) and given.shape == tokens.shape and torch.equal(given, tokens)
    twin.cut = Cut(layer, passed, alone)
    twin.module.requires_grad_(False).eval()
    return twin


def _after(encoder: Encoder, layer: str) -> dict[str, int]:
    """Outermost modules that run only when the layer has been given, with what `Passed` needs to know of them."""
    tap, module = encoder.taps[layer], encoder.module
    before: set[str] = set()
    after: dict[str, int] = {}
    calls: Counter[str] = Counter()
    given = False

    def enters(path: str) -> Any:
        def hook(*_: Any) -> None:
            nonlocal given
            if path == tap.path and tap.side == "input" and calls[path] == tap.call:
                given = True
            if not given:
                before.add(path)
            calls[path] += 1

        return hook

    def leaves(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            nonlocal given
            after[path] = 0 if isinstance(output, Tensor) else len(output)
            if path == tap.path and tap.side == "output" and calls[path] == tap.call + 1:
                given = True

        return hook

    named = [(path, part) for path, part in module.named_modules() if path]
    handles = [part.register_forward_pre_hook(enters(path)) for path, part in named]
    handles += [part.register_forward_hook(leaves(path)) for path, part in named]
    try:
        with torch.no_grad():
            encoder.run(encoder.prepare(encoder.trial_batch()))
    finally:
        for handle in handles:
            handle.remove()
    later = {path: count for path, count in after.items() if path not in before}
    return {path: count for path, count in later.items() if not _below(path, later)}


def _below(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def _holds(path: str, others: Iterable[str]) -> bool:
    return any(other == path or other.startswith(f"{path}.") for other in others)


def _run(encoder: Encoder, layer: str) -> tuple[Tensor, Any]:
    """Of the trial batch the tokens at a layer, and what the network gives; None where it cannot go on behind it."""
    tap, calls, found = encoder.taps[layer], 0, []
    part = encoder.module.get_submodule(tap.path)

    def take(value: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == tap.call + 1:
            found.append(tap.read(value).clone())

    if tap.side == "input":
        handle = part.register_forward_pre_hook(lambda _, args, kw: take(args or tuple(kw.values())), with_kwargs=True)
    else:
        handle = part.register_forward_hook(lambda _, __, output: take(output))
    try:
        with torch.no_grad():
            given = tap.read(encoder.run(encoder.prepare(encoder.trial_batch())))
    except Exception:  # whatever a network raises on shapes that it was not made for
        if not found:
            raise
        given = None
    finally:
        handle.remove()
    return found[0], given
