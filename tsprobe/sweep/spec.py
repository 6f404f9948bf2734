"""What a sweep of readouts is asked to do: one frozen spec, whose unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tsprobe.errors import SpecError
from tsprobe.pooling import Slots
from tsprobe.probes import get_probe
from tsprobe.settings import Frozen, override, read_settings, validated
from tsprobe.study.spec import EncoderSpec, _distinct
from tsprobe.sweep.search import SearchSpec, known
from tsprobe.sweep.tuning_spec import TuningSweepSpec

PRUNERS = ("median", "none")
STRENGTHS = {"ridge": "alpha", "logistic": "C", "knn": "k"}  # probes that are searched, and what their strength is


class Between(Frozen):
    """Strengths from `low` to `high`, drawn evenly on a logarithmic scale (whole numbers for knn)."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Between:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


def _written_as(strengths: Any) -> str:
    return "none" if strengths is None else "between" if isinstance(strengths, dict | Between) else "list"


Strengths = Annotated[
    Annotated[tuple[float, ...], Tag("list")] | Annotated[Between, Tag("between")] | Annotated[None, Tag("none")],
    Discriminator(_written_as),  # so that a mistake is told of what was meant
]


class Space(Frozen):
    """What is searched. A list with one entry is not searched; `layers: null` are all of the trunk.

    `combine` says what is made of layers: `one` of them, or the mean or the concatenation of 2 to `members`. Poolings
    joined by `+`, as in `cls+mean`, stand side by side. `lengths` are numbers of steps, counted from the end, that are
    kept of each series (null: all); each length and each way to join channels is one more reading of the series. Where
    `standardise` is false, all features of a readout are brought to one common scale instead of each to its own.
    `probes` are names, or names with their strengths: a list, or low and high; null: the grid of a study.
    """

    layers: tuple[str, ...] | None = Field(None, min_length=1)
    combine: tuple[Literal["one", "mean", "concat"], ...] = Field(("one",), min_length=1)
    members: int = Field(2, ge=2)
    poolings: tuple[str, ...] = Field(("mean",), min_length=1)
    lengths: tuple[int | None, ...] = Field((None,), min_length=1)
    channels: tuple[Literal["concat", "mean"], ...] = Field(("concat",), min_length=1)
    standardise: tuple[bool, ...] = Field((True,), min_length=1)
    probes: dict[str, Strengths] = Field({"ridge": None}, min_length=1)

    @field_validator("layers", "combine", "poolings", "lengths", "channels", "standardise")
    @classmethod
    def _no_doubles(cls, items: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return _distinct(items) if items else items

    @field_validator("lengths")
    @classmethod
    def _lengths_are_steps(cls, lengths: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if any(length is not None and length < 1 for length in lengths):
            raise ValueError("a length is a number of steps from 1 on, or null for whole series")
        return lengths

    @field_validator("poolings")
    @classmethod
    def _known_poolings(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if Slots.parse(pooled_together(names)).steps:
            raise ValueError("dense tasks read steps; a sweep pools whole series")
        return names

    @field_validator("probes", mode="before")
    @classmethod
    def _names_are_enough(cls, given: Any) -> Any:
        given = [given] if isinstance(given, str) else given
        named = isinstance(given, list | tuple) and all(isinstance(name, str) for name in given)
        return dict.fromkeys(given) if named else given

    @field_validator("probes")
    @classmethod
    def _known_probes(cls, probes: dict[str, Strengths]) -> dict[str, Strengths]:
        for name, strengths in probes.items():
            get_probe(name)
            if name not in STRENGTHS:
                raise ValueError(f"a sweep has no strengths for the probe {name!r}; it takes {', '.join(STRENGTHS)}")
            if isinstance(strengths, tuple):
                if not strengths or not all(0 < s < float("inf") for s in strengths):
                    raise ValueError(f"strengths of {name} are positive finite numbers, at least one")
                _distinct(strengths)
            numbers = (
                strengths if isinstance(strengths, tuple) else (strengths.low, strengths.high) if strengths else ()
            )
            if name == "knn" and not all(float(k).is_integer() for k in numbers):
                raise ValueError("strengths of knn are whole numbers of neighbours")
        return probes


def pooled_together(poolings: tuple[str, ...]) -> tuple[str, ...]:
    """The poolings to read, of names that may stand for several side by side."""
    return tuple(dict.fromkeys(part for name in poolings for part in name.split("+")))


class SweepSpec(SearchSpec):
    """Encoders x tasks, the space, and how it is searched.

    Objectives are the score (the mean over the tasks, on inner folds) and, with `cost`, what the encoder costs up to
    the last layer that is read. `trials` are those of the sweep in all; the grid has as many as there are cells.
    """

    LOOSE: ClassVar[frozenset[str]] = SearchSpec.LOOSE | {"compare", "resamples", "rows"}

    encoders: tuple[str | EncoderSpec, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    space: Space = Space.model_validate({})
    trials: int = Field(100, ge=1)
    pruner: str | None = None  # median where the score is the one objective
    cost: Literal["parameters", "latency"] | None = None
    compare: Literal["grid"] | None = None
    folds: int = Field(5, ge=2)
    missing: Literal["handle", "error"] = "handle"
    rows: int = Field(16, ge=1)
    resamples: int = Field(1000, ge=100)

    @field_validator("encoders", "tasks")
    @classmethod
    def _no_doubles(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        return _distinct(items)

    @field_validator("pruner")
    @classmethod
    def _known_pruner(cls, name: str | None) -> str | None:
        return None if name is None else known("pruner", name, PRUNERS)

    @model_validator(mode="after")
    def _belong_together(self) -> SweepSpec:
        if self.cost and self.pruner == "median":
            raise ValueError("pruner: median compares one objective, and cost adds a second; drop one of them")
        if not self.finite and "grid" in (self.sampler, self.compare):
            raise ValueError("a grid needs lists of strengths; low and high hold more of them than can be tried")
        return self

    @property
    def finite(self) -> bool:
        return not any(isinstance(strengths, Between) for strengths in self.space.probes.values())

    @property
    def prunes(self) -> bool:
        return not self.cost and self.pruner != "none"


def make_sweep_spec(settings: dict[str, Any]) -> SweepSpec:
    """Raise `SpecError` with the first mistake in one line, near names suggested for an unknown key."""
    if not isinstance(settings.get("space", {}), dict):
        raise SpecError("setting 'space' holds settings: layers, poolings, probes, ...")
    return validated(SweepSpec, settings)


def make_tuning_sweep_spec(settings: dict[str, Any]) -> TuningSweepSpec:
    """The same for a sweep of tunings."""
    return validated(TuningSweepSpec, settings)


def read_sweep_spec(path: Path, overrides: tuple[str, ...] = ()) -> SweepSpec | TuningSweepSpec:
    """Read a YAML file and apply overrides such as `space.poolings=[mean]`; values are read as YAML.

    With `align`, the settings of an alignment or the file that holds them, it is a sweep of tunings.
    """
    settings = read_settings(path)
    for change in ("", *overrides):
        if change:
            override(settings, change)
        if isinstance(settings.get("align"), str):  # now, so that overrides reach what the file holds
            settings["align"] = read_settings(Path(settings["align"]))
    settings.setdefault("name", path.stem)
    return make_tuning_sweep_spec(settings) if "align" in settings else make_sweep_spec(settings)
