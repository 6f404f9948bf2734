"""Encoders that alignment tuning gave back: a base encoder by name, other weights, and scaled residual branches.

A folder holds `config.json` (the base's name and what was done) and `model.safetensors` (all weights). A block's output
y of the input x is read as x + s (y - x), with a factor s for each of the D channels that training may change: a
LayerScale (Touvron et al. 2021) over the whole block. At s = 1, where it begins, the network is what it was to the last
bit, so that nothing is lost by inserting it; Perception Encoder begins at 0.1, which shrinks every branch to a tenth.
Where blocks share their weights they share the factors.
"""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from tsprobe.encoders import hub
from tsprobe.encoders.base import Encoder
from tsprobe.encoders.registry import Card
from tsprobe.errors import EncoderError
from tsprobe.files import replace_file, replace_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float
    from torch import Tensor

FAMILY = "aligned"
MODEL_TYPE = "tsprobe-aligned"
SCALE = "alignment_scale"


class Aligned:
    """The family of folders that `tsprobe align` writes."""

    card: ClassVar[Card] = Card(
        pattern="aligned:FOLDER",
        objective="that of the base encoder, then alignment tuning",
        package=None,
        code_licence="Apache-2.0",
        weights_licence="that of the base encoder",
        final_is="what it is in the base encoder",
    )

    @classmethod
    def load(cls, source: str | None, *, base: Encoder | None = None, name: str | None = None) -> Encoder:
        """The encoder in a folder; `base` stands for the one that the folder names, where that has no name to load by.
        `name` is what it is called instead of by its folder.

        Raises `EncoderError`, and what loading the base raises.
        """
        from tsprobe.encoders.registry import load_named

        assert source is not None  # the pattern has no bare name
        folder = hub.find_folder(source, FAMILY)
        config = hub.read_config(folder, FAMILY, MODEL_TYPE)
        with hub.building(folder, FAMILY):
            tuned = Tuned(str(config["base"]), str(config["recipe"]), str(config["trained_on"]))
            scaled, cut = bool(config["scaled"]), config.get("cut")
        if base is None:
            with _below(folder), hub.without_weights():
                base = load_named(tuned.base)
        if cut is not None and base.cut is None:
            base = base.truncate(str(cut))
        encoder = retuned(base, name or f"{FAMILY}:{source}", tuned)
        if scaled:
            insert_scales(encoder)
        hub.fill(encoder.module, hub.read_state(folder, FAMILY), folder, FAMILY)
        encoder.module.requires_grad_(False)
        return encoder


_ABOVE = ContextVar[tuple[Path, ...]]("folders whose bases are being loaded", default=())


@contextmanager
def _below(folder: Path) -> Iterator[None]:
    """Raises `EncoderError` for a folder that is, by way of others or not, its own base."""
    folder = folder.resolve()
    if folder in _ABOVE.get():
        raise EncoderError(f"{FAMILY}: {folder} names itself as the encoder that it was made of")
    token = _ABOVE.set((*_ABOVE.get(), folder))
    try:
        yield
    finally:
        _ABOVE.reset(token)


@dataclass(frozen=True)
class Tuned:
    """Which encoder was tuned, by which recipe, and on what."""

    base: str
    recipe: str
    trained_on: str


def save(encoder: Encoder, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write what `Aligned.load` reads, floating point weights as `dtype`, where one is given.

    Raises `EncoderError` for an encoder that was not tuned, `StorageError`.
    """
    from safetensors.torch import save as to_bytes

    if not isinstance(encoder.tuned, Tuned):
        raise EncoderError(f"{encoder.name} was not tuned: it is loaded by its name, and there is nothing to save")
    state = encoder.module.state_dict()
    kept = {name: value.to(dtype) if dtype and value.is_floating_point() else value for name, value in state.items()}
    weights = to_bytes({name: value.detach().cpu().clone().contiguous() for name, value in kept.items()})
    replace_file(folder / "model.safetensors", lambda handle: handle.write(weights))
    scaled = any(name.endswith(SCALE) for name in state)
    config = {"model_type": MODEL_TYPE, **asdict(encoder.tuned), "scaled": scaled}
    if encoder.cut is not None:
        config["cut"] = encoder.cut.layer
    replace_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def retuned(encoder: Encoder, name: str, tuned: Tuned) -> Encoder:
    """A copy with weights of its own under another name, its facts saying what was done to it."""
    twin = copy.copy(encoder)
    twin.module = copy.deepcopy(encoder.module)
    twin.name, twin.tuned = name, tuned
    facts = encoder.facts
    twin.facts = replace(
        facts,
        objective=f"{facts.objective} + {tuned.recipe}",
        pretrained_on=f"{facts.pretrained_on}; then {tuned.trained_on}",
    )
    return twin


def insert_scales(encoder: Encoder, between: Callable[[Tensor, Tensor], Tensor] | None = None) -> list[nn.Parameter]:
    """Give every block its factors, all 1, and give these.

    `between` takes a block's input and output `[R, T, D]` before they are mixed, as stochastic depth does in training.
    Raises `EncoderError` for an encoder whose blocks do not add to their input.
    """
    scales = []
    for path, width in _blocks(encoder).items():
        block = encoder.module.get_submodule(path)
        weight = next(encoder.module.parameters())
        parameter = nn.Parameter(torch.ones(width, dtype=weight.dtype, device=weight.device))
        block.register_parameter(SCALE, parameter)
        block.register_forward_hook(_mix(between), with_kwargs=True)
        scales.append(parameter)
    return scales


def _mix(between: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[..., Any]:
    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        y = output if isinstance(output, torch.Tensor) else output[0]
        scale: Float[Tensor, " D"] = block.get_parameter(SCALE)
        branch = y - x if between is None else between(x, y) - x
        # x + (y - x) is not y in floating point: the correction keeps the start exact
        mixed = (y if between is None else x + branch) + (scale - 1) * branch
        return mixed if isinstance(output, torch.Tensor) else (mixed, *output[1:])

    return hook


def _blocks(encoder: Encoder) -> dict[str, int]:
    """Paths of the modules that are the blocks, each once, with the width of what they give."""
    taps = [tap for name, tap in encoder.taps.items() if name.startswith("block.")]
    if not taps or any(tap.side != "output" for tap in taps):
        raise EncoderError(f"{encoder.name}: its blocks are not modules from tokens to tokens, and cannot be scaled")
    widths = _widths(encoder, {tap.path for tap in taps})
    return {tap.path: widths[tap.path] for tap in taps}


def _widths(encoder: Encoder, paths: set[str]) -> dict[str, int]:
    """Of the blocks' tokens, from a pass over one short series."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            enters = args[0] if args else next(iter(kwargs.values()))
            leaves = output if isinstance(output, torch.Tensor) else output[0]
            shapes[path] = tuple(enters.shape), tuple(leaves.shape)

        return hook

    modules = {path: encoder.module.get_submodule(path) for path in paths}
    handles = [module.register_forward_hook(note(path), with_kwargs=True) for path, module in modules.items()]
    try:
        with torch.no_grad():
            encoder.run(encoder.prepare(encoder.trial_batch()))
    finally:
        for handle in handles:
            handle.remove()
    unlike = [path for path in sorted(paths) if path not in shapes or shapes[path][0] != shapes[path][1]]
    if unlike:
        raise EncoderError(f"{encoder.name}: {unlike[0]} does not keep the shape of its tokens, and cannot be scaled")
    return {path: shapes[path][1][-1] for path in paths}
