"""Counts, means and centred products of rows, part by part: all that a ridge fit needs to know of them.

Parts are merged by the formula of Chan, Golub and LeVeque 1983 (The American Statistician 37, equation 2.1b): products
about the own mean of each part, plus n_a n_b / (n_a + n_b) times the product of the difference of the means. Only
terms of one sign are ever added: a large mean costs no more than its own rounding, and what a fit on some parts sees
does not depend on what the other parts hold. Rows may come in any order and in any batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tsprobe.probes.base import Standardiser

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_STRIPES = 4  # block columns of a product, of which the blocks above the diagonal are not computed: 3/8 is saved


def leave_one_out(parts: int, device: torch.device | str = "cpu") -> Float[Tensor, "P+1 P"]:
    """Which parts each fit sees: all but one, and in the last row all."""
    ones = torch.ones(parts + 1, parts, dtype=torch.float64, device=device)
    return ones - torch.eye(parts + 1, parts, dtype=torch.float64, device=device)


class Rows(NamedTuple):
    """Rows about their mean, in float64, and a free row behind them; and the extremes that they had."""

    mean: Float[Tensor, "G D"]
    centred: Float[Tensor, "G n+1 D"]
    low: Float[Tensor, "G D"]
    high: Float[Tensor, "G D"]

    @classmethod
    def of(cls, x: Float[Tensor, "G n D"]) -> Rows:
        low, high = x.aminmax(dim=1)
        buffer = x.new_empty(len(x), x.shape[1] + 1, x.shape[2], dtype=torch.float64)
        buffer[:, :-1] = x
        return cls(_centre(buffer), buffer, low.double(), high.double())

    def take(self, some: Bool[Tensor, " n"]) -> Rows:
        """Some of the rows, about their own mean."""
        buffer = self.centred[:, torch.nn.functional.pad(some, (0, 1), value=True)]
        return Rows(self.mean + _centre(buffer), buffer, self.low, self.high)


def _centre(buffer: Float[Tensor, "G n+1 D"]) -> Float[Tensor, "G D"]:
    x = buffer[:, :-1]
    mean = x.mean(1)
    x -= mean[:, None]
    return mean


@dataclass
class Spread:
    """Mean, sum of squares about it, and extremes of the columns: what standardising needs."""

    count: Float[Tensor, " P"]
    mean: Float[Tensor, "G P D"]
    square: Float[Tensor, "G P D"]
    low: Float[Tensor, "G P D"]
    high: Float[Tensor, "G P D"]

    @classmethod
    def empty(cls, groups: int, parts: int, width: int, device: torch.device | str = "cpu") -> Spread:
        zeros = torch.zeros(4, groups, parts, width, dtype=torch.float64, device=device)
        return cls(zeros[0, 0, :, 0].clone(), zeros[0], zeros[1], zeros[2] + torch.inf, zeros[3] - torch.inf)

    def add(self, part: int, rows: Rows) -> None:
        """Take in rows of one part."""
        mean, x = rows.mean[:, None], rows.centred[:, :-1]
        square = torch.linalg.vector_norm(x, dim=1, keepdim=True).square()
        count = self.count.new_full((1,), x.shape[1])
        self._merge(slice(part, part + 1), Spread(count, mean, square, rows.low[:, None], rows.high[:, None]))

    def merge(self, other: Spread) -> None:
        """Take in rows that another has seen."""
        self._merge(slice(None), other)

    def _merge(self, where: slice, other: Spread) -> None:
        share, weight = _shares(self.count[where], other.count)
        offset = other.mean - self.mean[:, where]
        self.mean[:, where] += share[:, None] * offset
        self.square[:, where] += other.square + weight[:, None] * offset.square()
        self.low[:, where] = torch.minimum(self.low[:, where], other.low)
        self.high[:, where] = torch.maximum(self.high[:, where], other.high)
        self.count[where] += other.count

    def __getitem__(self, groups: slice) -> Spread:
        return Spread(self.count, *(t[groups] for t in (self.mean, self.square, self.low, self.high)))

    def standardiser(self, sees: Float[Tensor, " P"]) -> Standardiser:
        """Of the fit that sees these parts."""
        parts = (sees * self.count) > 0
        count, mean = self.count[parts], self.mean[:, parts]
        middle = (count[:, None] * mean).sum(1, keepdim=True) / count.sum()
        offset = (mean - middle).square() * count[:, None]
        std = ((self.square[:, parts] + offset).sum(1, keepdim=True) / count.sum()).sqrt()
        size = torch.maximum(self.low[:, parts].abs(), self.high[:, parts].abs()).amax(1, keepdim=True)
        return Standardiser.of(middle, std, size)


@dataclass
class Moments:
    """Of features and of the targets that are known on the same rows."""

    count: Float[Tensor, " P"]
    mean: Float[Tensor, "G P D"]
    product: Float[Tensor, "G P D D"]  # in stripes on and below the diagonal; whole after `pooled`
    cross: Float[Tensor, "G P D K"]
    y_mean: Float[Tensor, "P K"]
    y_square: Float[Tensor, "P K"]

    @classmethod
    def empty(cls, groups: int, parts: int, width: int, targets: int, device: torch.device | str = "cpu") -> Moments:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            zeros(parts), zeros(groups, parts, width), zeros(groups, parts, width, width),
            zeros(groups, parts, width, targets), zeros(parts, targets), zeros(parts, targets),
        )  # fmt: skip

    def add(self, part: int, rows: Rows, y: Float[Tensor, "n K"]) -> None:
        """Take in rows of one part. The difference of the means enters the products as one more row."""
        n = self.count.new_tensor(len(y))
        share, weight = _shares(self.count[part], n)
        y_mean = y.mean(0)
        offset, y_offset = rows.mean - self.mean[:, part], y_mean - self.y_mean[part]
        rows.centred[:, -1] = weight.sqrt() * offset
        targets = torch.cat([y - y_mean, (weight.sqrt() * y_offset)[None]])
        _add_product(self.product[:, part], rows.centred)
        self.cross[:, part] += rows.centred.mT @ targets
        self.y_square[part] += targets.square().sum(0)
        self.mean[:, part] += share * offset
        self.y_mean[part] += share * y_offset
        self.count[part] += n

    def merge(self, other: Moments) -> None:
        """Take in rows that another has seen."""
        share, weight = _shares(self.count, other.count)
        offset, y_offset = other.mean - self.mean, other.y_mean - self.y_mean
        scaled = weight[:, None] * offset
        self.product += other.product + scaled[..., None] * offset[..., None, :]
        self.cross += other.cross + scaled[..., None] * y_offset[:, None]
        self.y_square += other.y_square + weight[:, None] * y_offset.square()
        self.mean += share[:, None] * offset
        self.y_mean += share[:, None] * y_offset
        self.count += other.count

    def __getitem__(self, groups: slice) -> Moments:
        mean, product, cross = (t[groups] for t in (self.mean, self.product, self.cross))
        return Moments(self.count, mean, product, cross, self.y_mean, self.y_square)

    def whole(self, part: int) -> Float[Tensor, "G D D"]:
        """The product of one part with the blocks above its diagonal."""
        return _mirrored(self.product[:, part].clone())

    def pooled(self, sees: Float[Tensor, "Q P"]) -> Moments:
        """Moments whose parts are the unions of parts that each fit sees, `product` being whole."""
        count = sees @ self.count
        share = sees * self.count / count.clamp(min=1)[:, None]
        mean, y_mean = share @ self.mean, share @ self.y_mean
        root = (sees * self.count).sqrt()[..., None]
        offset = root * (self.mean[:, None] - mean[:, :, None])  # [G, Q, P, D]
        y_offset = root * (self.y_mean - y_mean[:, None])  # [Q, P, K]
        product = _mirrored((sees @ self.product.flatten(2)).unflatten(2, self.product.shape[2:]))
        product.flatten(0, 1).baddbmm_(offset.flatten(0, 1).mT, offset.flatten(0, 1))
        cross = (sees @ self.cross.flatten(2)).unflatten(2, self.cross.shape[2:]) + offset.mT @ y_offset
        return Moments(count, mean, product, cross, y_mean, sees @ self.y_square + y_offset.square().sum(1))


def _shares(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The share of `b` among both counts, and n_a n_b / (n_a + n_b); 0 where both are empty."""
    share = b / (a + b).clamp(min=1)
    return share, a * share


def _stripes(width: int) -> list[tuple[int, int]]:
    step = -(-width // _STRIPES) if width >= 64 else width
    return [(i, min(i + step, width)) for i in range(0, width, step)]


def _add_product(product: Float[Tensor, "G D D"], rows: Float[Tensor, "G n D"]) -> None:
    for start, stop in _stripes(rows.shape[2]):
        product[:, start:, start:stop].baddbmm_(rows[..., start:].mT, rows[..., start:stop])


def _mirrored(product: Float[Tensor, "*batch D D"]) -> Float[Tensor, "*batch D D"]:
    for start, stop in _stripes(product.shape[-1]):
        product[..., start:stop, stop:] = product[..., stop:, start:stop].mT
    return product
