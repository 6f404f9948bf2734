"""The recipes: what a student's final tokens are compared with.

| recipe | teacher |
|---|---|
| dense | a frozen layer of the encoder itself, and the segments of generated series (PE, section 5.2) |
| joint | several frozen layers at once, each through a linear map of its own that is thrown away |
| labels | classes of the user's tasks, by supervised contrast of pooled tokens (Khosla et al. 2020) |
| state | latent state of generated processes, by masked regression from pooled tokens |
| language | answers to questions, in words, by a decoder that reads the tokens (`words.py`) |

Tokens of student and teacher are standardised, channel by channel, with fixed statistics of the final layer and of the
teacher's layer before tuning: where a few channels are far larger than the others, cosines would see these alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tsprobe.alignment import losses
from tsprobe.alignment.series import Lesson, grid_maps, membership
from tsprobe.capture.hooks import layer_tokens
from tsprobe.errors import EncoderError
from tsprobe.pooling import Slots, pool

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tsprobe.encoders.base import Encoder
    from tsprobe.tasks.base import Task
    from tsprobe.types import Inputs


_MEAN = Slots.parse(("mean",))
_PAIRED = 256  # tokens of a series that are compared with each other, evenly spaced: pairs grow with the square


@dataclass(frozen=True)
class Recipe:
    """What a recipe is, for lists; `labelled` ones learn from tasks, the others from a layer."""

    description: str
    labelled: bool = False


RECIPES = {
    "dense": Recipe("agreement with a hidden layer under masking, and with segments of generated series"),
    "joint": Recipe("agreement with several hidden layers at once, each through its own linear map"),
    "labels": Recipe("supervised contrast of the classes of your own tasks", labelled=True),
    "state": Recipe("regression of the latent state of generated processes", labelled=True),
    "language": Recipe("answers in words by a language model that reads the output", labelled=True),
}


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each channel of a layer's real tokens.

    A channel of the teacher that does not vary teaches nothing. One of the student's may come to carry something: it is
    given the deviation of the others.
    """

    mean: Float[Tensor, " D"]
    deviation: Float[Tensor, " D"]

    @classmethod
    def of(cls, tokens: Float[Tensor, "n D"], *, student: bool = False) -> Scaling:
        deviation = tokens.std(0, correction=0)
        varies = deviation > 1e-6 * (1 + tokens.abs().amax(0))
        otherwise = (
            deviation[varies].mean() if student and bool(varies.any()) else torch.tensor(1.0 if student else torch.inf)
        )
        return cls(tokens.mean(0), torch.where(varies, deviation, otherwise.to(deviation)))

    def __call__(self, x: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
        return (x - self.mean) / self.deviation


class Layers(nn.Module):
    """`dense` and `joint`: agreement with frozen layers."""

    def __init__(self, encoder: Encoder, layers: tuple[str, ...], lessons: list[Lesson], *, locality: float) -> None:
        super().__init__()
        self.encoder, self.layers, self.weight = encoder, layers, locality
        final = encoder.final_of_steps
        tokens = [self._read(encoder.prepare(lesson.batch.to(encoder.device)), (*layers, final)) for lesson in lessons]
        real = {name: torch.cat([parts[name][0][parts[name][1]] for parts in tokens]) for name in tokens[0]}
        self.scaling = {name: Scaling.of(real[name]) for name in layers}
        self.own = Scaling.of(real[final], student=True)
        width = len(self.own.mean)
        widths = {name: len(self.scaling[name].mean) for name in layers}
        linear = [name for name in layers if len(layers) > 1 or widths[name] != width]
        # slots: with several teachers, or one of another width, what is asked for is a linear map away
        self.maps = nn.ModuleDict({name.replace(".", "_"): nn.Linear(width, widths[name]) for name in linear})

    def _read(self, inputs: Inputs, names: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
        with torch.no_grad():
            found = layer_tokens(self.encoder, inputs, names)
        return {name: (found[name], inputs.tokens_of(name).mask) for name in names}

    def forward(self, student: Float[Tensor, "R T D"], inputs: Inputs, lesson: Lesson) -> dict[str, Tensor]:
        final = self.encoder.final_of_steps
        real = inputs.tokens_of(final).mask
        scaled = self.own(student)
        parts: dict[str, Tensor] = {}
        for name, (teacher, mask) in self._read(inputs, self.layers).items():
            if teacher.shape[:2] != student.shape[:2] or not torch.equal(mask, real):
                raise EncoderError(
                    f"{self.encoder.name}: layer {name} has {teacher.shape[1]} tokens and {final} "
                    f"{student.shape[1]}; a teacher needs the tokens of the final layer"
                )
            key = name.replace(".", "_")
            mine = self.maps[key](scaled) if key in self.maps else scaled
            parts[f"core {name}"] = losses.core(mine, self.scaling[name](teacher), real) / len(self.layers)
        belongs = self._belongs(inputs, lesson) if self.weight else None
        if belongs is not None:
            every = -(-student.shape[1] // _PAIRED)
            few = slice(every // 2, None, every)
            parts["locality"] = self.weight * losses.locality(scaled[:, few], belongs[:, few], real[:, few])
        return parts

    def _belongs(self, inputs: Inputs, lesson: Lesson) -> Float[Tensor, "R T M"] | None:
        """How much of each token lies in each part; None where no parts are known."""
        tokens, device = inputs.tokens_of(self.encoder.final_of_steps), self.encoder.device
        if lesson.maps is not None:
            return grid_maps(lesson.maps.to(device), tokens)
        if lesson.segments is not None:
            return membership(lesson.segments.to(device), tokens, inputs.rows)
        return None


class Targets(nn.Module):
    """`labels` and `state`: targets of whole series, from the mean of the final tokens."""

    def __init__(self, encoder: Encoder, tasks: list[Task], width: int) -> None:
        super().__init__()
        self.final = encoder.final_of_steps
        self.names = [task.name for task in tasks]
        self.regressions = nn.ModuleDict()
        self.scaling: dict[int, tuple[Tensor, Tensor]] = {}
        for i, task in enumerate(tasks):
            if task.kind == "classification":
                continue
            y = torch.from_numpy(task.y_train).float()
            known = ~y.isnan()
            mean = torch.where(known, y, 0).sum(0) / known.sum(0)
            spread = (torch.where(known, y - mean, 0).square().sum(0) / known.sum(0)).sqrt().clamp(min=1e-6)
            self.scaling[i] = mean, spread
            self.regressions[str(i)] = nn.Linear(width, y.shape[1])

    def forward(self, student: Float[Tensor, "R T D"], inputs: Inputs, lesson: Lesson) -> dict[str, Tensor]:
        assert lesson.targets is not None
        pooled = pool(student, inputs.tokens_of(self.final), _MEAN)[0][:, 0]  # [R, D]
        pooled = pooled.unflatten(0, (-1, inputs.rows)).mean(1)  # [B, D]: channels together
        y, name = lesson.targets.to(pooled.device), self.names[lesson.task]
        if lesson.task not in self.scaling:
            return {name: losses.supervised_contrastive(pooled, y)}
        mean, spread = (t.to(pooled.device) for t in self.scaling[lesson.task])
        prediction = self.regressions[str(lesson.task)](pooled)
        return {name: losses.masked_regression(prediction, (y.float() - mean) / spread)}
