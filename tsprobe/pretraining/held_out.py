"""Did it learn? A network on series that it never saw, against a predictor that learned nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tsprobe.diagnostics.measures import effective_rank
from tsprobe.encoders.zoo_model import ZooModel
from tsprobe.pretraining.corpus import Corpus
from tsprobe.pretraining.objectives.base import Objective, shown

if TYPE_CHECKING:
    from torch import Tensor

_FIRST = 10**9  # steps from here on are never trained on
_LENGTHS = (0.25, 0.5, 0.75, 1.0)  # of the longest series
_SIZE = 64


@torch.no_grad()
def examine(model: ZooModel, objective: Objective, corpus: Corpus, step: int) -> dict[str, Any]:
    """Means over 256 held-out series: the objective's own loss, the trivial predictor's, and the effective ranks.

    The ranks are those of the tokens and of their means, at `norm`, out of the width; and of what the head gives.
    """
    model.eval()
    totals: dict[str, float] = {"own": 0.0, "trivial": 0.0}
    tokens: list[Tensor] = []
    means: list[Tensor] = []
    heads: list[Tensor] = []
    patch, longest = corpus.patch, corpus.lengths[-1]
    for i, part in enumerate(_LENGTHS):
        series = corpus.batch(_FIRST + i, _SIZE, max(2 * patch, int(longest * part) // patch * patch))
        loss = objective.loss(model, series, corpus.generator(_FIRST + i, stream=1))
        for name, value in {"own": loss.own, "trivial": loss.trivial, **loss.parts}.items():
            totals[name] = totals.get(name, 0.0) + float(value) / len(_LENGTHS)
        values, observed = shown(model, series)
        seen = observed.any(-1)
        x = model.backbone(values, observed)
        assert model.head is not None
        y = model.head(x, seen)
        tokens.append(x[seen][::7])
        means.append((x * seen[..., None]).sum(1) / seen.sum(1, keepdim=True))
        heads.append(y.mean(1) if y.shape[1] == 1 else (y * seen[..., None]).sum(1) / seen.sum(1, keepdim=True))
    model.train()
    ranks = {"rank_tokens": tokens, "rank_means": means, "rank_head_means": heads}
    found = {name: effective_rank(torch.cat(parts).double()) for name, parts in ranks.items()}
    return {"step": step, **{k: round(v, 6) for k, v in totals.items()}, **{k: round(v, 2) for k, v in found.items()}}
