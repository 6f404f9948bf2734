"""What an alignment is asked to do: one frozen spec, whose unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tsprobe.alignment.recipes import RECIPES
from tsprobe.errors import UnknownNameError
from tsprobe.pretraining.corpus import GENERATORS, SOURCES
from tsprobe.settings import Frozen, Resumable, read_settings, validated

CONTROLS = {
    "unregularised": "the same budget without masking, stochastic depth and LayerScale",
    "wrong-teacher": "the same recipe taught by the embedding, which every layer already knows",
}


class StudyOf(Frozen):
    """The study before and after: tasks of all families, so that the price is seen too."""

    tasks: tuple[str, ...] = Field(min_length=1)
    poolings: tuple[str, ...] = ("mean",)
    probes: tuple[str, ...] = ("ridge",)
    seeds: tuple[int, ...] = (0,)


class AlignSpec(Resumable):
    """One encoder, one recipe. `teacher` is the layer that the output learns from (for `joint`, the layers); `auto`
    takes it from the study before, by inner folds alone, over the tasks of the families in `lift`."""

    LOOSE: ClassVar[frozenset[str]] = Resumable.LOOSE | {"study", "controls", "force"}

    encoder: str
    recipe: str
    study: StudyOf
    lift: tuple[str, ...] = ("dense",)  # families
    teacher: str | tuple[str, ...] = "auto"
    labelled: tuple[str, ...] = ()  # tasks whose training targets `labels` and `state` learn from
    sources: tuple[str, ...] = Field(tuple(GENERATORS), min_length=1)  # of series without labels
    length: int = Field(512, ge=64)  # steps, at most
    steps: int = Field(300, ge=1)
    batch: int = Field(32, ge=4)  # series
    rate: float = Field(3e-4, gt=0)  # of AdamW, at its highest
    warmup: int = Field(20, ge=0)  # steps
    decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    mask: float = Field(0.75, ge=0, lt=1)  # share of the tokens that the student does not see
    mask_block: int = Field(2, ge=1)  # tokens that are hidden together
    stochastic_depth: float = Field(0.1, ge=0, lt=1)  # share of the blocks left out, for each series
    layer_scale: bool = True
    locality: float = Field(1.0, ge=0)  # weight of the segments' loss in `dense`; 0: agreement with the teacher alone
    controls: tuple[str, ...] = ("unregularised",)
    force: bool = False  # tune an encoder that hides nothing too
    seed: int = Field(0, ge=0)
    device: str = "auto"
    keep_every: float = Field(30.0, gt=0)  # seconds between checkpoints

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        return _known("recipe", name, RECIPES)

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known("control", name, CONTROLS) for name in names)

    @field_validator("sources")
    @classmethod
    def _known_sources(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known("source", name, SOURCES) for name in names)

    @model_validator(mode="after")
    def _fits(self) -> AlignSpec:
        needs = RECIPES[self.recipe].labelled
        if needs and not self.labelled:
            raise ValueError(f"the recipe {self.recipe} learns from targets: name tasks in labelled=")
        if not needs and self.labelled:
            raise ValueError(f"the recipe {self.recipe} uses no targets; labelled= is for labels and state")
        return self

    def controlled(self, control: Literal["unregularised", "wrong-teacher"] | str) -> AlignSpec:
        """The spec of a control."""
        change: dict[str, Any] = {"controls": ()}
        if control == "unregularised":
            change |= {"mask": 0.0, "stochastic_depth": 0.0, "layer_scale": False}
        else:
            change |= {"teacher": "embedding"}
        return self.model_copy(update=change)


def _known(kind: str, name: str, known: Any) -> str:
    if name not in known:
        raise ValueError(str(UnknownNameError(kind, name, known)))
    return name


def read_align_spec(path: Path, overrides: tuple[str, ...] = ()) -> AlignSpec:
    """Raises `SpecError` for a file or setting that is no alignment."""
    return validated(AlignSpec, read_settings(path, overrides))
