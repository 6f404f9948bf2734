"""Heads of cross-attention that read tokens or steps: one for each of G groups and F fits, side by side.

A head has H = 4 parts. Each has a query that looks at T tokens z, and takes from them a weighted mean of their values:

    a_t = softmax_t(score(z_t) + place_t),    out = bias + sum over parts of sum_t a_t value(z_t)

Scores, values and the learnt bias of a place are of each part. Scores and values are linear in the tokens. Values have
as many numbers as the output; where these are more than 8, they have 8, of which a last linear map makes the output.
Every weight has leading axes G and F, so that one product with the features and one step of an optimiser serve all
heads; all begin with the same numbers, and none depends on another.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

PARTS, KEY, VALUE = 4, 8, 8
REACH = 16  # places to either side that are told apart; what lies farther off is all at one place
NEVER = -1e9  # a logit
_SLOPES = (0.0, 0.125, 0.5, 2.0)  # of the parts: from one that looks everywhere to one that looks near, as in ALiBi


class Head:
    """What both kinds share. With nothing learnt yet, the output is `bias [F, K]`."""

    def __init__(self, groups: int, width: int, bias: Float[Tensor, "F K"], generator: torch.Generator) -> None:
        k = bias.shape[1]
        v = min(k, VALUE)
        one = self.first(width, v, k, generator)
        one["value"] = torch.zeros(width, PARTS * v)
        if k > VALUE:  # the last map is zero then, and values must not be
            one["value"] = torch.randn(width, PARTS * v, generator=generator) / math.sqrt(width)
            one["last"] = torch.zeros(PARTS * v, k)
        weights = {name: w.to(bias.device).expand(groups, len(bias), *w.shape) for name, w in one.items()}
        weights["bias"] = bias.expand(groups, -1, -1)
        self.weights = {name: w.clone().requires_grad_() for name, w in weights.items()}

    def first(self, width: int, v: int, k: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The weights of one head that only its kind has, for values of v numbers and an output of k."""
        raise NotImplementedError

    def of(self, fits: slice) -> dict[str, Tensor]:
        return {name: weight[:, fits] for name, weight in self.weights.items()}


class Tokens(Head):
    """Reads P tokens of a series, with one query for all series: query and keys are one vector of scores a part."""

    def __init__(
        self, groups: int, width: int, tokens: int, bias: Float[Tensor, "F K"], generator: torch.Generator
    ) -> None:
        self._tokens = tokens
        super().__init__(groups, width, bias, generator)

    def first(self, width: int, v: int, k: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "score": torch.randn(width, PARTS, generator=generator) / math.sqrt(width),
            "place": torch.zeros(self._tokens, PARTS),
            "place_value": torch.zeros(self._tokens, PARTS, v),  # so that the answer may be where a token is
        }

    def __call__(self, z: Float[Tensor, "G b P D"], fits: slice = slice(None)) -> Float[Tensor, "G f b K"]:
        w = self.of(fits)
        found = _columns(z, torch.cat([w["score"], w["value"]], -1))
        score = found[..., :PARTS] + w["place"].transpose(1, 2)[:, None]  # [G, b, P, f, H]
        value = found[..., PARTS:].unflatten(-1, (PARTS, -1)) + w["place_value"].transpose(1, 2)[:, None]
        attended = (score.softmax(2)[..., None] * value).sum(2).transpose(1, 2)  # [G, f, b, H, V]
        return _joined(attended, w) + w["bias"][:, :, None]


class Steps(Head):
    """Reads the steps of a series for each of them.

    The query is linear in the token of the step that is asked about, and places count from that step. A linear map of
    that token is added, as the residual path of a transformer block does.
    """

    def first(self, width: int, v: int, k: int, generator: torch.Generator) -> dict[str, Tensor]:
        apart = torch.arange(-REACH, REACH + 1).abs()
        return {
            "look": torch.randn(width, 2 * PARTS * KEY, generator=generator) / math.sqrt(width),  # queries and keys
            "query": torch.zeros(PARTS * KEY),
            "place": -torch.tensor(_SLOPES)[:, None] * apart,
            "own": torch.zeros(width, k),
        }

    def __call__(
        self,
        z: Float[Tensor, "G b T D"],
        offset: Int[Tensor, "b T T"],
        seen: Bool[Tensor, "b T T"],
        fits: slice = slice(None),
    ) -> Float[Tensor, "G f b T K"]:
        """For each of T steps of b series.

        `offset[:, i, j]`, within `REACH`, is where j lies as seen from i; `seen` says whether i may look at it, and is
        true for i itself.
        """
        b, t = z.shape[1:3]
        w = self.of(fits)
        k = w["own"].shape[-1]
        found = _columns(z, torch.cat([w["look"], w["value"], w["own"]], -1)).permute(0, 3, 1, 2, 4)
        query, key, value, own = found.split([PARTS * KEY, PARTS * KEY, w["value"].shape[-1], k], -1)
        query = query + w["query"][:, :, None, None]
        query, key, value = (x.unflatten(-1, (PARTS, -1)).transpose(3, 4) for x in (query, key, value))
        places = F.one_hot(offset + REACH, 2 * REACH + 1).to(z.dtype).flatten(0, 2)
        place = (w["place"] @ places.T).unflatten(-1, (b, t, t)).transpose(2, 3)  # indexing is slow to differentiate
        score = (query @ key.mT / math.sqrt(KEY) + place).masked_fill(~seen[:, None], NEVER)  # [G, f, b, H, T, T]
        attended = (score.softmax(-1) @ value).transpose(3, 4).flatten(2, 3)
        return _joined(attended, w).unflatten(2, (b, t)) + own + w["bias"][:, :, None, None]


def _columns(z: Float[Tensor, "G b T D"], w: Float[Tensor, "G f D C"]) -> Float[Tensor, "G b T f C"]:
    """Features times the weights of all fits, in one product a group."""
    found = torch.bmm(z.flatten(1, 2), w.transpose(1, 2).flatten(2))
    return found.view(*z.shape[:3], w.shape[1], w.shape[3])


def _joined(attended: Float[Tensor, "G f n H V"], w: dict[str, Tensor]) -> Float[Tensor, "G f n K"]:
    return attended.flatten(3) @ w["last"] if "last" in w else attended.sum(3)
