"""What a study is asked to do: one frozen spec, whose unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.pooling import Slots
from tsprobe.probes import get_probe


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderSpec(_Frozen):
    """An encoder by name, or the user's own module (`source: python:package.module:function`) and its blocks."""

    source: str
    name: str | None = None
    blocks: str | None = None
    final: str | None = None
    prepare: str | None = None
    tokens: int | dict[str, int] | None = None


class Tracking(_Frozen):
    """Where the study is logged. `uri: null` keeps a local SQLite store beside the output folder."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "tsprobe"


class StudySpec(_Frozen):
    """Encoders x tasks x layers x poolings x probes x seeds, and how sure the verdicts must be."""

    name: str = Field("study", min_length=1)
    encoders: tuple[str | EncoderSpec, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    controls: tuple[Literal["untrained", "minirocket", "catch22", "chance"], ...] = (
        "untrained",
        "minirocket",
        "chance",
    )
    layers: tuple[str, ...] | None = Field(None, min_length=1)
    poolings: tuple[str, ...] = ("mean",)
    probes: tuple[str, ...] = Field(("ridge",), min_length=1)
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
        return Slots.parse(names).names

    @field_validator("probes")
    @classmethod
    def _known_probes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            get_probe(name)
        return _distinct(names)

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
    try:
        return StudySpec.model_validate(settings)
    except ValidationError as error:
        raise SpecError(_first_mistake(error)) from error


def _first_mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not isinstance(part, str) or part.isidentifier())
    if first["type"] == "extra_forbidden":
        fields = Tracking.model_fields if first["loc"][0] == "tracking" else StudySpec.model_fields
        return str(UnknownNameError("setting", str(first["loc"][-1]), fields))
    if first["type"] == "missing":
        return f"setting {where!r} is required"
    return f"setting {where!r}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"


def read_spec(path: Path, overrides: tuple[str, ...] = ()) -> StudySpec:
    """Read a YAML file and apply overrides such as `tracking.enabled=false`; values are read as YAML."""
    try:
        settings = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise SpecError(f"no such config: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise SpecError(f"{path} must hold settings such as 'encoders:' and 'tasks:', not a {type(settings).__name__}")
    settings.setdefault("name", path.stem)
    for override in overrides:
        _override(settings, override)
    return make_spec(settings)


def _override(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"--set takes NAME=VALUE, not {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {key}: {text!r} is not a YAML value") from error
    *path, last = key.strip().split(".")
    for part in path:
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise SpecError(f"--set {key}: {part!r} holds no settings")
    settings[last] = value
