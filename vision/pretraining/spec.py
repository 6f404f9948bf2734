"""What a run is asked to do: one frozen spec a recipe, whose unknown keys are errors; the first part is common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.settings import Frozen, Resumable, validated
from vision.models import TextShape, TowerShape
from vision.pretraining.augment import Augmentation


class WorldSpec(Frozen):
    """Generated scenes: `pool` different ones are drawn beforehand, `held_out` others are for looks on the way."""

    pool: int = Field(30000, ge=2)
    held_out: int = Field(256, ge=2)
    seed: int = Field(0, ge=0)
    size: int = Field(64, ge=16)  # pixels a side
    folder: str | None = None  # where drawn scenes are kept; by default the machine's temporary folder


class Stage(Frozen):
    """`share` of the steps is done with pictures of `size` pixels a side."""

    size: int = Field(ge=8)
    share: float = Field(gt=0, le=1)


class PretrainSpec(Resumable):
    """One objective on one tower and world."""

    recipe: str
    tower: TowerShape = TowerShape()
    world: WorldSpec = Field(default_factory=lambda: WorldSpec.model_validate({}))
    augmentation: Augmentation = Augmentation()
    resolutions: Annotated[tuple[Stage, ...], Field(min_length=1)] = (Stage(size=64, share=1.0),)
    seed: int = Field(0, ge=0)
    images: int = Field(57600, ge=1)  # seen in all
    batch: int = Field(128, ge=2)
    optimiser: Literal["lamb", "adamw"] = "adamw"
    rate: float = Field(1e-3, gt=0)  # at its highest
    warmup: int = Field(30, ge=0)  # steps
    decay: float = Field(0.05, ge=0)
    clip: float = Field(1.0, gt=0)
    device: str = "auto"
    keep_every: float = Field(45.0, gt=0)  # seconds between checkpoints
    log_every: int = Field(5, ge=1)  # steps

    @property
    def steps(self) -> int:
        return max(1, self.images // self.batch)

    @model_validator(mode="after")
    def _fits(self) -> PretrainSpec:
        if abs(sum(stage.share for stage in self.resolutions) - 1) > 1e-6:
            raise ValueError("the shares of the resolutions must add up to 1")
        for stage in self.resolutions:
            self.whole_patches(stage.size)
        if self.batch > self.world.pool:
            raise ValueError(f"a batch of {self.batch} needs a pool of as many scenes, not {self.world.pool}")
        return self

    def whole_patches(self, size: int) -> None:
        if size % self.tower.patch or size < 2 * self.tower.patch:
            raise ValueError(f"{size} pixels are not two or more whole patches of {self.tower.patch} pixels")

    def size_at(self, step: int) -> int:
        """Pixels a side at a step: small pictures come first."""
        part, passed = (step + 0.5) / self.steps, 0.0
        for stage in self.resolutions:
            passed += stage.share
            if part < passed:
                return stage.size
        return self.resolutions[-1].size


class ContrastiveSpec(PretrainSpec):
    """Pictures and captions find each other in the batch (PE, section 2.1).

    `mask_share` of the batch is seen once more with `mask_ratio` of its patches hidden; 0 leaves that out.
    """

    name: ClassVar[str] = "contrastive"
    text: TextShape = TextShape()
    highest_scale: float = Field(100.0, gt=1)
    mask_share: float = Field(1 / 16, ge=0, le=1)
    mask_ratio: float = Field(0.4, gt=0, lt=1)

    @model_validator(mode="after")
    def _projects(self) -> ContrastiveSpec:
        if self.tower.embed is None:
            raise ValueError("tower.embed is needed: captions are compared with projected pictures")
        return self


class AutoregressiveSpec(PretrainSpec):
    """The next patch and the words of the caption, from a prefix of patches (AIMv2, arXiv 2411.14402, section 3).

    `pixels` weighs the loss of patches, `words` that of captions; 0 leaves one out.
    """

    name: ClassVar[str] = "autoregressive"
    decoder_depth: int = Field(2, ge=1)
    context: int = Field(48, ge=3)  # tokens of a caption
    pixels: float = Field(1.0, ge=0)
    words: float = Field(1.0, ge=0)


class SelfDistillationSpec(PretrainSpec):
    """What a slow copy says of another view (DINO, arXiv 2104.14294), and of hidden patches (iBOT, arXiv 2111.07832).

    Crops are shares of the area. `hidden_share` of the large views have `hidden_ratio` of their patches hidden, which
    the student tells from the rest with weight `patches`; 0 leaves that out.
    """

    name: ClassVar[str] = "self-distillation"
    prototypes: int = Field(512, ge=2)
    large: tuple[float, float] = (0.4, 1.0)
    small: tuple[float, float] = (0.1, 0.4)
    small_size: int = Field(24, ge=8)  # pixels a side
    small_views: int = Field(2, ge=0)
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: float = Field(0.04, gt=0)
    momentum: float = Field(0.99, ge=0, lt=1)  # of the teacher at first; 1 in the end
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    patches: float = Field(1.0, ge=0)
    hidden_share: float = Field(0.5, ge=0, le=1)
    hidden_ratio: float = Field(0.3, gt=0, lt=1)

    @model_validator(mode="after")
    def _small_fits(self) -> SelfDistillationSpec:
        self.whole_patches(self.small_size)
        return self


SPECS: dict[str, type[PretrainSpec]] = {
    spec.name: spec for spec in (ContrastiveSpec, AutoregressiveSpec, SelfDistillationSpec)
}


def spec_of(settings: dict[str, Any], others: tuple[str, ...] = ()) -> PretrainSpec:
    """The spec of settings whose `recipe` is `vision/NAME`. Raises `SpecError`, which may suggest `others`."""
    name = str(settings.get("recipe", "")).removeprefix("vision/")
    if name not in SPECS:
        raise SpecError(
            str(UnknownNameError("recipe", f"vision/{name}", [f"vision/{known}" for known in (*SPECS, *others)]))
        )
    return validated(SPECS[name], settings)
