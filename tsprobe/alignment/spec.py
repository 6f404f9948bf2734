"""What an alignment is asked to do: one frozen spec, whose unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tsprobe.alignment.recipes import RECIPES
from tsprobe.errors import UnknownNameError
from tsprobe.pretraining.corpus import GENERATORS, SOURCES
from tsprobe.settings import Frozen, Resumable, read_settings, validated
from tsprobe.study.spec import Tracking

TUNED = {
    "unregularised": "the same budget without masking, stochastic depth and LayerScale",
    "wrong-teacher": "the same recipe taught by the embedding, which every layer already knows",
    "same-budget": "as many steps on the same series with the objective that the encoder was pretrained with",
}
FREE = {
    "scalar-mix": "no tuning: a softmax mixture of the standardised layers, its weights learnt on training rows",
    "concat": "no tuning: all layers side by side",
    "compressed": "no tuning: all layers side by side, their principal components, as many as the final layer is wide",
    "standardised": "no tuning: the final layer, standardised, and where there is a class token that beside it",
}
CUT = "no tuning: the untouched encoder cut at the teacher"  # a column of every row
CONTROLS = TUNED | FREE


class StudyOf(Frozen):
    """The study before and after: tasks of all families, so that the price is seen too."""

    tasks: tuple[str, ...] = Field(min_length=1)
    poolings: tuple[str, ...] = ("mean",)
    probes: tuple[str, ...] = ("ridge",)
    seeds: tuple[int, ...] = (0,)


class AlignSpec(Resumable):
    """One encoder, one recipe. `teacher` is the layer that the output learns from (for `joint`, the layers); `auto`
    takes it from the study before, by inner folds alone, over the tasks of the families in `lift`."""

    LOOSE: ClassVar[frozenset[str]] = Resumable.LOOSE | {
        "study",
        "controls",
        "free",
        "force",
        "seeds",
        "checkpointing",
        "tracking",
    }

    encoder: str
    recipe: str
    study: StudyOf
    lift: tuple[str, ...] = ("dense",)  # families
    teacher: str | tuple[str, ...] = "auto"
    locality_from: str = ""  # segments of series without truth: ruptures; of pictures sam2:FOLDER_OR_ID
    cut: str | None = None  # the layer at which the encoder is cut before it is tuned
    labelled: tuple[str, ...] = ()  # tasks whose training targets `labels`, `state` and `language` learn from
    series: tuple[str, ...] = ()  # tasks whose training series, without targets, are learnt on
    sources: tuple[str, ...] = Field(tuple(GENERATORS), min_length=1)  # of generated series, where there are none
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
    decoder: str = "tiny"  # of `language`; or a pretrained model, as in the probe language:SOURCE
    projector_first: int = Field(0, ge=0)  # steps in which projector and small decoder of `language` learn alone
    head_rate: float = Field(1.0, gt=0)  # of what is thrown away in the end (maps, projector, decoder), beside `rate`
    tuning: Literal["full", "lora"] = "full"
    rank: int = Field(8, ge=1)  # of the low-rank changes
    targets: tuple[str, ...] = ()  # names of the linear layers that they change; all those of the blocks
    precision: Literal["float32", "bfloat16"] = "float32"  # of the passes of the tuning; weights stay in float32
    checkpointing: bool = False  # blocks run again in the backward pass, and keep nothing in between
    controls: tuple[str, ...] = ("unregularised", "same-budget")
    free: tuple[str, ...] = tuple(FREE)  # controls that cost no tuning
    force: bool = False  # tune an encoder that hides nothing too
    seed: int = Field(0, ge=0)
    seeds: tuple[int, ...] = ()  # of several tunings, the first of which is `seed`
    device: str = "auto"
    tracking: Tracking = Tracking()  # of the loss curves
    keep_every: float = Field(30.0, gt=0)  # seconds between checkpoints

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        return _known("recipe", name, RECIPES)

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known("control", name, TUNED) for name in names)

    @field_validator("free")
    @classmethod
    def _known_free(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known("control without tuning", name, FREE) for name in names)

    @field_validator("sources")
    @classmethod
    def _known_sources(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known("source", name, SOURCES) for name in names)

    @model_validator(mode="before")
    @classmethod
    def _first_seed(cls, settings: Any) -> Any:
        """`seed` and `seeds` say the same: one seed is several of which there is one."""
        if not isinstance(settings, dict) or not isinstance(settings.get("seeds", ()), list | tuple):
            return settings  # its type is checked with the others
        seeds = tuple(settings.get("seeds", ()))
        if not seeds:
            return settings | {"seeds": (settings.get("seed", 0),)}
        if "seed" in settings and settings["seed"] != seeds[0]:
            raise ValueError(f"seed={settings['seed']} is not the first of seeds={list(seeds)}: name one of the two")
        return settings | {"seed": seeds[0]}

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0:
            raise ValueError("seeds are distinct numbers from 0 on")
        return seeds

    @model_validator(mode="after")
    def _fits(self) -> AlignSpec:
        needs = RECIPES[self.recipe].labelled
        if needs and not self.labelled:
            raise ValueError(f"the recipe {self.recipe} learns from targets: name tasks in labelled=")
        if not needs and self.labelled:
            raise ValueError(f"the recipe {self.recipe} uses no targets; labelled= is for labels, state and language")
        if needs and "wrong-teacher" in self.controls:
            raise ValueError(
                f"the recipe {self.recipe} has no teacher; the control wrong-teacher is for dense and joint"
            )
        if self.targets and self.tuning != "lora":
            raise ValueError("targets= are for tuning=lora, which changes linear layers by name")
        return self

    @property
    def segmented(self) -> bool:
        """Whether the lessons say which steps belong together."""
        return self.recipe == "dense" and self.locality > 0

    def controlled(self, control: str) -> AlignSpec:
        """The spec of a control that is tuned; "" is the recipe itself."""
        change: dict[str, Any] = {"controls": (), "free": ()} if control else {}
        if control in ("unregularised", "same-budget"):
            change |= {"mask": 0.0, "stochastic_depth": 0.0, "layer_scale": False}
            change |= {"cut": None} if control == "same-budget" else {}  # its objective is that of the whole
        elif control == "wrong-teacher":
            change |= {"teacher": "embedding"}
        return self.model_copy(update=change)

    def seeded(self, seed: int) -> AlignSpec:
        """The spec of one of the tunings."""
        return self.model_copy(update={"seed": seed, "seeds": (seed,)})


def _known(kind: str, name: str, known: Any) -> str:
    if name not in known:
        raise ValueError(str(UnknownNameError(kind, name, known)))
    return name


def read_align_spec(path: Path, overrides: tuple[str, ...] = ()) -> AlignSpec:
    """Raises `SpecError` for a file or setting that is no alignment."""
    return validated(AlignSpec, read_settings(path, overrides))
