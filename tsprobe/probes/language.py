"""Questions answered in words: a causal language model reads a layer's features as soft tokens before the question.

A projector of two layers turns each of the P tokens of a sample, side by side in x, into an embedding of the decoder
(LLaVA-1.5, Liu et al. 2024, section 3.2; the encoder is frozen, and nobody sees the series but through it):

    tokens = W2 gelu(W1 z + b1) + b2,    sequence: tokens, question, answer

with z the features, standardised a dimension at a time over training samples and tokens. A pooling of K segments gives
K tokens, any other one. The answer's words are predicted, and the loss is minus their mean log-likelihood.

Projector and decoder (`decoder.TinyDecoder`, over the words of the training questions) are trained for all groups
together: one step of the optimiser for all, the same first weights, batches and budget for each, gradients clipped a
group at a time, so that no group depends on which others there are. One fold of the training rows is held out.
Strengths are the steps at which training may stop: a group keeps the weights of the step at which it answers the
held-out questions best, and its inner score is that one.

Answers are given by the likelihood of the choices of a question; short answers, spans, boxes and captions word by
word, the most likely one at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tsprobe.data.text import Asked, Question, Vocabulary, normal, numbered, read_box, read_span
from tsprobe.errors import DataError, SpecError
from tsprobe.metrics import Metric
from tsprobe.probes import base
from tsprobe.probes.decoder import TinyDecoder

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

STEPS = (100, 200, 300)  # at which training may stop
_RATE, _WARM, _CLIP = 2e-3, 50, 1.0
_CHUNK = 1 << 14  # words of all groups that are read at once where nothing is learnt
_NO_CHOICE = -1e9  # log-likelihood of a choice that a question does not have


class Decoder(Protocol):
    """A causal language model for each of G groups, or one for all. `weights` are those that are trained."""

    weights: dict[str, Tensor]
    batch: int  # questions of a step

    @property
    def width(self) -> int: ...

    @property
    def scale(self) -> float: ...

    @property
    def end(self) -> int: ...

    def prompt(self, question: str) -> list[int]: ...

    def answer(self, text: str) -> list[int]: ...

    def text(self, numbers: Sequence[int]) -> str: ...

    def embed(self, ids: Int[Tensor, "#G B T"]) -> Float[Tensor, "#G B T E"]: ...

    def logits(self, x: Float[Tensor, "G B T E"], at: Int[Tensor, "B A"]) -> Float[Tensor, "G B A V"]: ...


def fit_predict(
    x: Float[Tensor, "G N PD"],
    target: base.Target,
    x_test: Float[Tensor, "G M PD"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    *,
    strengths: Sequence[float] | None = None,
    decoder: Callable[[torch.device], Decoder] | None = None,
) -> base.Readout:
    """Answers of every group: log-likelihoods of the choices `[G, M, C]`; the number of the answer among the texts of
    the task, -1 for any other, `[G, M, 1]`; the borders of a span, `[G, M, 2]`; the sides of a box, `[G, M, 4]`; or
    the words of a caption by number, and then zeros, `[G, M, K]`. `decoder` gives another decoder.

    Raises DataError for features or questions that cannot be used, SpecError for targets that are no questions, an
    unfitting metric, or steps that are no whole numbers.
    """
    asked = target.asked
    if asked is None:
        raise SpecError(f"the language probe needs questions, not {target.kind} targets; take ridge")
    grid = tuple(sorted(set(base.check_strengths(strengths, STEPS))))
    if any(s != int(s) for s in grid):
        raise SpecError(f"strengths {grid} of the language probe are steps of training: give whole numbers")
    base.check_metric(target, metric)
    base.check_features(x, x_test)
    if len(asked.train) != x.shape[1] or len(asked.test) != x_test.shape[1]:
        raise DataError(
            f"{len(asked.train)} and {len(asked.test)} questions for {x.shape[1]} and {x_test.shape[1]} rows"
        )
    folds, n_folds = base.check_folds(folds, x.shape[1])
    held = folds == n_folds - 1
    z, z_test = _standardised(x, x_test, (~held).to(x.device), target.tokens)

    # words, projectors and batches are drawn apart: what is drawn of one does not depend on the size of another
    first, second, third = (
        torch.Generator().manual_seed(3 * zlib.crc32(folds.numpy().tobytes()) + i) for i in range(3)
    )
    every = [*asked.train, *asked.test]
    speaker = tiny_decoder(every, target.tokens, len(x), first, asked.train) if decoder is None else decoder(x.device)
    reader = Reader(z, speaker, second)
    answer = _answering(reader, target, asked)
    learnt, tried = (
        [q for q, is_held in zip(asked.train, held.tolist(), strict=True) if is_held == part] for part in (False, True)
    )
    scores = torch.empty(len(x), len(grid), dtype=torch.float64)
    best = {name: weight.detach().clone() for name, weight in reader.weights.items()}
    stops = reader.train(z[:, (~held).to(x.device)], learnt, [int(s) for s in grid], third)
    for a, _ in enumerate(stops):
        scores[:, a] = metric(target.y.cpu()[held], answer(z[:, held.to(x.device)], tried))
        better = (scores[:, a] > scores[:, :a].amax(1)) if a else torch.ones(len(x), dtype=torch.bool)
        for name, weight in reader.weights.items():
            best[name][better] = weight.detach()[better]
    reader.load(best)
    chosen = base.choose(scores, grid, metric.name, strongest_last=False)
    return base.Readout(grid, scores, chosen, answer(z_test, asked.test).to(x.dtype))


def _standardised(x: Tensor, x_test: Tensor, rows: Bool[Tensor, " N"], tokens: int) -> tuple[Tensor, Tensor]:
    """`[G, N, P, D]` and `[G, M, P, D]` in float32, by what the training rows named are like."""
    if x.shape[2] % tokens:
        raise DataError(f"features of width {x.shape[2]} are not {tokens} tokens side by side")
    parts = [part.unflatten(2, (tokens, -1)) for part in (x, x_test.to(x.device))]
    z, z_test = (torch.empty(part.shape, dtype=torch.float32, device=x.device) for part in parts)
    for g in range(len(x)):  # in float64, a group at a time
        scale = base.Standardiser.fit(parts[0][g : g + 1, rows].flatten(1, 2).double())
        for to, part in zip((z, z_test), parts, strict=True):
            to[g] = scale(part[g : g + 1].flatten(1, 2).double()).view(to[g].shape)
    return z, z_test


def tiny_decoder(
    questions: Sequence[Question],
    tokens: int,
    groups: int,
    generator: torch.Generator,
    learnt: Sequence[Question] | None = None,
) -> TinyDecoder:
    """One that holds so many soft tokens and any of the questions; its words are those of the ones that are learnt."""
    texts = [text for q in learnt or questions for text in (q.question, *q.answer_texts, *(q.choices or ()))]
    vocabulary = Vocabulary(texts)
    longest = max(len(vocabulary.prompt(q.question)) for q in questions)
    answers = [text for q in questions for text in (*(q.choices or ()), *q.answer_texts)]
    return TinyDecoder(groups, vocabulary, tokens + longest + max(map(len, map(vocabulary.answer, answers))), generator)


@dataclass(frozen=True)
class Texts:
    """Numbers of words `[n, T]`: a prompt, then an answer, then nothing. `prompt [n]` and `answer [n]` count them."""

    ids: Int[Tensor, "n T"]
    prompt: Int[Tensor, " n"]
    answer: Int[Tensor, " n"]

    @classmethod
    def of(cls, decoder: Decoder, pairs: Sequence[tuple[str, str | None]]) -> Texts:
        """Of pairs of question and answer; None for an answer that is to come. Raises DataError for an empty one."""
        prompts = [decoder.prompt(question) for question, _ in pairs]
        answers = [[] if text is None else decoder.answer(text) for _, text in pairs]
        empty = next(
            (text for (_, text), ids in zip(pairs, answers, strict=True) if text is not None and not ids), None
        )
        if empty is not None:
            raise DataError(f"the answer {empty!r} has no words for the decoder")
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        ids = torch.zeros(len(pairs), max(lengths), dtype=torch.long)
        for row, p, a in zip(ids, prompts, answers, strict=True):
            row[: len(p) + len(a)] = torch.tensor(p + a)
        return cls(ids, torch.tensor([len(p) for p in prompts]), torch.tensor([len(a) for a in answers]))

    def take(self, rows: Tensor) -> Texts:
        prompt, answer = self.prompt[rows], self.answer[rows]
        return Texts(self.ids[rows, : int((prompt + answer).max())], prompt, answer)

    def places(self) -> tuple[Tensor, Tensor]:
        """Of the words of the answers `[n, A]`, and which of them there are."""
        step = torch.arange(int(self.answer.max()))
        real = step < self.answer[:, None]
        return torch.where(real, self.prompt[:, None] + step, 0), real


class Reader:
    """Projectors and decoders of G groups, whose features are like `z [G, N, P, D]`."""

    def __init__(self, z: Float[Tensor, "G N P D"], decoder: Decoder, generator: torch.Generator) -> None:
        groups, _, self._tokens, d = z.shape
        self.decoder, e = decoder, decoder.width

        def drawn(*size: int) -> Tensor:
            return torch.randn(size, generator=generator) / math.sqrt(size[-2])

        projector = {
            "project.in": drawn(d, 2 * e), "project.in_bias": torch.zeros(1, 2 * e),
            "project.out": decoder.scale * drawn(2 * e, e), "project.out_bias": torch.zeros(1, e),
        }  # fmt: skip
        weights = {name: w.expand(groups, *w.shape) for name, w in projector.items()} | decoder.weights
        self.weights = {name: w.detach().to(z.device, copy=True).requires_grad_() for name, w in weights.items()}
        decoder.weights = self.weights

    def load(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(weights[name])

    def _embed(self, z: Float[Tensor, "G b P D"], ids: Int[Tensor, "#G b T"]) -> Float[Tensor, "G b PT E"]:
        g, b, p, _ = z.shape
        w = self.weights
        hidden = F.gelu(torch.baddbmm(w["project.in_bias"], z.flatten(1, 2), w["project.in"]))
        soft = torch.baddbmm(w["project.out_bias"], hidden, w["project.out"]).view(g, b, p, -1)
        return torch.cat([soft, self.decoder.embed(ids).expand(g, -1, -1, -1)], 2)

    def likelihood(self, z: Float[Tensor, "G b P D"], texts: Texts) -> Float[Tensor, "G b"]:
        """Log-likelihood of the answers."""
        places, real = texts.places()
        logits = self.decoder.logits(self._embed(z, texts.ids[None]), places - 1 + self._tokens)
        words = texts.ids.gather(1, places).to(z.device)[None, :, :, None].expand(len(z), -1, -1, -1)
        said = logits.log_softmax(-1).gather(-1, words)[..., 0]
        return (said * real.to(z.device)).sum(-1)

    def train(
        self,
        z: Float[Tensor, "G n P D"],
        questions: Sequence[Question],
        stops: Sequence[int],
        generator: torch.Generator,
    ) -> Iterator[int]:
        """Learn from questions with their answers, and give the number of steps taken at each of `stops`.

        Of a caption the references are learnt in turn, one a pass over the questions.
        """
        texts = Texts.of(self.decoder, [(q.question, text) for q in questions for text in q.answer_texts])
        count = torch.tensor([len(q.answer_texts) for q in questions])
        first = count.cumsum(0) - count
        weights = list(self.weights.values())
        optimiser = torch.optim.AdamW(weights, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        slower = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda s: min(1.0, (s + 1) / _WARM) * (1 - 0.9 * s / stops[-1])
        )
        size = min(self.decoder.batch, len(questions))
        rows = base.minibatches(len(questions), size, generator)
        for step, batch in zip(range(1, stops[-1] + 1), rows, strict=False):
            passes = (step - 1) // (len(questions) // size)
            part = texts.take(first[batch] + (batch + passes) % count[batch])
            loss = -self.likelihood(z[:, batch.to(z.device)], part).sum(1) / int(part.answer.sum())
            optimiser.zero_grad()
            loss.sum().backward()
            _clip(weights)
            optimiser.step()
            slower.step()
            if step in stops:
                yield step

    @torch.no_grad()
    def choose(self, z: Float[Tensor, "G m P D"], questions: Sequence[Question], width: int) -> Float[Tensor, "G m C"]:
        """Log-likelihood of each choice."""
        owner = [i for i, q in enumerate(questions) for _ in q.choices or ()]
        place = [c for q in questions for c, _ in enumerate(q.choices or ())]
        texts = Texts.of(self.decoder, [(q.question, text) for q in questions for text in q.choices or ()])
        found = z.new_full((len(z), len(questions), width), _NO_CHOICE)
        owners, places = torch.tensor(owner), torch.tensor(place)
        for rows in torch.arange(len(owner)).split(self._at_once(texts, len(z))):
            here = owners[rows].to(z.device)
            found[:, here, places[rows].to(z.device)] = self.likelihood(z[:, here], texts.take(rows))
        return found.cpu()

    @torch.no_grad()
    def answer(self, z: Float[Tensor, "G m P D"], questions: Sequence[Question], longest: int) -> list[list[str]]:
        """The answers of each group in words, of at most `longest` words."""
        texts = Texts.of(self.decoder, [(q.question, None) for q in questions])
        said = [
            self._say(z[:, rows.to(z.device)], texts.take(rows), longest)
            for rows in torch.arange(len(questions)).split(self._at_once(texts, len(z)))
        ]
        return [[self.decoder.text(row) for row in group] for group in torch.cat(said, 1).tolist()]

    def _say(self, z: Float[Tensor, "G b P D"], texts: Texts, longest: int) -> Int[Tensor, "G b A"]:
        g, b = len(z), len(texts.ids)
        ids = F.pad(texts.ids, (0, longest)).expand(g, -1, -1).clone()
        said = torch.full((g, b, longest), self.decoder.end)
        open_ = torch.ones(g, b, dtype=torch.bool)
        for step in range(longest):
            at = texts.prompt + step
            logits = self.decoder.logits(self._embed(z, ids[:, :, : int(at.max())]), (at - 1 + self._tokens)[:, None])
            word = logits[:, :, 0].argmax(-1).cpu()
            said[:, :, step] = word
            ids.scatter_(2, at[None, :, None].expand(g, -1, -1), word[..., None])
            open_ &= word != self.decoder.end
            if not open_.any():
                break
        return said

    def _at_once(self, texts: Texts, groups: int) -> int:
        return max(1, _CHUNK // (groups * (self._tokens + texts.ids.shape[1])))


def _answering(reader: Reader, target: base.Target, asked: Asked) -> Callable[[Tensor, Sequence[Question]], Tensor]:
    """How questions of the target's kind are answered, as a function of features and questions."""
    if target.kind == "choice":
        width = max(len(q.choices or ()) for q in (*asked.train, *asked.test))
        return lambda z, questions: reader.choose(z, questions, width)
    longest = max(len(reader.decoder.answer(text)) for q in asked.train for text in q.answer_texts)
    if target.kind in ("grounding", "box"):
        read = read_span if target.kind == "grounding" else read_box
        return lambda z, questions: torch.tensor(
            [[read(text) for text in said] for said in reader.answer(z, questions, longest)], dtype=torch.float64
        )
    if target.kind == "caption":
        known = {word: i for i, word in enumerate(asked.answers, 1)}
        words = max(len(normal(text).split()) for q in asked.train for text in q.answer_texts)
        return lambda z, questions: torch.tensor(
            [[_filled(numbered(text, known), words) for text in said] for said in reader.answer(z, questions, longest)],
            dtype=torch.float64,
        )
    number = {text: i for i, text in enumerate(asked.answers)}
    return lambda z, questions: torch.tensor(
        [[[number.get(normal(text), -1)] for text in said] for said in reader.answer(z, questions, longest)],
        dtype=torch.float64,
    )


def _filled(numbers: list[int], width: int) -> list[int]:
    """Cut, or filled up with zeros."""
    return numbers[:width] + [0] * (width - len(numbers))


def _clip(weights: Sequence[Tensor]) -> None:
    """Bring the gradient of each group to norm 1 at most."""
    gradients = [w.grad for w in weights if w.grad is not None]
    norm = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]).norm(dim=0)
    factor = (_CLIP / norm.clamp(min=1e-12)).clamp(max=1)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))
