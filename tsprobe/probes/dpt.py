"""A light convolutional head that reads values at pixels, after the dense prediction transformer (DPT).

Perception Encoder's depths are read by a DPT on one layer (appendix B.3.3). Of its parts (Ranftl et al. 2021, section
3, arXiv 2103.13413), one layer needs these:

    upsample     tokens to pixels, bilinearly: so are all features of pixels read (`tsprobe.capture.steps`)
    reassemble   the features of a pixel to C channels, on a map of the grid of pixels that are asked about
    fuse         a residual unit: two convolutions of 3 x 3, each behind a ReLU
    head         a ReLU, and the K values

DPT upsamples between its last two parts. Here that comes first, since the truth is known at the pixels alone, one in
each cell of the map; with as many cells as tokens the two hardly differ. Three channels beside the features say where
in its cell the pixel lies, and that there is one. Of whole series, where there is no map, each is a map of one cell,
and what is left is a small network of the features.

Features are prepared as those of the attentive probe, and heads are trained as there: one for each fold of each group
and one that sees all rows, all of them together, the same first weights, rates and minibatches of pictures for each,
none depending on another. Strengths are the steps at which training may stop: fewer regularise more.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from tsprobe.errors import SpecError
from tsprobe.metrics import Metric
from tsprobe.probes import attentive, base, heads, maps

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

CHANNELS = 16
_BESIDE = 3  # channels beside the features: two of the place in the cell, one of whether there is a pixel
_PIXELS, _LEAST = 512, 8  # of a minibatch, and pictures of it
_RATE = 0.01  # of Adam
_PIXELS_AT_ONCE = 4096


def fit_predict(
    x: Float[Tensor, "G N D"],
    target: base.Target,
    x_test: Float[Tensor, "G M D"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    *,
    strengths: Sequence[float] | None = None,
) -> base.Readout:
    """Values `[G, M, K]` read by a DPT of every group.

    A value that does not vary among the rows of a fit is predicted as it is there. First weights and minibatches follow
    from the folds.

    Raises `DataError` for features or targets that cannot be used and steps that are no pixels of square pictures,
    `SpecError` for targets that are no values, an unfitting metric, or strengths that are no whole numbers.
    """
    if target.kind != "regression":
        raise SpecError(f"the dpt probe reads values, regression targets, not {target.kind}")
    grid = heads.stops_of(strengths, "dpt")
    problem = base.check(x, target, x_test, folds, metric)
    parts = _maps(target, x.shape[1], x_test.shape[1], x.device)
    goal = attentive.Goal.of(problem)
    seed = zlib.crc32(folds.cpu().numpy().tobytes())

    def solve(x: Tensor, x_test: Tensor) -> base.Solved:
        z, z_test = (part[:, :, 0] for part in attentive.prepared(x, x_test, 1))
        first, second = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
        every = Heads(z, goal, first)
        return heads.solved(
            problem, grid, every.train(z, parts[0], grid, second),
            lambda rows, fit: every.predict(z, parts[0].among(rows), fit),
            lambda fit: every.predict(z_test, parts[1], fit),
        )  # fmt: skip

    (_, n, d), m, k, fits = x.shape, x_test.shape[1], target.width, problem.n_folds + 1
    read = max(_PIXELS, _LEAST * parts[0].index.shape[1])
    return base.readout(
        problem, metric, grid, solve,
        group_bytes=4 * (2 * (n + m) * (d + len(grid) * k) + fits * CHANNELS * (20 * read + d)),
        strongest_last=False, double=False,
    )  # fmt: skip


def _maps(target: base.Target, n: int, m: int, device: torch.device) -> tuple[maps.Maps, maps.Maps]:
    steps = heads.steps_of(target, n, m, "dpt")
    if steps is None:
        return maps.single(n, device), maps.single(m, device)
    return maps.both(steps, device)


class Heads:
    """A head for each of G groups and F fits; weights lie side by side, `[G, F, inputs, outputs]`."""

    def __init__(self, z: Float[Tensor, "G N R"], goal: attentive.Goal, generator: torch.Generator) -> None:
        (groups, _, width), (fits, k) = z.shape, goal.bias.shape
        self._goal = goal
        shapes = {"project": (width + _BESIDE, CHANNELS), "first": (9 * CHANNELS, CHANNELS)}
        shapes |= {"second": (9 * CHANNELS, CHANNELS), "out": (CHANNELS, k)}
        self.weights: dict[str, Tensor] = {}
        for name, (inputs, outputs) in shapes.items():
            one = torch.randn(inputs, outputs, generator=generator) * inputs**-0.5
            one = one * (0.1 if name in ("second", "out") else 1.0)  # nearly nothing is added, and said, at first
            self.weights[name] = one.to(z.device).expand(groups, fits, -1, -1).clone().requires_grad_()
            bias = torch.zeros(groups, fits, 1, outputs, device=z.device)
            self.weights[f"{name}_bias"] = bias.requires_grad_()

    def train(
        self, z: Float[Tensor, "G N R"], part: maps.Maps, stops: Sequence[float], generator: torch.Generator
    ) -> Iterator[int]:
        """Learn, and give the number of steps taken at each of `stops`."""
        pictures, cells = part.index.shape
        size = min(pictures, max(_LEAST, _PIXELS // cells))
        weights = [{"params": list(self.weights.values()), "lr": _RATE}]

        def loss(at: Tensor) -> Tensor:
            some = part.take(at.to(z.device))
            return self._goal.loss(self._read(z, some, slice(None)), some.index.flatten())

        yield from heads.trained(weights, loss, base.minibatches(pictures, size, generator), stops)

    def predict(self, z: Float[Tensor, "G m R"], part: maps.Maps, fit: int) -> Float[Tensor, "G m K"]:
        """What one fit predicts for the rows of a part; 0 for others."""
        return heads.predicted(
            z, part, self._goal, fit, lambda here: self._read(z, here, slice(fit, fit + 1)), _PIXELS_AT_ONCE
        )

    def _read(self, z: Float[Tensor, "G m R"], part: maps.Maps, fits: slice) -> Float[Tensor, "G f n K"]:
        """Outputs for all cells of pictures, in the order of their index; those without a row mean nothing."""
        groups, (pictures, cells) = len(z), part.index.shape
        there = (part.index >= 0)[..., None]
        features = torch.where(there, z[:, part.index], 0)  # [G, b, P, R]
        beside = torch.cat([part.offset, there.float()], 2).expand(groups, -1, -1, -1)
        x = torch.cat([features, beside], 3).flatten(1, 2)[:, None]  # [G, 1, b P, R + 3]
        x = self._map("project", x, fits).unflatten(2, (pictures, cells))
        inner = self._conv("first", x.relu(), part.grid, fits)
        x = x + self._conv("second", inner.relu(), part.grid, fits)  # [G, f, b, P, C]
        return self._map("out", x.relu().flatten(2, 3), fits)

    def _map(self, name: str, x: Float[Tensor, "G f n A"], fits: slice) -> Float[Tensor, "G f n B"]:
        return x @ self.weights[name][:, fits] + self.weights[f"{name}_bias"][:, fits]

    def _conv(self, name: str, x: Float[Tensor, "G f b P C"], grid: int, fits: slice) -> Float[Tensor, "G f b P C"]:
        """A convolution of 3 x 3 with zeros around the map, as one product: all heads have weights of their own."""
        plane = F.pad(x.unflatten(3, (grid, grid)), (0, 0, 1, 1, 1, 1))
        near = [plane[..., i : i + grid, j : j + grid, :] for i in range(3) for j in range(3)]
        columns = torch.cat(near, -1).flatten(2, 4)  # [G, f, b P, 9 C]
        return self._map(name, columns, fits).unflatten(2, x.shape[2:4])
