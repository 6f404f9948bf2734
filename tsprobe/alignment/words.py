"""The language recipe: final tokens are read by a causal language model, and learn to say what it is asked.

Perception Encoder, section 4.1: the encoder, whole or cut at a layer, a projector of two layers and a decoder; the
projector learns first, alone, then all learn together from the likelihood of the answers, and nothing else. In the end
the encoder is taken out. The small decoder, which has no language of its own yet, learns with the projector from the
first step; a pretrained one stays as it is (PE's ablation, table 9, gains 0.3 of 78.1 by training it too).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tsprobe.capture.hooks import layer_tokens
from tsprobe.errors import SpecError
from tsprobe.pooling import Slots, pool
from tsprobe.probes.language import Decoder, Reader, Texts, tiny_decoder
from tsprobe.probes.pretrained import load_decoder

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tsprobe.alignment.series import Lesson
    from tsprobe.data.text import Question
    from tsprobe.encoders.base import Encoder
    from tsprobe.tasks.base import Task
    from tsprobe.types import Inputs

SEGMENTS = 16  # soft tokens that the decoder reads, as in studies with segments16
TINY = "tiny"
_SLOTS = Slots.parse((f"segments{SEGMENTS}",))


class Words(nn.Module):
    """Minus the mean log-likelihood of the words of the answers. While `waits`, no gradient reaches the encoder.

    Raises `SpecError` for a task without questions.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, encoder: Encoder, tasks: list[Task], lessons: list[Lesson], *, decoder: str, seed: int) -> None:
        super().__init__()
        self.final, self.waits = encoder.final_of_steps, False
        self.names = [task.name for task in tasks]
        self.questions = [_questions(task) for task in tasks]
        seen = torch.cat([self._segments(*self._read(encoder, lesson), lesson) for lesson in lessons])  # [n, P, D]
        spread = seen.flatten(0, 1).std(0)
        self.register_buffer("mean", seen.flatten(0, 1).mean(0))
        self.register_buffer("spread", torch.where(spread > 1e-6, spread, 1.0))
        first, second = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
        every = [question for part in self.questions for question in part]
        speaker: Decoder = (
            tiny_decoder(every, SEGMENTS, 1, first) if decoder == TINY else load_decoder(decoder, seen.device)
        )
        self.reader = Reader(seen[None], speaker, second)
        self.weights = nn.ParameterDict(
            {name.replace(".", "_"): nn.Parameter(weight.detach()) for name, weight in self.reader.weights.items()}
        )
        self.reader.weights = {name: self.weights[name.replace(".", "_")] for name in self.reader.weights}
        speaker.weights = self.reader.weights

    def _read(self, encoder: Encoder, lesson: Lesson) -> tuple[Float[Tensor, "R T D"], Inputs]:
        with torch.no_grad():
            inputs = encoder.prepare(lesson.batch.to(encoder.device))
            return layer_tokens(encoder, inputs, [self.final])[self.final], inputs

    def _segments(self, tokens: Float[Tensor, "R T D"], inputs: Inputs, lesson: Lesson) -> Float[Tensor, "B P D"]:
        """Means of equal parts of each series, of its channels together."""
        borders = lesson.batch.lengths[:, None] * torch.linspace(0, 1, SEGMENTS + 1)
        borders = borders.to(tokens.device).repeat_interleave(inputs.rows, 0)
        pooled, _ = pool(tokens, inputs.tokens_of(self.final), _SLOTS, borders)
        return pooled.unflatten(0, (-1, inputs.rows)).mean(1)

    def forward(self, student: Float[Tensor, "R T D"], inputs: Inputs, lesson: Lesson) -> dict[str, Tensor]:
        assert lesson.rows is not None
        tokens = self._segments(student.detach() if self.waits else student, inputs, lesson)
        asked = [self.questions[lesson.task][row] for row in lesson.rows.tolist()]
        texts = Texts.of(self.reader.decoder, [(q.question, q.answer_texts[0]) for q in asked])
        said = self.reader.likelihood(((tokens - self.mean) / self.spread)[None], texts)
        return {self.names[lesson.task]: -said.sum() / int(texts.answer.sum())}


def _questions(task: Task) -> tuple[Question, ...]:
    if task.asked is None:
        raise SpecError(f"the recipe language learns from questions; {task.name} is a {task.kind} task without any")
    return task.asked.train
