"""What a study is asked to do: one frozen spec, whose unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tsprobe.diagnostics import CATALOGUE, chosen, of_kind
from tsprobe.pooling import Slots
from tsprobe.probes import get_probe
from tsprobe.settings import Frozen, read_settings, validated


class EncoderSpec(Frozen):
    """An encoder by name, or the user's own module (`source: python:package.module:function`) and its blocks."""

    source: str
    name: str | None = None
    blocks: str | None = None
    final: str | None = None
    prepare: str | None = None
    tokens: int | dict[str, int] | None = None


class Tracking(Frozen):
    """Where the study is logged. `uri: null` keeps a local SQLite store beside the output folder."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "tsprobe"


class Diagnostics(Frozen):
    """Which label-free measures are taken, and on how much. Series, samples and views are drawn with the seed."""

    measures: tuple[str, ...] = ("standard",)  # names, or standard, all, none
    tokens: int = Field(default=12, ge=1)  # series whose tokens are looked at, in whole runs of four
    views: int = Field(
        default=0, ge=0
    )  # of each sample, each one more forward pass over the samples; 0: none but for "all"
    samples: int = Field(default=256, ge=4)  # training series of which views are made
    seed: int = Field(default=0, ge=0)

    @field_validator("measures", mode="before")
    @classmethod
    def _one_is_enough(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        chosen(names)
        return names

    @field_validator("views")
    @classmethod
    def _one_view_is_none(cls, views: int) -> int:
        if views == 1:
            raise ValueError("one view has nothing to be compared with; give two or more, or 0")
        return views

    @property
    def names(self) -> tuple[str, ...]:
        """The measures; those of views, too, where views are asked for and none of these measures is named."""
        names = chosen(self.measures)
        return chosen((*names, *of_kind(CATALOGUE, "views"))) if self.views and not of_kind(names, "views") else names

    @property
    def n_views(self) -> int:
        return self.views or (2 if of_kind(self.names, "views") else 0)


class StudySpec(Frozen):
    """Encoders x tasks x layers x poolings x probes x seeds, and how sure the verdicts must be."""

    name: str = Field("study", min_length=1)
    encoders: tuple[str | EncoderSpec, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    controls: tuple[Literal["untrained", "minirocket", "catch22", "lags", "chance"], ...] = (
        "untrained",
        "minirocket",
        "chance",
    )
    layers: tuple[str, ...] | None = Field(None, min_length=1)
    poolings: tuple[str, ...] = ("mean",)
    probes: tuple[str, ...] = Field(("ridge",), min_length=1)
    features: Literal["auto", "kept", "statistics"] = "auto"  # "statistics" leaves baselines as they are
    diagnostics: Diagnostics = Diagnostics()  # also a name, or a list of names
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    folds: int = Field(5, ge=2)
    channels: Literal["concat", "mean"] = "concat"
    missing: Literal["handle", "error"] = "handle"
    rows: int = Field(16, ge=1)
    device: str = "auto"
    resamples: int = Field(1000, ge=100)
    level: float = Field(0.05, gt=0, lt=1)
    margin: float = Field(0.02, ge=0)
    tracking: Tracking = Tracking()

    @field_validator("poolings")
    @classmethod
    def _known_poolings(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        slots = Slots.parse(names)
        if slots.steps:
            raise ValueError("dense tasks read steps by themselves; poolings are for whole series")
        return slots.names

    @field_validator("probes")
    @classmethod
    def _known_probes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            get_probe(name)
        return _distinct(names)

    @field_validator("features")
    @classmethod
    def _statistics_are_for_ridge(cls, way: str, info: ValidationInfo) -> str:
        others = [name for name in info.data.get("probes", ()) if name != "ridge"]
        if way == "statistics" and others:
            raise ValueError(f"only ridge can do without kept features, not {' or '.join(others)}; take auto or kept")
        return way

    @field_validator("diagnostics", mode="before")
    @classmethod
    def _names_are_enough(cls, given: Any) -> Any:
        return {"measures": given or "none"} if given is None or isinstance(given, str | list | tuple) else given

    @field_validator("encoders", "tasks", "seeds", "controls", "layers")
    @classmethod
    def _no_doubles(cls, items: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return _distinct(items) if items else items

    def dump(self) -> dict[str, Any]:
        """The resolved spec in plain types, as `spec.yaml` keeps it."""
        return self.model_dump(mode="json")


def _distinct(items: tuple[Any, ...]) -> tuple[Any, ...]:
    doubled = sorted({str(item) for item in items if items.count(item) > 1})
    if doubled:
        raise ValueError(f"named twice: {', '.join(doubled)}")
    return items


def make_spec(settings: dict[str, Any]) -> StudySpec:
    """Raise `SpecError` with the first mistake in one line, near names suggested for an unknown key."""
    return validated(StudySpec, settings)


def read_spec(path: Path, overrides: tuple[str, ...] = ()) -> StudySpec:
    """Read a YAML file and apply overrides such as `tracking.enabled=false`; values are read as YAML."""
    settings = read_settings(path, overrides)
    settings.setdefault("name", path.stem)
    return make_spec(settings)
