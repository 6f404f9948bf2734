"""Controls that cost no tuning: what anybody can do today with the layers of the untouched encoder.

They are made of the pooled features of the study before, and go through the same probes, folds and bootstrap. `concat`
puts all layers of the trunk side by side (TiRex, arXiv 2505.23719, reads classes in this way). `standardised` is the
final layer with each feature at mean 0 and deviation 1, and where the encoder has a class token that beside it (CLS and
mean, Mantis). `scalar-mix` is one mixture of the layers (ELMo, Peters et al. 2018, eq. 1; SUPERB). `compressed` is as
wide as the final layer: the first principal components of all layers side by side, each feature at deviation 1. Labels
have no part in it, so that it says how much of all layers one output of that width can hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tsprobe.capture.features import Features
from tsprobe.capture.windows import cut, load
from tsprobe.encoders.base import Encoder
from tsprobe.pooling import Slots
from tsprobe.probes.base import Target, check_question
from tsprobe.study.pair import Pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Float32, Int

    from tsprobe.data.panel import Panel

_LINEAR = ("classification", "multilabel", "regression", "forecast")  # kinds with targets that a ridge fits
_ROWS = 1024  # at most so many training rows, evenly spaced, are looked at for the few weights of a mixture
_ROUNDS = 25  # of L-BFGS

Made = tuple["Float32[np.ndarray, 'N P d']", "Float32[np.ndarray, 'M P d']"]


@dataclass(frozen=True)
class Free(Pair):
    """A pair whose one layer is made of those of another, by the way that `control` names."""

    source: Pair
    control: str

    @classmethod
    def of(cls, source: Pair, control: str, folder: Path) -> Free:
        fingerprint = f"{source.fingerprint} {control}"
        return cls(source.encoder, fingerprint, source.task, source.spec, folder, source.stage, source, control)

    @property
    def final(self) -> str:
        return self.control

    @cached_property
    def passes(self) -> None:
        return None

    @cached_property
    def features(self) -> tuple[Features, Features]:
        makers: dict[str, Callable[[Free, Features, Features], Made]] = {
            "scalar-mix": _mixed, "concat": _side_by_side, "standardised": _standardised, "compressed": _compressed,
        }  # fmt: skip
        train, test = self.source.features
        parts = makers[self.control](self, train, test)
        first, second = (Features({self.control: part}, train.poolings, {}) for part in parts)
        return first, second

    @property
    def trunk(self) -> list[str]:
        """The layers that the study before has read, heads past the trunk left out."""
        within = [layer.name for layer in self.encoder.layers if layer.depth is not None]
        return [name for name in within if name in self.source.features[0].arrays]


def why_not(pair: Pair, control: str) -> str:
    """Why a control cannot be had for a task; nothing where it can."""
    if pair.passes is not None:
        return "the features of the study before are too large to be kept"
    if control == "scalar-mix" and pair.task.kind not in _LINEAR:
        return f"a mixture has no weights to learn from targets of the kind {pair.task.kind}"
    return ""


def _side_by_side(pair: Free, train: Features, test: Features) -> Made:
    first, second = (np.concatenate([f.arrays[name] for name in pair.trunk], -1) for f in (train, test))
    return first, second


def _standardised(pair: Free, train: Features, test: Features) -> Made:
    final, slots = pair.source.final, Slots.parse(train.poolings)
    parts = [f.arrays[final] for f in (train, test)]
    if _has_class_token(pair):
        spec = pair.spec.model_copy(update={"poolings": ("cls", "mean"), "layers": (final,)})
        tokens = [f.arrays[final] for f in replace(pair.source, spec=spec).features]
        # a slot with the class token beside it; beside the class token itself, the mean
        other = [1 if kind == "cls" else 0 for kind in slots.kinds]
        parts = [np.concatenate([x, t[:, other]], -1) for x, t in zip(parts, tokens, strict=True)]
    out = [np.empty_like(part) for part in parts]
    for place in slots.places.values():
        for made, x in zip(out, _scaled(pair, *(part[None, :, place] for part in parts)), strict=True):
            made[:, place] = x[0].numpy().reshape(made[:, place].shape)
    return out[0], out[1]


def _compressed(pair: Free, train: Features, test: Features) -> Made:
    """Principal components of the training rows, of each pooling by itself.

    They are turned by a random rotation: probes bring each feature to deviation 1, which would make the noise of the
    last components as large as the first ones.
    """
    width = train.arrays[pair.source.final].shape[-1]
    wide = _side_by_side(pair, train, test)
    out = [np.zeros((*part.shape[:2], width), np.float32) for part in wide]
    at = torch.from_numpy(pair.task.rows("train").at)
    for place in Slots.parse(train.poolings).places.values():
        scaled = [x[0].double() for x in _scaled(pair, *(part[None, :, place] for part in wide))]
        _, size, components = torch.linalg.svd(scaled[0][at], full_matrices=False)
        kept = min(width, int((size > 1e-6 * size[0]).sum()))
        drawn = torch.randn(width, kept, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        few = components[:kept].T @ torch.linalg.qr(drawn).Q.T  # [L D, D]
        for made, x in zip(out, scaled, strict=True):
            made[:, place] = (x @ few).numpy().reshape(made[:, place].shape)
    return out[0], out[1]


def _mixed(pair: Free, train: Features, test: Features) -> Made:
    """Layers as wide as the final one, a mixture for each pooling."""
    width = train.arrays[pair.source.final].shape[-1]
    layers = [name for name in pair.trunk if train.arrays[name].shape[-1] == width]
    rows, seed = pair.task.rows("train"), pair.spec.seeds[0]
    folds = torch.from_numpy(pair.row_folds(seed))
    out = [np.empty_like(f.arrays[layers[0]]) for f in (train, test)]
    for place in Slots.parse(train.poolings).places.values():
        scaled = _scaled(pair, *(np.stack([f.arrays[name][:, place] for name in layers]) for f in (train, test)))
        target = Target(pair.task.kind, torch.from_numpy(rows.y), pair.task.n_classes)
        weights = mixture(scaled[0][:, torch.from_numpy(rows.at)], target, folds)
        for made, x in zip(out, scaled, strict=True):
            made[:, place] = torch.einsum("l,lnd->nd", weights.float(), x).numpy().reshape(made[:, place].shape)
    return out[0], out[1]


def _scaled(pair: Free, *parts: Float32[np.ndarray, "L N p D"]) -> list[Float[Tensor, "L n d"]]:
    """What is read of series, each feature with the mean 0 and the deviation 1 of the training rows."""
    task = pair.task
    each = [
        torch.from_numpy(np.ascontiguousarray(x)).reshape(len(x), task.rows(split).n_read, -1)
        for x, split in zip(parts, ("train", "test"), strict=True)
    ]
    known = each[0][:, torch.from_numpy(task.rows("train").at)].double()
    mean, deviation = known.mean(1, keepdim=True), known.std(1, correction=0, keepdim=True)
    flat = deviation <= 1e-6 * (mean.abs() + known.abs().amax(1, keepdim=True))
    factor = torch.where(flat, 0, 1 / deviation.clamp(min=1e-30))
    return [((x - mean) * factor).float() for x in each]


def mixture(
    x: Float[Tensor, "L n D"], target: Target, folds: Int[Tensor, " n"], *, rounds: int = _ROUNDS
) -> Float[Tensor, " L"]:
    """Weights of L standardised layers, positive and with a sum of 1, that a ridge on the mixture does best with.

    The weights, as a softmax, and the strength of the ridge minimise the squared error on rows that the fit has not
    seen, over the folds of the training rows, by L-BFGS from equal weights. Targets have equal say; an unknown one
    counts as their mean. Where the number of rows is large, some of them, evenly spaced, are looked at.
    """
    question = check_question(target, folds, x.shape[1])
    y = torch.where(question.known, question.y, question.mean_known(torch.ones_like(question.folds, dtype=torch.bool)))
    y = (y - y.mean(0)) / y.std(0, correction=0).clamp(min=1e-6)
    some = torch.linspace(0, x.shape[1] - 1, min(_ROWS, x.shape[1])).round().long()
    x, y, fold = x[:, some].double(), y[some], question.folds[some]
    logits = torch.zeros(len(x), dtype=torch.float64, requires_grad=True)
    strength = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)  # as a power of e, for each row
    search = torch.optim.LBFGS([logits, strength], max_iter=rounds, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        mixed = torch.einsum("l,lnd->nd", logits.softmax(0), x)
        return torch.stack([_missed(mixed, y, fold == f, strength.exp()) for f in fold.unique()]).sum() / y.numel()

    def closure() -> Tensor:
        search.zero_grad()
        found = error()
        found.backward()
        return found

    with torch.enable_grad():
        search.step(closure)
    return logits.detach().softmax(0)


def _missed(x: Float[Tensor, "n D"], y: Float[Tensor, "n K"], out: Tensor, strength: Tensor) -> Float[Tensor, ""]:
    """Squared error on the rows that are `out`, by the ridge on the others."""
    seen, y_seen = x[~out], y[~out]
    mean, y_mean = seen.mean(0), y_seen.mean(0)
    seen, rest = seen - mean, x[out] - mean
    n, d = seen.shape
    if d <= n:
        eye = torch.eye(d, dtype=x.dtype)
        guess = rest @ torch.linalg.solve(seen.T @ seen + strength * n * eye, seen.T @ (y_seen - y_mean))
    else:
        eye = torch.eye(n, dtype=x.dtype)
        guess = rest @ seen.T @ torch.linalg.solve(seen @ seen.T + strength * n * eye, y_seen - y_mean)
    return (guess + y_mean - y[out]).square().sum()


def _has_class_token(pair: Pair) -> bool:
    encoder, panel = pair.encoder, pair.task.train
    if pair.task.dense or not isinstance(encoder, Encoder) or hasattr(encoder, "stream"):
        return False
    return _class_token(encoder, panel, pair.final if not isinstance(pair, Free) else pair.source.final) is not None


def _class_token(encoder: Encoder, panel: Panel, layer: str) -> int | None:
    one = panel.take([0])
    batch = load(one, cut(one, encoder.facts, encoder.name)[:1], keep_missing=encoder.facts.masks_missing)
    with torch.inference_mode():
        return encoder.prepare(batch.to(encoder.device)).tokens_of(layer).cls
