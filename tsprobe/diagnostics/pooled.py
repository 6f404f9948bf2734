"""All measures over pooled features, for all layers at once: what several of them need is made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from tsprobe.diagnostics import measures
from tsprobe.diagnostics.catalogue import CATALOGUE, Undefined, Value, of_kind
from tsprobe.diagnostics.lens import held_out, lens_r2
from tsprobe.diagnostics.similarity import cka_of_grams, is_constant

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

QUADRATIC = 256  # samples, drawn with a seed, of what compares all pairs and grows with the square, and of the lens
FEWEST = 4  # samples: unbiased CKA divides by N - 3

SPECTRAL: dict[str, bool] = {
    "effective_rank": True,
    "alpha_req": True,
    "rankme": False,
    "sample_entropy": False,
}  # centred
STEPS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "displacement": measures.displacement,
    "relative_change": measures.relative_change,
}
INPUTS = ("cka_mean", "cka_std", "cka_spectrum")


@dataclass(frozen=True)
class Measured:
    """Values by layer and name, and linear CKA of all pairs of `layers`, `[L, L]`; None unless CKA is asked for."""

    values: dict[str, dict[str, Value]]
    layers: tuple[str, ...]
    cka: Float[np.ndarray, "L L"] | None


def drawn_pairs(n: int, seed: int) -> Int[np.ndarray, " n"]:
    """Of n samples, those between which pairs are compared."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:QUADRATIC])


def measure_pooled(
    features: Mapping[str, Float[Tensor, "N ?"]],
    final: str,
    names: Sequence[str],
    *,
    inputs: Mapping[str, Float[np.ndarray, "n ?"]] | None = None,
    groups: Int[np.ndarray, " N"] | None = None,
    seed: int = 0,
) -> Measured:
    """The measures of kind "features" among `names`, for layers in the order in which they run.

    `inputs` are what `input_statistics` gives of the samples `drawn_pairs(N, seed)` (None: samples are no whole
    series), `groups` the series of each sample.
    A layer with values that are not finite, and too few samples, give NaN and the reason.
    """
    names, layers = of_kind(names, "features"), tuple(features)
    n = len(features[final])
    if n < FEWEST:
        note = f"{n} samples; at least {FEWEST} are needed"
        return Measured({layer: dict.fromkeys(names, Value(np.nan, note)) for layer in layers}, layers, None)
    drawn = drawn_pairs(n, seed)
    out = torch.from_numpy(held_out(drawn if groups is None else groups[drawn], seed))
    layers_of = _Layers({layer: value.double() for layer, value in features.items()}, final, drawn, out, inputs)
    similar = any(name.startswith("cka_") for name in names)
    values = {layer: {name: _value(name, layers_of, layer) for name in names} for layer in layers}
    cka = layers_of.cka[: len(layers), : len(layers)].numpy() if similar else None
    return Measured(values, layers, cka)


@dataclass(frozen=True)
class _Layers:
    """All layers of one sample in float64: `drawn` are n rows for pairs and the lens, `out [n]` what this holds out."""

    x: dict[str, Tensor]
    final: str
    drawn: Int[np.ndarray, " n"]
    out: Tensor
    inputs: Mapping[str, np.ndarray] | None
    spectra: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # singular values by layer, centred or not
    grams: dict[str, Tensor] = field(default_factory=dict)  # `centred_gram` of the drawn rows, by layer

    @cached_property
    def sound(self) -> dict[str, bool]:
        return {layer: bool(value.isfinite().all()) for layer, value in self.x.items()}

    @cached_property
    def given(self) -> dict[str, Tensor]:
        """The statistics of the input in which samples differ."""
        given = {name: value for name, value in (self.inputs or {}).items() if value.shape[1]}
        return {name: torch.from_numpy(value) for name, value in given.items()}

    @cached_property
    def cka(self) -> Tensor:
        """Of all layers, then of the statistics of the input, `[L + I, L + I]`; NaN for layers that are not finite."""
        n, sound = len(self.drawn), [*self.sound.values(), *(True for _ in self.given)]
        grams = torch.zeros(len(sound), n, n, dtype=torch.float64)
        constant = torch.zeros(len(sound), dtype=torch.bool)
        for i, layer in enumerate(self.x):
            if sound[i]:
                constant[i], grams[i] = is_constant(self.sample[layer]), self.gram(layer)
        for i, value in enumerate(self.given.values(), len(self.x)):
            constant[i], grams[i] = is_constant(value), measures.centred_gram(value)
        whole = cka_of_grams(grams, constant)
        bad = ~torch.tensor(sound)
        return whole.masked_fill(bad[:, None] | bad, torch.nan)

    @cached_property
    def sample(self) -> dict[str, Tensor]:
        """The drawn rows of each layer."""
        return {layer: value[self.drawn] for layer, value in self.x.items()}

    def gram(self, layer: str) -> Tensor:
        if layer not in self.grams:
            self.grams[layer] = measures.centred_gram(self.sample[layer])
        return self.grams[layer]

    def measure(self, name: str, layer: str) -> float:
        """Raises `Undefined`."""
        if not self.sound[layer]:
            raise Undefined("features that are not finite")
        if name in SPECTRAL:
            return self._spectral(name, layer)
        if name == "anisotropy":
            return measures.anisotropy(self.x[layer])
        if name == "two_nn":
            return measures.dimension_of_gram(self.gram(layer))
        if name == "uniformity":
            return measures.uniformity_of_gram(self.sample[layer], self.gram(layer))
        if name in STEPS:
            return self._step(name, layer)
        if name in INPUTS:
            return self._similarity(name, layer)
        if not self.sound[self.final]:
            raise Undefined("features of the final layer that are not finite")
        if name == "lens_r2":
            return lens_r2(self.sample[layer], self.sample[self.final], self.out)
        places = list(self.x)
        return float(self.cka[places.index(layer), places.index(self.final)])

    def _spectral(self, name: str, layer: str) -> float:
        if layer not in self.spectra:
            self.spectra[layer] = measures.spectra(self.x[layer])
        spectrum = self.spectra[layer][0 if SPECTRAL[name] else 1]
        if name == "alpha_req":
            return measures.decay_of_spectrum(spectrum, len(self.x[layer]))
        how = measures.entropy_of_spectrum if name == "sample_entropy" else measures.perplexity
        return how(spectrum)

    def _step(self, name: str, layer: str) -> float:
        places = list(self.x)
        i = places.index(layer)
        if i == 0 or self.x[places[i - 1]].shape != self.x[layer].shape:
            raise Undefined(CATALOGUE[name].missing)
        if not self.sound[places[i - 1]]:
            raise Undefined("features of the layer before that are not finite")
        return STEPS[name](self.x[layer], self.x[places[i - 1]])

    def _similarity(self, name: str, layer: str) -> float:
        if self.inputs is None:
            raise Undefined("samples are steps, not whole series")
        if name not in self.given:
            raise Undefined("the input does not differ in this")
        return float(self.cka[list(self.x).index(layer), len(self.x) + list(self.given).index(name)])


def _value(name: str, layers: _Layers, layer: str) -> Value:
    try:
        value = layers.measure(name, layer)
    except Undefined as reason:
        return Value(np.nan, str(reason))
    return Value(value, CATALOGUE[name].missing if np.isnan(value) else "")
