"""What a run of the video engine is asked to do."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tsprobe.settings import Frozen, Resumable
from vision.engine.captioner import CaptionerShape
from vision.pretraining.spec import WorldSpec
from vision.world.plan import MOST

Source = Literal["metadata", "clip", "frames", "exact", "none"]
MERGED = "merged"
NO_CLIPS: Source = "none"


class Phase(Frozen):
    """So many steps of so many samples, with a rate that warms up and then falls as a cosine."""

    steps: int = Field(ge=1)
    batch: int = Field(ge=2)
    rate: float = Field(gt=0)
    warmup: int = Field(10, ge=0)


class Tuning(Phase):
    """`batch` clips a step, and `pictures` with their own captions. `normalise`: frames have length 1 in the mean."""

    pictures: int = Field(32, ge=0)
    normalise: bool = True
    decay: float = Field(0.05, ge=0)
    clip: float = Field(1.0, gt=0)


class ClipsSpec(Frozen):
    """Generated clips: `exact` with exact captions for the captioner, `unlabelled` that it describes, and `held_out`.

    Pictures of the frames are drawn at the size of the world and shrunk to the size of the run.
    """

    exact: int = Field(1500, ge=2)
    unlabelled: int = Field(2000, ge=2)
    held_out: int = Field(256, ge=2)
    frames: int = 8
    objects: tuple[int, int] = (1, 2)
    described_frames: int = Field(3, ge=1)  # of each clip, by the captioner of pictures

    @model_validator(mode="after")
    def _moves(self) -> ClipsSpec:
        if self.frames < 2:
            raise ValueError(f"a clip needs at least 2 frames to show motion, not {self.frames}")
        if not 1 <= self.objects[0] <= self.objects[1] <= MOST:
            raise ValueError(f"objects are a range within 1 to {MOST}, not {list(self.objects)}")
        return self


class TitlesSpec(Frozen):
    """Shares of the clips whose title is missing, and whose title is that of another clip."""

    missing: float = Field(0.3, ge=0, le=1)
    wrong: float = Field(0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _shares(self) -> TitlesSpec:
        if self.missing + self.wrong > 1:
            raise ValueError("titles: the missing and the wrong are more than all")
        return self


class VideoSpec(Resumable):
    """Captions that a captioner, frames and titles agree on, and a tower of images tuned on clips with them (PE, 2.2).

    `compare` are tunings on other captions of the same clips, each from the same start: of one source alone, the exact
    ones, or pictures alone ("none").
    """

    name: ClassVar[str] = "video"

    recipe: str
    start: str  # the folder of a finished contrastive run, or the name of a shipped tower
    size: int = Field(32, ge=8)  # pixels a side
    world: WorldSpec = Field(default_factory=lambda: WorldSpec.model_validate({}))  # pictures and their captions
    clips: ClipsSpec = Field(default_factory=lambda: ClipsSpec.model_validate({}))
    titles: TitlesSpec = Field(default_factory=lambda: TitlesSpec.model_validate({}))
    captioner: CaptionerShape = CaptionerShape()
    pictures: Phase = Phase(steps=300, batch=64, rate=1e-3, warmup=30)  # the captioner, on pictures
    refined: Phase = Phase(steps=1000, batch=24, rate=1e-3, warmup=30)  # then on clips with exact captions
    tuning: Tuning = Tuning(steps=100, batch=16, rate=1e-4, warmup=10, pictures=32, normalise=True, decay=0.05, clip=1)
    compare: tuple[Source, ...] = ("metadata",)
    seed: int = Field(0, ge=0)
    together: int = Field(100, ge=1)  # clips described in a step
    device: str = "auto"
    keep_every: float = Field(45.0, gt=0)  # seconds between checkpoints
    log_every: int = Field(5, ge=1)  # steps

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """What is done one after the other, and in how many steps."""
        writing = -(-self.clips.unlabelled // self.together)
        tunings = [(f"tune {source}", self.tuning.steps) for source in (*self.compare, MERGED)]
        return (
            ("caption pictures", self.pictures.steps), ("describe frames", writing),
            ("caption clips", self.refined.steps), ("describe clips", writing), *tunings,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.parts)

    def place(self, step: int) -> tuple[str, int]:
        """The part that a step belongs to, and its number within it."""
        for name, steps in self.parts:
            if step < steps:
                return name, step
            step -= steps
        return self.parts[-1][0], self.parts[-1][1] + step

    @model_validator(mode="after")
    def _fits(self) -> VideoSpec:
        if max(self.captioner.frames, self.clips.described_frames) > self.clips.frames:
            raise ValueError(f"clips have {self.clips.frames} frames: the captioner cannot read more of them")
        if len(set(self.compare)) < len(self.compare):
            raise ValueError("compare names a source twice")
        if max(self.pictures.batch, self.tuning.pictures) > self.world.pool:
            raise ValueError(f"a batch of pictures needs a pool of as many, not {self.world.pool}")
        if self.refined.batch > self.clips.exact or self.tuning.batch > self.clips.unlabelled:
            raise ValueError("a batch of clips is larger than all clips")
        return self
