"""What an atlas is asked to do: studies and alignments by name, and how sure its statements must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tsprobe.alignment.spec import AlignSpec
from tsprobe.errors import SpecError, TsprobeError
from tsprobe.settings import Frozen, read_settings, validated
from tsprobe.study.spec import StudySpec


class StudyPart(Frozen):
    """A study, and whether it reads series or pictures."""

    modality: Literal["series", "pictures"]
    spec: StudySpec


class AtlasSpec(Frozen):
    """The parts of an atlas. A part is given by its settings, or by `config: FILE` and settings that override those of
    the file (nested ones key by key); paths are looked up from where the command runs."""

    studies: dict[str, StudyPart] = Field(min_length=1)
    alignments: dict[str, AlignSpec] = Field(default_factory=dict)
    labels: tuple[int, ...] = (5, 10, 50)  # labelled training series by which a layer is chosen
    draws: int = Field(default=5, ge=1)  # of such series
    resamples: int = Field(default=4000, ge=200)
    level: float = Field(default=0.05, gt=0, lt=1)
    margin: float = Field(default=0.02, ge=0)  # of a score: what is less is no loss
    seed: int = Field(default=0, ge=0)

    @field_validator("studies", mode="before")
    @classmethod
    def _read_studies(cls, parts: Any) -> Any:
        return {name: _study(name, given) for name, given in _mapping("studies", parts).items()}

    @field_validator("alignments", mode="before")
    @classmethod
    def _read_alignments(cls, parts: Any) -> Any:
        return {name: _alignment(name, given) for name, given in _mapping("alignments", parts).items()}

    @field_validator("labels")
    @classmethod
    def _enough_labels(cls, labels: tuple[int, ...]) -> tuple[int, ...]:
        if any(n < 4 for n in labels) or len(set(labels)) < len(labels):
            raise ValueError("numbers of labelled series are distinct, and 4 at least: inner folds need some")
        return tuple(sorted(labels))

    @model_validator(mode="after")
    def _no_name_twice(self) -> AtlasSpec:
        both = sorted(set(self.studies) & set(self.alignments))
        if both:
            raise ValueError(f"{', '.join(both)} names a study and an alignment: they share a folder")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.studies, *self.alignments)


def read_atlas_spec(path: Path, overrides: tuple[str, ...] = ()) -> AtlasSpec:
    """Raises `SpecError` for a file or setting that is no atlas."""
    return validated(AtlasSpec, read_settings(path, overrides))


def _mapping(what: str, parts: Any) -> dict[str, Any]:
    if not isinstance(parts, dict):
        raise ValueError(f"{what} are named: NAME: SETTINGS")
    for name in parts:
        if not str(name).replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{name!r} is to name a folder: letters, digits, - and _")
    return parts


def _study(name: str, given: Any) -> Any:
    if isinstance(given, StudyPart):
        return given
    settings = _settings(name, given)
    modality = settings.pop("modality", "series")
    settings.setdefault("name", name)
    return StudyPart(modality=modality, spec=_made(name, StudySpec, settings))


def _alignment(name: str, given: Any) -> Any:
    return given if isinstance(given, AlignSpec) else _made(name, AlignSpec, _settings(name, given))


def _made(name: str, model: Any, settings: dict[str, Any]) -> Any:
    try:
        return validated(model, settings)
    except TsprobeError as error:
        raise SpecError(f"{name}: {error}") from error


def _settings(name: str, given: Any) -> dict[str, Any]:
    """Those of a part: its file's, if there is one, and its own over them."""
    if not isinstance(given, dict):
        raise ValueError(f"{name} must hold settings, or config: FILE")
    own = {key: value for key, value in given.items() if key != "config"}
    if "config" not in given:
        return own
    return _merged(read_settings(Path(str(given["config"]))), own)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        both[key] = _merged(below[key], value) if nested else value
    return both
