"""The search space: what a trial may choose, one setting, and all settings of a finite space.

Strengths belong to their probe and further layers to a combination, so that the space is a tree: a trial is asked for a
strength only after its probe. What has one choice is no parameter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.sweep.spec import STRENGTHS, Between, Space


@dataclass(frozen=True)
class Setting:
    """One readout. `layers` are in the order of the encoder; `combine` is `one` where there is one."""

    encoder: str
    length: int | None
    channels: str
    layers: tuple[str, ...]
    combine: str
    pooling: str
    standardise: bool
    probe: str
    strength: float

    @property
    def features(self) -> tuple[Any, ...]:
        """What of a setting its features depend on."""
        return self.encoder, self.length, self.channels, self.layers, self.combine, self.pooling

    def as_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


class Asks(Protocol):
    """What a trial is asked; an `optuna.Trial`, or something that answers like one."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...


@dataclass(frozen=True)
class Choices:
    """A space over the layers that the encoders have, with the strengths that the folds allow.

    Raises `SpecError` where nothing is left to be searched, or a setting cannot be had.
    """

    space: Space
    layers: Mapping[str, tuple[str, ...]]  # of each encoder
    strengths: Mapping[str, tuple[float, ...] | Between]  # of each probe

    def __post_init__(self) -> None:
        if min(map(len, self.layers.values())) < 2 and self.space.combine != ("one",):
            raise SpecError("space.combine needs two layers at least to combine")
        if self.size == 1:
            raise SpecError("the space has one setting alone, so there is nothing to search")

    @property
    def size(self) -> int | None:
        """The number of settings; None for a space that is not finite."""
        if any(isinstance(strengths, Between) for strengths in self.strengths.values()):
            return None
        return sum(1 for _ in self.settings())

    def ask(self, trial: Asks) -> Setting:
        """The setting that a trial chooses."""
        space = self.space
        encoder = one_of(trial, "encoder", tuple(self.layers))
        layers, combine = self._layers(trial, encoder)
        probe = one_of(trial, "probe", tuple(self.strengths))
        return Setting(
            encoder,
            one_of(trial, "length", space.lengths),
            one_of(trial, "channels", space.channels),
            layers,
            combine,
            one_of(trial, "pooling", space.poolings),
            one_of(trial, "standardise", space.standardise),
            probe,
            self._strength(trial, probe),
        )

    def _layers(self, trial: Asks, encoder: str) -> tuple[tuple[str, ...], str]:
        names, space = self.layers[encoder], self.space
        combine = one_of(trial, "combine", space.combine)
        first = one_of(trial, self._layer_parameter(encoder, 1), names)
        if combine == "one":
            return (first,), combine
        members = min(space.members, len(names))
        count = 2 if members == 2 else trial.suggest_int("members", 2, members)
        others = [one_of(trial, self._layer_parameter(encoder, i), names) for i in range(2, count + 1)]
        chosen = {first, *others}  # the same layer twice is that layer once
        return tuple(name for name in names if name in chosen), combine if len(chosen) > 1 else "one"

    def _layer_parameter(self, encoder: str, number: int) -> str:
        """Choices of a parameter never change, so that encoders with other layers have a parameter of their own."""
        name = "layer" if number == 1 else f"layer {number}"
        return name if len(set(self.layers.values())) == 1 else f"{name} of {encoder}"

    def _strength(self, trial: Asks, probe: str) -> float:
        name, strengths = strength_parameter(probe), self.strengths[probe]
        if not isinstance(strengths, Between):
            return one_of(trial, name, strengths)
        if probe == "knn":
            return float(trial.suggest_int(name, int(strengths.low), int(strengths.high), log=True))
        return trial.suggest_float(name, strengths.low, strengths.high, log=True)

    def settings(self) -> Iterator[Setting]:
        """All settings of a finite space, each once; those that share their features follow one another."""
        space = self.space
        for encoder, names in self.layers.items():
            for length, channels in itertools.product(space.lengths, space.channels):
                for layers, combine in self._combinations(names):
                    for pooling, standardise in itertools.product(space.poolings, space.standardise):
                        for probe, strengths in self.strengths.items():
                            assert not isinstance(strengths, Between)
                            for strength in strengths:
                                yield Setting(
                                    encoder, length, channels, layers, combine, pooling, standardise, probe, strength
                                )

    def _combinations(self, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Single layers also where only combinations are asked for: a trial that draws a layer twice has one."""
        yield from (((name,), "one") for name in names)
        for combine in self.space.combine:
            if combine != "one":
                for count in range(2, min(self.space.members, len(names)) + 1):
                    yield from ((members, combine) for members in itertools.combinations(names, count))

    def parameters(self, setting: Setting) -> dict[str, Any]:
        """What a trial has to answer to come to a setting."""
        layers = setting.layers
        if setting.combine == "one" and "one" not in self.space.combine:
            layers = layers * 2
        combine = setting.combine if setting.combine in self.space.combine else self.space.combine[0]
        answers: dict[str, Any] = {
            "encoder": setting.encoder, "length": setting.length, "channels": setting.channels, "combine": combine,
            "pooling": setting.pooling, "standardise": setting.standardise, "probe": setting.probe,
            strength_parameter(setting.probe): setting.strength, "members": len(layers),
        }  # fmt: skip
        answers |= {self._layer_parameter(setting.encoder, i): name for i, name in enumerate(layers, 1)}
        recorder = Recorder(answers)
        self.ask(recorder)
        return recorder.asked


class Recorder:
    """Answers from a table, and notes what was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers
        self.asked: dict[str, Any] = {}

    def _answer(self, name: str) -> Any:
        self.asked[name] = self._answers[name]
        return self._answers[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._answer(name)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        return self._answer(name)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return self._answer(name)


def setting_of(choices: Choices, parameters: Mapping[str, Any]) -> Setting:
    """The setting of a trial that has been run."""
    return choices.ask(Recorder(dict(parameters)))


def strength_parameter(probe: str) -> str:
    return f"{probe} {STRENGTHS[probe]}"


def one_of(trial: Asks, name: str, choices: Sequence[Any]) -> Any:
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)


def known_layers(
    encoder: str, trunk: tuple[str, ...], taps: Sequence[str], named: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The layers of an encoder that are searched, in its order. Raises `UnknownNameError`."""
    if named is None:
        return trunk
    for name in named:
        if name not in taps:
            raise UnknownNameError(f"layer of {encoder}", name, taps)
    return tuple(name for name in taps if name in named)
