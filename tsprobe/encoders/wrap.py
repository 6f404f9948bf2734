"""Any torch module as an encoder: name its blocks, and say what it takes where that cannot be found out."""

from __future__ import annotations

import copy
import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from tsprobe.encoders.base import Encoder, Facts, Tap, trunk_taps
from tsprobe.encoders.rows import token_map
from tsprobe.errors import EncoderError, UnknownNameError
from tsprobe.types import Batch, Inputs, TokenMap

_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "bcs": lambda values: values,  # [B, C, S]
    "bsc": lambda values: values.transpose(1, 2),  # [B, S, C]
    "bs": lambda values: values.flatten(0, 1),  # [B * C, S], channel by channel
}
_TRIAL = 3  # series in a trial run: a number that is rarely a module's channels or width; then one less
# what a module of unknown make raises on shapes that it does not take
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
_TOKEN_KEYS = ("patch", "stride", "prefix", "suffix", "cls")


@dataclass(frozen=True)
class _Trial:
    """What a trial run showed: how the series go in, and rows and tokens of each layer."""

    layout: str | None
    rows: int
    tokens: dict[str, int]
    last: Tensor


class Wrapped(Encoder):
    """A module whose blocks are read by their paths. It is copied: the caller's own keeps its mode and gradients.

    `blocks`: a dotted path or a pattern in which `*` stands for one part (`"encoder.layers.*"`), taken in natural
    order; the path of a `ModuleList` or `Sequential` means its members; or a list of paths and `Tap`s, which can name
    one call of a module that runs several times, or turn `[T, R, D]` (`batch_first=False`) with
    `select=lambda x: x.transpose(0, 1)`. The layers are `embedding`, what enters the first block, and `block.i`. A
    tensor of rank 2 is read as one token, of rank 4 `[B, C, T, D]` as a row for each channel; of a tuple, the first.

    `final`: a layer (default: the last block), `"output"` for what the module returns, or the path of a module after
    the blocks, such as a norm, which becomes the layer `norm`.

    `prepare`: `"bcs"`, `"bsc"` or `"bs"`, the axes in which the module takes the series (`"bs"`: channel by channel);
    a function from a `Batch` to the module's arguments (a dict, a tuple or a tensor); or None: the three are tried.

    `tokens`: steps a token; a dict of `patch`, and where they are not trivial `stride`, `prefix` and `suffix` (numbers
    of special tokens) and `cls` (index of the class token; the first with a prefix); a function from a `Batch` to a
    `TokenMap`; or None: one token a step, or equal patches, if the number of tokens says so.

    Nothing is assumed about masks: series of unlike length are not put in one batch and missing values are
    interpolated, unless the facts say `pads=True` or `masks_missing=True` and `prepare` sees to it. Raises
    `EncoderError`, or `UnknownNameError` for a path that does not exist.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        blocks: str | Sequence[str | Tap],
        final: str | None = None,
        prepare: str | Callable[[Batch], Any] | None = None,
        tokens: int | Mapping[str, int] | Callable[[Batch], TokenMap] | None = None,
        name: str | None = None,
        fresh: Callable[[], nn.Module] | None = None,
        **facts: Any,
    ) -> None:
        name = name or type(module).__name__
        if isinstance(prepare, str) and prepare not in _LAYOUTS:
            raise UnknownNameError("way to prepare a batch", prepare, _LAYOUTS, "(bcs, bsc, bs or a function)")
        self._layout, self._given_tokens, self._fresh = prepare, _token_spec(tokens, name), fresh
        self._trials: dict[tuple[int, int], _Trial] = {}
        taps = _taps(module, blocks, name)
        final, taps = _final(module, taps, final, name)
        declared = {"pads": False, "joint_channels": prepare in ("bcs", "bsc"), "final_is": taps[final].path}
        if isinstance(self._given_tokens, dict):
            declared["patch"] = self._given_tokens["patch"]
        super().__init__(name, _copy(module, name), taps, final, _facts({**declared, **facts}, name))

    def prepare(self, batch: Batch) -> Inputs:
        """Arguments of the module and one token map a layer. Raises `EncoderError` for a batch that the module does
        not take, and for padding or missing values that it cannot mask."""
        if not self.facts.pads and not bool(batch.inside.all()):
            raise EncoderError(
                f"{self.name} cannot mask padding: batch series of one length, or give prepare= and pads=True"
            )
        if not self.facts.masks_missing and not bool((batch.observed | ~batch.inside[:, None]).all()):
            raise EncoderError(
                f"{self.name} cannot mask missing values: interpolate them, or give prepare= and masks_missing=True"
            )
        trial = self._trial(batch)
        args, kwargs = self._arguments(batch, trial.layout)
        given = self._given_tokens
        tokens = given(batch) if callable(given) else self._token_maps(batch, trial)
        return Inputs({"args": args, "kwargs": kwargs}, tokens, trial.rows)

    def run(self, inputs: Inputs) -> Any:
        return self.module(*inputs.kwargs["args"], **inputs.kwargs["kwargs"])

    def fresh_module(self) -> nn.Module:
        return super().fresh_module() if self._fresh is None else self._fresh()

    def settings(self) -> dict[str, Any] | None:
        """The arguments beside `blocks` that would wrap the module in the same way; None where some are functions.

        They are plain values, and known once a batch has been prepared.
        """
        own = all(tap.select is _tokens for tap in self.taps.values())
        if not own or not isinstance(self._layout, str) or callable(self._given_tokens):
            return None
        final = self.taps[self.final].path if self.final == "norm" else self.final
        return {"final": final, "prepare": self._layout, "tokens": self._given_tokens, **asdict(self.facts)}

    def _arguments(self, batch: Batch, layout: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if layout is not None:
            return (_LAYOUTS[layout](batch.values).to(self.device, self.dtype),), {}
        assert callable(self._layout)
        given = self._layout(batch)
        if isinstance(given, Mapping):
            return (), {key: self._here(value) for key, value in given.items()}
        values = given if isinstance(given, tuple | list) else (given,)
        return tuple(self._here(value) for value in values), {}

    def _here(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)

    def _trial(self, batch: Batch) -> _Trial:
        """A run of a few series of this shape, once for each shape: it shows rows, tokens and how often blocks run."""
        shape = (batch.values.shape[1], batch.values.shape[2])
        if shape not in self._trials:
            pick = torch.zeros(_TRIAL, dtype=torch.long, device=batch.lengths.device)
            few = Batch(batch.values[pick], batch.observed[pick], batch.lengths[pick])
            if self._layout is None:
                trial = self._infer(few)
                self._layout = trial.layout
                self.facts = replace(self.facts, joint_channels=trial.layout != "bs" and trial.rows == 1)
            else:
                trial = self._try(few, self._layout if isinstance(self._layout, str) else None)
            self._trials[shape] = replace(trial, last=torch.empty(0))
        return self._trials[shape]

    def _infer(self, few: Batch) -> _Trial:
        passed: list[_Trial] = []
        refused = []
        for layout, arrange in _LAYOUTS.items():
            try:
                passed.append(self._try(few, layout))
            except EncoderError as error:
                reason = str(error.__cause__ or error).splitlines()[0]
                refused.append(f"{layout} {list(arrange(few.values).shape)}: {reason}")
        if not passed:
            raise EncoderError(
                f"{self.name} takes the series in none of the usual ways, give prepare= ({'; '.join(refused)})"
            )
        first = passed[0]
        for other in passed[1:]:
            if first.last.shape != other.last.shape or not torch.allclose(first.last, other.last):
                raise EncoderError(
                    f"{self.name} takes series of this shape as {first.layout} and as {other.layout}, with unlike "
                    "results: say which is meant with prepare="
                )
        return first

    def _try(self, few: Batch, layout: str | None) -> _Trial:
        """Rows must grow with the number of series, which one run cannot tell from tokens."""
        shapes, last = self._run_trial(few, layout)
        fewer, _ = self._run_trial(Batch(few.values[1:], few.observed[1:], few.lengths[1:]), layout)
        channels = few.values.shape[1]
        rows = {shape[0] for shape in shapes.values()}
        count = max(rows)
        grows = all(shape[0] * (_TRIAL - 1) == fewer[layer][0] * _TRIAL for layer, shape in shapes.items())
        if len(rows) > 1 or count not in (_TRIAL, _TRIAL * channels) or not grows:
            raise EncoderError(
                f"{self.name}: layers have shapes {shapes} for {_TRIAL} series of {channels} channels; expected "
                f"[R, T, D] with R of {_TRIAL} or {_TRIAL * channels}. For [T, R, D] (batch_first=False) give the "
                "blocks as Tap(path, select=lambda x: x.transpose(0, 1))"
            )
        return _Trial(layout, count // _TRIAL, {layer: shape[1] for layer, shape in shapes.items()}, last)

    def _run_trial(self, few: Batch, layout: str | None) -> tuple[dict[str, tuple[int, ...]], Tensor]:
        args, kwargs = self._arguments(few, layout)
        calls: dict[str, list[Tensor]] = {}
        try:
            with torch.no_grad(), _watch(self.module, self.taps, calls):
                self.module(*args, **kwargs)
        except _REFUSALS as error:
            raise EncoderError(f"{self.name} does not take this batch: {error}") from error
        shapes = {layer: self._shape(layer, calls[layer]) for layer in self.taps}
        return shapes, calls[self.final][self.taps[self.final].call]

    def _shape(self, layer: str, calls: list[Tensor]) -> tuple[int, ...]:
        tap = self.taps[layer]
        if len(calls) <= tap.call:
            raise EncoderError(f"{self.name}: {tap.path!r} ({layer}) runs {len(calls)} times in a forward pass")
        namesakes = [name for name, other in self.taps.items() if (other.path, other.side) == (tap.path, tap.side)]
        if len(calls) > 1 and layer.startswith("block.") and len(namesakes) == 1:
            raise EncoderError(
                f"{self.name}: {tap.path!r} ({layer}) runs {len(calls)} times in a forward pass; name the calls that "
                f"are layers: blocks=[Tap({tap.path!r}, call=0), Tap({tap.path!r}, call=1), ...]"
            )
        return tuple(calls[tap.call].shape)

    def _token_maps(self, batch: Batch, trial: _Trial) -> dict[str, TokenMap]:
        maps: dict[int, TokenMap] = {}
        for layer, count in trial.tokens.items():
            if count not in maps:
                maps[count] = self._token_map(batch, layer, count, trial.rows)
        return {layer: maps[count] for layer, count in trial.tokens.items()}

    def _token_map(self, batch: Batch, layer: str, count: int, rows: int) -> TokenMap:
        steps = batch.values.shape[-1]
        spec = self._given_tokens if isinstance(self._given_tokens, dict) else _even(steps, count)
        if spec is None:
            raise EncoderError(
                f"{self.name}: layer {layer!r} has {count} tokens for {steps} steps; say with tokens= which steps they "
                "cover, such as tokens={'patch': 16, 'prefix': 1}"
            )
        prefix, suffix, stride = spec["prefix"], spec["suffix"], spec["stride"]
        patches = count - prefix - suffix
        if patches < 1 or (patches - 1) * stride >= steps:
            raise EncoderError(
                f"{self.name}: layer {layer!r} has {count} tokens for {steps} steps, which tokens={spec} does not "
                "explain"
            )
        start = stride * torch.arange(patches, device=batch.lengths.device).expand(len(batch.lengths), -1)
        joint = rows == 1
        cls = spec.get("cls")
        cls = None if cls is None else cls % count  # may be given from the end
        return token_map(batch, start, spec["patch"], joint=joint, prefix=prefix, suffix=suffix, cls=cls)


def _token_spec(tokens: Any, name: str) -> Any:
    """The user's `tokens` as a function, a full dict, or None."""
    if tokens is None or callable(tokens):
        return tokens
    given = {"patch": tokens} if isinstance(tokens, int) else dict(tokens)
    unknown = [key for key in given if key not in _TOKEN_KEYS]
    if unknown or given.get("patch", 0) < 1:
        raise EncoderError(f"{name}: tokens= is steps a token, a dict of {', '.join(_TOKEN_KEYS)}, or a function")
    prefix = given.get("prefix", 0)
    return {"stride": given["patch"], "prefix": 0, "suffix": 0, **({"cls": 0} if prefix else {}), **given}


def _even(steps: int, count: int) -> dict[str, int] | None:
    if steps % count:
        return None
    return {"patch": steps // count, "stride": steps // count, "prefix": 0, "suffix": 0}


def _facts(declared: dict[str, Any], name: str) -> Facts:
    known = {field.name for field in fields(Facts)}
    for key in declared:
        if key not in known:
            raise UnknownNameError(f"argument for {name}", key, known)
    return Facts(**declared)


def _copy(module: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise EncoderError(f"{name} cannot be copied ({error}): wrap a module that copy.deepcopy takes") from error


def _taps(module: nn.Module, blocks: str | Sequence[str | Tap], name: str) -> dict[str, Tap]:
    if isinstance(blocks, str):
        return trunk_taps(_find(module, blocks, name), select=_tokens)
    given = [tap if isinstance(tap, Tap) else Tap(_one(module, tap, name)) for tap in blocks]
    if not given:
        raise EncoderError(f"{name}: blocks= is empty")
    given = [tap if tap.select is not None else replace(tap, select=_tokens) for tap in given]
    return {"embedding": replace(given[0], side="input")} | {f"block.{i}": tap for i, tap in enumerate(given)}


def _find(module: nn.Module, pattern: str, name: str) -> list[str]:
    """Paths that match, `*` within one part, in natural order; the members of a list of modules."""
    modules = dict(module.named_modules())
    parts = pattern.split(".")
    found = [
        path
        for path in modules
        if path
        and len(path.split(".")) == len(parts)
        and all(fnmatch.fnmatchcase(part, want) for part, want in zip(path.split("."), parts, strict=True))
    ]
    if not found:
        raise UnknownNameError(f"block of {name}", pattern, _near(modules, pattern))
    if len(found) == 1 and isinstance(modules[found[0]], nn.ModuleList | nn.Sequential):
        found = [f"{found[0]}.{child}" for child, _ in modules[found[0]].named_children()]
    return sorted(found, key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path)])


def _near(modules: Mapping[str, nn.Module], pattern: str) -> list[str]:
    """Paths to suggest: patterns for lists of modules where a pattern was given."""
    lists = [f"{path}.*" for path, module in modules.items() if isinstance(module, nn.ModuleList | nn.Sequential)]
    return lists if "*" in pattern and lists else [path for path in modules if path]


def _one(module: nn.Module, path: str, name: str) -> str:
    modules = dict(module.named_modules())
    if path not in modules:
        raise UnknownNameError(f"module of {name}", path, modules)
    return path


def _final(module: nn.Module, taps: dict[str, Tap], final: str | None, name: str) -> tuple[str, dict[str, Tap]]:
    if final is None:
        return list(taps)[-1], taps
    final = next((layer for layer, tap in taps.items() if (tap.path, tap.side) == (final, "output")), final)
    if final in taps:
        return final, taps
    if final == "output":
        return "output", taps | {"output": Tap("", select=_tokens)}
    paths = [path for path, _ in module.named_modules() if path]
    if final not in paths:
        raise UnknownNameError(f"final layer of {name}", final, [*taps, "output", *paths])
    return "norm", taps | {"norm": Tap(final, select=_tokens)}


def _tokens(value: Any) -> Tensor:
    """The first tensor of what a module gives or takes, as `[R, T, D]`."""
    while not isinstance(value, Tensor):
        try:
            value = value[0]
        except (KeyError, IndexError, TypeError) as error:
            raise EncoderError(f"a {type(value).__name__} holds no tensor to read as a layer") from error
    if value.ndim == 2:
        return value[:, None]  # [R, 1, D]
    if value.ndim == 4:
        return value.flatten(0, 1)  # [B * C, T, D]
    if value.ndim != 3:
        raise EncoderError(f"a layer has shape {tuple(value.shape)}; give blocks as Tap(path, select=...) to [R, T, D]")
    return value


class _watch:
    """The tensors of each layer, call by call, while a module runs."""

    def __init__(self, module: nn.Module, taps: Mapping[str, Tap], calls: dict[str, list[Tensor]]) -> None:
        self._handles: list[Any] = []
        modules = dict(module.named_modules())
        places: dict[tuple[str, str], list[str]] = defaultdict(list)
        for layer, tap in taps.items():
            calls[layer] = []
            places[tap.path, tap.side].append(layer)
        self._places, self._modules, self._taps, self._calls = places, modules, taps, calls

    def __enter__(self) -> None:
        for (path, side), layers in self._places.items():
            self._handles.append(self._hook(self._modules[path], side, layers))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, side: str, layers: list[str]) -> Any:
        def keep(value: Any) -> None:
            for layer in layers:
                self._calls[layer].append(self._taps[layer].read(value))

        if side == "input":
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: keep(args if args else tuple(kwargs.values())), with_kwargs=True
            )
        return module.register_forward_hook(lambda _, __, output: keep(output))
