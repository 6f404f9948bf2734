"""Attentive probe: a head of cross-attention on the frozen tokens of a layer, with a linear readout.

Perception Encoder (Bolya et al. 2025, section 3) reads classes with such a block. Here it is one layer of attention
without the network behind it (`attention`): what is read stays linear in the tokens that are attended to.

- Of a whole series the tokens are its P segments (a pooling `segmentsP`; any other one gives one token, and the head
  is linear). One learnt query looks at them.
- Of a dense task each step looks at the steps of its own series that rows tell of, of a causal task at those that are
  not later. Places count in multiples of the usual distance between steps. Steps without a target are no rows, and are
  not seen. Of a series with more than 128 rows each 128 in order look at each other.

Features are standardised over the training rows (and tokens), and brought to their principal axes, of which the first
256 are kept; axes are scaled by the fourth root of their variance. What is linear in the features stays so, and few
steps of training suffice. Targets have no part in this.

For every group there are as many heads as folds, each trained without the rows of its fold, and one that is trained on
all rows. All heads of all groups are trained together in float32 by Adam: the same first weights, rates, minibatches
and number of steps for each, and no head depends on another. The loss is the cross-entropy of classes or labels, or the
squared error of standardised values. Strengths are the steps at which training may stop: fewer regularise more, and
ties go to the fewest. What rows out of fold score at each of them chooses one for each group, and the head that is
trained on all rows answers for the test rows as it was at that step.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tsprobe.errors import DataError, SpecError
from tsprobe.metrics import Metric
from tsprobe.probes import attention, base, heads

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

STEPS = heads.STEPS  # at which training may stop
_KINDS = ("classification", "multilabel", "regression", "detection")
_BATCH, _BATCH_STEPS = 64, 256  # whole series of a minibatch, or steps of some series
_LONGEST = 128  # rows of a series that look at each other
# Rates of Adam. Those of maps from D features are divided by the root of D: the sum over features moves alike.
_RATE_OF_MAPS = 0.04
_RATES = {"place": 0.1, "place_value": 0.02, "query": 0.02, "last": 5e-3, "bias": 5e-3}
_AXES, _SAMPLE, _FLOOR = 256, 2048, 0.01  # axes kept, tokens that they are found from, added to their variances
_ROWS_AT_ONCE = 1024


def fit_predict(
    x: Float[Tensor, "G N PD"],
    target: base.Target,
    x_test: Float[Tensor, "G M PD"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    *,
    strengths: Sequence[float] | None = None,
) -> base.Readout:
    """Attentive readout of every group: probabilities of classes or labels, or values, `[G, M, K]`.

    A value or label that does not vary among the rows of a fit is predicted as it is there, and a class that is not
    there gets probability 0. First weights and minibatches follow from the folds.

    Raises DataError for features, targets or steps that cannot be used, SpecError for targets that are no classes,
    labels or values, an unfitting metric, or strengths that are no whole numbers.
    """
    if target.kind not in _KINDS:
        raise SpecError(f"the attentive probe reads {', '.join(_KINDS)} targets, not {target.kind}")
    grid = heads.stops_of(strengths, "attentive")
    problem = base.check(x, target, x_test, folds, metric)
    if x.shape[2] % target.tokens:
        raise DataError(f"features of width {x.shape[2]} are not {target.tokens} tokens side by side")
    parts = Part.both(target, x.shape[1], x_test.shape[1], x.device)
    goal = Goal.of(problem)
    seed = zlib.crc32(folds.cpu().numpy().tobytes())

    def solve(x: Tensor, x_test: Tensor) -> base.Solved:
        z, z_test = prepared(x, x_test, target.tokens)
        first, second = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
        trainer = Trainer(z, parts[0], goal, first)
        return heads.solved(
            problem,
            grid,
            trainer.train(grid, second),
            lambda rows, fit: trainer.predict(z, parts[0].among(rows), fit),
            lambda fit: trainer.predict(z_test, parts[1], fit),
        )

    (_, n, d), m, k, fits = x.shape, x_test.shape[1], target.width, problem.n_folds + 1
    columns = fits * attention.PARTS * (2 * attention.KEY + min(k, attention.VALUE) + 1)
    read = max(_BATCH * target.tokens, _BATCH_STEPS)
    return base.readout(
        problem,
        metric,
        grid,
        solve,
        group_bytes=4 * (2 * (n + m) * (d + len(grid) * k) + columns * (6 * read + 4 * d // target.tokens)),
        strongest_last=False,
        double=False,
    )


@dataclass(frozen=True)
class Part:
    """The rows of a split as a head reads them: `index [S, T]` of T rows of each of S series, -1 where it has fewer.

    Of a dense task also where the rows lie as seen from each other, and which may be seen (`attention.Steps`).
    """

    index: Int[Tensor, "S T"]
    offset: Int[Tensor, "S T T"] | None = None
    seen: Bool[Tensor, "S T T"] | None = None

    @classmethod
    def both(cls, target: base.Target, n: int, m: int, device: torch.device) -> tuple[Part, Part]:
        """Of n training and m test rows. Raises DataError where steps are missing or do not fit the rows."""
        steps = heads.steps_of(target, n, m, "attentive")
        if steps is None:
            return cls(torch.arange(n, device=device)[:, None]), cls(torch.arange(m, device=device)[:, None])
        indices = [_by_series(*(pair[i].cpu() for pair in (steps.series, steps.time))) for i in range(2)]
        unit = _distance(indices[0], steps.time[0].cpu())
        return cls._dense(indices[0], steps, 0, unit, device), cls._dense(indices[1], steps, 1, unit, device)

    @classmethod
    def _dense(cls, index: Tensor, steps: base.Steps, split: int, unit: float, device: torch.device) -> Part:
        time = steps.time[split].cpu()[index].double()
        apart = time[:, None, :] - time[:, :, None]
        seen = (index >= 0)[:, None, :] & ((apart <= 0) if steps.causal else torch.ones_like(apart, dtype=torch.bool))
        seen |= torch.eye(index.shape[1], dtype=torch.bool)
        offset = (apart / unit).round().clamp(-attention.REACH, attention.REACH).long()
        return cls(index.to(device), offset.to(device), seen.to(device))

    def among(self, rows: Bool[Tensor, " N"]) -> Part:
        """The series that have some of these rows."""
        return self.take(heads.having(self.index, rows))

    def take(self, series: Int[Tensor, " s"]) -> Part:
        return Part(self.index[series], *(None if a is None else a[series] for a in (self.offset, self.seen)))


def _by_series(series: Int[Tensor, " N"], time: Tensor) -> Int[Tensor, "S T"]:
    """Rows of each series in order of time."""
    order = torch.argsort(time, stable=True)
    order = order[torch.argsort(series[order], stable=True)]
    counts = series[order].unique_consecutive(return_counts=True)[1].tolist()
    pieces = [piece for rows in order.split(counts) for piece in rows.split(_LONGEST)]
    return pad_sequence(pieces, batch_first=True, padding_value=-1)


def _distance(index: Int[Tensor, "S T"], time: Tensor) -> float:
    """The median time between a step and the next one."""
    apart = time[index].double().diff()
    apart = apart[(index[:, 1:] >= 0) & (apart > 0)]
    return float(apart.median()) if len(apart) else 1.0


@dataclass(frozen=True)
class Goal:
    """What the F fits learn: `y [N, K]`, and `weight [F, N, K]`, which is 0 for what a fit must not see.

    Values are standardised, `mean + std y` with the numbers `[F, K]` of each fit. `bias [F, K]` is the output of a fit
    that knows nothing of the features.
    """

    kind: str
    y: Float[Tensor, "N K"]
    weight: Float[Tensor, "F N K"]
    bias: Float[Tensor, "F K"]
    mean: Float[Tensor, "F K"]
    std: Float[Tensor, "F K"]

    @classmethod
    def of(cls, problem: base.Problem) -> Goal:
        everything = torch.ones_like(problem.folds, dtype=torch.bool)
        fits = torch.stack([*problem.training_rows(), everything])
        y, weight = problem.y, (fits[:, :, None] & problem.known).double()
        count = weight.sum(1)
        mean = torch.where(count > 0, (weight * y).sum(1) / count.clamp(min=1), problem.fallback)
        std = ((weight * (y - mean[:, None]).square()).sum(1) / count.clamp(min=1)).sqrt()
        kind = problem.target.kind
        if kind == "classification":
            bias = torch.where(mean > 0, mean.log(), attention.NEVER)
        else:
            varies = std > 1e-12 * y.abs().amax(0)  # else rounding of a constant
            weight = weight * varies[:, None]
            bias = mean.logit(1e-9) if kind == "multilabel" else torch.zeros_like(mean)
            std = torch.where(varies, std, 0)
        return cls(kind, y, weight.float(), bias.float(), mean, std)

    def loss(self, out: Float[Tensor, "G F n K"], rows: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Sum over groups and fits of the mean over the rows, -1 for none, that a fit may see."""
        weight = self.weight[:, rows] * (rows >= 0)[:, None]
        y = self.y[rows]
        if self.kind == "classification":
            each = -y.float() * out.log_softmax(-1).clamp(min=attention.NEVER)
        elif self.kind == "multilabel":
            each = F.binary_cross_entropy_with_logits(out, y.float().expand_as(out), reduction="none")
        else:
            standard = (y - self.mean[:, None]) / torch.where(self.std > 0, self.std, 1)[:, None]
            each = (out - standard.float()).square() / 2
        return ((each * weight).sum((2, 3)) / weight.sum((1, 2)).clamp(min=1)).sum()

    def prediction(self, out: Float[Tensor, "G n K"], fit: int) -> Float[Tensor, "G n K"]:
        out = out.double()
        if self.kind == "classification":
            return out.softmax(-1)
        return out.sigmoid() if self.kind == "multilabel" else self.mean[fit] + self.std[fit] * out


class Trainer:
    """Heads for all groups and fits, and the training rows `z [G, N, P, D]` that they learn from."""

    def __init__(self, z: Float[Tensor, "G N P D"], part: Part, goal: Goal, generator: torch.Generator) -> None:
        self._z, self._part, self._goal = z, part, goal
        (groups, _, tokens, d), bias = z.shape, goal.bias
        self._head = (
            attention.Tokens(groups, d, tokens, bias, generator)
            if part.offset is None
            else attention.Steps(groups, d, bias, generator)
        )

    def train(self, stops: Sequence[float], generator: torch.Generator) -> Iterator[int]:
        """Learn, and give the number of steps taken at each of `stops`."""
        (series, rows), d = self._part.index.shape, self._z.shape[-1]
        rates = {name: _RATES.get(name, _RATE_OF_MAPS * d**-0.5) for name in self._head.weights}
        weights = [{"params": [w], "lr": rates[name]} for name, w in self._head.weights.items()]
        size = min(series, _BATCH if self._part.offset is None else max(1, _BATCH_STEPS // rows))

        def loss(at: Tensor) -> Tensor:
            part = self._part.take(at.to(self._z.device))
            return self._goal.loss(self._read(self._z, part), part.index.flatten())

        yield from heads.trained(weights, loss, base.minibatches(series, size, generator), stops)

    def predict(self, z: Float[Tensor, "G m P D"], part: Part, fit: int) -> Float[Tensor, "G m K"]:
        """What one fit predicts for the rows of a part; 0 for others."""
        return heads.predicted(
            z, part, self._goal, fit, lambda here: self._read(z, here, slice(fit, fit + 1)), _ROWS_AT_ONCE
        )

    def _read(self, z: Float[Tensor, "G m P D"], part: Part, fits: slice = slice(None)) -> Float[Tensor, "G f n K"]:
        """Outputs for the rows of a part, in the order of its index."""
        tokens = z[:, part.index.flatten()]  # the last row stands in where there is none, and is not seen
        if isinstance(self._head, attention.Tokens):
            return self._head(tokens, fits)
        assert part.offset is not None  # of a dense task
        assert part.seen is not None
        tokens = tokens.view(len(z), *part.index.shape, -1)
        return self._head(tokens, part.offset, part.seen, fits).flatten(2, 3)


def prepared(
    x: Float[Tensor, "G N PD"], x_test: Float[Tensor, "G M PD"], tokens: int
) -> tuple[Float[Tensor, "G N P R"], Float[Tensor, "G M P R"]]:
    """Tokens in float32 on R scaled principal axes of the training rows; in float64 before that, a group at a time."""
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for groups in zip(x, x_test.to(x.device), strict=True):
        train, test = (part.unflatten(1, (tokens, -1)).flatten(0, 1)[None] for part in groups)
        scale = base.Standardiser.fit(train.double())
        few = torch.linspace(0, train.shape[1] - 1, min(train.shape[1], _SAMPLE)).round().long()
        sample = scale(train[:, few.to(x.device)].double())
        gram = base.gram_eigen(sample)
        values, vectors = gram.values[:, -_AXES:], gram.vectors[:, :, -_AXES:]
        if not gram.primal:
            vectors = sample.mT @ vectors / values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()[:, None]
        axes = vectors * (values / sample.shape[1] + _FLOOR)[:, None] ** -0.25
        for to, part in zip(found, (train, test), strict=True):
            moved = [(scale(some.double()) @ axes)[0].float() for some in part.split(_SAMPLE, 1)]
            to.append(torch.cat(moved).unflatten(0, (-1, tokens)))
    return torch.stack(found[0]), torch.stack(found[1])
