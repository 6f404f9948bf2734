"""Which layers to learn from, by the inner folds of the study before, and whether there is anything to learn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.alignment.lift import Before
from tsprobe.alignment.recipes import RECIPES
from tsprobe.alignment.spec import AlignSpec
from tsprobe.encoders.base import Encoder
from tsprobe.errors import SpecError

if TYPE_CHECKING:
    from tsprobe.study.pair import Pair
    from tsprobe.study.summary import Grid


def find_teachers(spec: AlignSpec, before: dict[str, Before]) -> tuple[tuple[str, ...], str]:
    """The layers to learn from, and why not to tune at all where nothing is hidden (else nothing)."""
    if RECIPES[spec.recipe].labelled:
        return (next(iter(before.values())).pair.final,), ""
    named = (spec.teacher,) if isinstance(spec.teacher, str) else spec.teacher
    if named != ("auto",):
        known = next(iter(before.values())).grid.layers
        for layer in named:
            if layer not in known:
                raise SpecError(f"teacher {layer!r} is no layer of {spec.encoder}, which has {', '.join(known)}")
        if len(named) > 1 and spec.recipe != "joint":
            raise SpecError(f"the recipe {spec.recipe} has one teacher; several are for joint")
        return named, ""
    families = dict.fromkeys(b.pair.task.family for b in before.values())
    wanted = [f for f in families if f in spec.lift] if spec.recipe != "joint" else list(families)
    if not wanted:
        raise SpecError(f"no task of the study is of the families to lift ({', '.join(spec.lift)})")
    gains = {family: gains_of(_parts(before.values(), family)) for family in wanted}
    groups = [wanted] if spec.recipe != "joint" else [[family] for family in wanted]
    layers = []
    for group in groups:
        mean = {layer: float(np.mean([gains[f][layer] for f in group])) for layer in gains[group[0]]}
        layers.append(max(mean, key=lambda layer: mean[layer]))
    final = next(iter(before.values())).pair.final
    best = max(gains[f][layer] for f, layer in zip(wanted, layers * len(wanted), strict=False))
    margin = next(iter(before.values())).pair.spec.margin
    message = ""
    if best <= margin:
        message = (
            f"no repair needed: over the tasks of {', '.join(wanted)}, no layer of {spec.encoder} is better than "
            f"{final} on inner folds by more than {margin:g} (best: {layers[0]}, {best:+.3f})"
        )
    found = tuple(dict.fromkeys(layer for layer in layers if layer != final))
    return found, message or ("" if found else f"no repair needed: the best layer of {spec.encoder} is {final} itself")


def gains_of(parts: Iterable[tuple[Pair, Grid]]) -> dict[str, float]:
    """Of each layer, the mean over tasks of its inner score less that of the final layer; trunk layers only."""
    parts = list(parts)
    encoder = parts[0][0].encoder
    assert isinstance(encoder, Encoder)
    trunk = {layer.name for layer in encoder.layers if layer.depth is not None}
    shared = [name for name in parts[0][1].layers if name in trunk and all(name in grid.layers for _, grid in parts)]
    gains: dict[str, list[float]] = {layer: [] for layer in shared}
    for pair, grid in parts:
        inner = np.nanmax(grid.values("inner").mean(-1), axis=(1, 2))  # [L]
        end = grid.layers.index(pair.final)
        for layer in shared:
            gains[layer].append(float(inner[grid.layers.index(layer)] - inner[end]))
    return {layer: float(np.mean(values)) for layer, values in gains.items()}


def _parts(before: Iterable[Before], family: str) -> list[tuple[Pair, Grid]]:
    return [(one.pair, one.grid) for one in before if one.pair.task.family == family]
