"""Average precision of detections, from readings at places of pictures (Lin et al. 2014: COCO's AP, area all).

A row is a place of a picture, and targets and predictions have the columns

    score of each of C classes, left, top, right, bottom, column, row

in shares of the picture: of each class a heat that is 1 at the one place that stands for an object and less at the
others of its own, how far the four sides of the box are from the place, and where the place is. NaN in a class says
that what is found of it there is neither right nor wrong. Where the places are is known: it is read from the targets.

`noted` makes detections of each picture out of predictions and matches them with its objects, once; `average_precision`
ranks those of all pictures, under any weights of the pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tsprobe.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

MOST = 100  # detections of a picture
SUPPRESS = 0.5  # intersection over union above which the lower of two boxes of one class is dropped
EXTRA = 6  # columns behind the classes
OVERLAPS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # at which a detection is right
_RECALLS = np.linspace(0, 1, 101)  # at which precision is read
_AT_ONCE, _CHUNK = 16, 2**22  # pictures (few stay in a CPU's cache), and numbers of weighted rankings, taken together


class Pictures(NamedTuple):
    """S pictures of M places and G objects at the most. `there` is False where one has fewer places."""

    places: Int[Tensor, "S M"]  # numbers of rows
    there: Bool[Tensor, "S M"]
    at: Float[Tensor, "S M 2"]
    asked: Bool[Tensor, "S M C"]  # False also where there is no place
    classes: Int[Tensor, "S G"]  # -1 where there is no object
    boxes: Float[Tensor, "S G 4"]


def noted(y: Float[Tensor, "N K"], p: Float[Tensor, "P N K"], series: Int[Tensor, " N"]) -> Float[Tensor, "P S 200+C"]:
    """Of each picture its detections and how many objects of each class it has.

    Detections are the 100 best pairs of a place and a class, cut to the picture, less those without area and those that
    a better one of the same class covers by more than half, in order: first their scores, then `1024 class + b`, where
    bit i of b says that it is right at the i-th of `OVERLAPS`; -1 where there are fewer. As COCO has it, the better
    detection is matched first, with the object of its class that it covers best among those that are free.

    Raises DataError for targets of fewer than seven columns.
    """
    pictures = _pictures(y, series.to(y.device))
    count = _counts(pictures.classes, y.shape[1] - EXTRA)
    problems = [(i, s) for i in range(len(p)) for s in torch.arange(len(count)).split(_AT_ONCE)]
    parts = [_of_some(p[i], Pictures(*(part[s.to(y.device)] for part in pictures))) for i, s in problems]
    found = torch.cat(parts).view(len(p), len(count), -1)
    return torch.cat([found, count.expand(len(p), -1, -1)], 2)


def _pictures(y: Float[Tensor, "N K"], series: Int[Tensor, " N"]) -> Pictures:
    c = y.shape[1] - EXTRA
    if c < 1:
        raise DataError(f"targets of {y.shape[1]} columns where classes, four sides and two of the place are due")
    rows = [(series == number).nonzero()[:, 0] for number in series.unique()]
    places = pad_sequence(rows, batch_first=True, padding_value=-1)
    there, y = places >= 0, y.double()
    home = [(y[part, :c] == 1).nonzero() for part in rows]  # place and class of each object
    homes = [part[h[:, 0]] for part, h in zip(rows, home, strict=True)]
    return Pictures(
        places,
        there,
        y[places, -2:],
        ~y[places, :c].isnan() & there[..., None],
        pad_sequence([h[:, 1] for h in home], batch_first=True, padding_value=-1),
        pad_sequence([boxes_at(y[h, -2:], y[h, c : c + 4]) for h in homes], batch_first=True),
    )


def boxes_at(places: Float[Tensor, "*n 2"], sides: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Left, top, right and bottom from how far they are from places."""
    return torch.cat([places - sides[..., :2], places + sides[..., 2:]], -1)


def _counts(classes: Int[Tensor, "S G"], c: int) -> Float[Tensor, "S C"]:
    return (classes[..., None] == torch.arange(c, device=classes.device)).sum(1).double()


def _of_some(p: Float[Tensor, "N K"], pictures: Pictures) -> Float[Tensor, "s 200"]:
    scores, classes, boxes = _decoded(p[pictures.places], pictures)
    keep = (scores > -torch.inf) & (boxes[..., :2] < boxes[..., 2:]).all(-1) & not_covered(boxes, classes)
    # those that are kept come first, which leaves them in order
    order = (~keep).long().sort(dim=1, stable=True).indices
    scores, classes, keep = (part.gather(1, order) for part in (scores, classes, keep))
    right = _right(boxes.gather(1, order[..., None].expand(-1, -1, 4)), torch.where(keep, classes, -2), pictures)
    bits = (right * 2 ** torch.arange(len(OVERLAPS), device=p.device)).sum(-1)
    found = torch.where(keep, scores, 0), torch.where(keep, 1024 * classes + bits, -1).to(scores)
    missing = 0, MOST - scores.shape[1]
    return torch.cat([F.pad(part, missing, value=none) for part, none in zip(found, (0, -1), strict=True)], 1)


def _decoded(
    p: Float[Tensor, "s M K"], pictures: Pictures
) -> tuple[Float[Tensor, "s D"], Int[Tensor, "s D"], Float[Tensor, "s D 4"]]:
    """Scores, classes and boxes of the best pairs of place and class, the first of equals first."""
    c = p.shape[2] - EXTRA
    scores = torch.where(pictures.asked, p[..., :c], -torch.inf).flatten(1)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :MOST]
    at = (order // c)[..., None]
    sides, places = p[..., c : c + 4].gather(1, at.expand(-1, -1, 4)), pictures.at.gather(1, at.expand(-1, -1, 2))
    return scores.gather(1, order), order % c, boxes_at(places, sides).clamp(0, 1)


def not_covered(boxes: Float[Tensor, "s D 4"], classes: Int[Tensor, "s D"]) -> Bool[Tensor, "s D"]:
    """Which boxes, the best first, non-maximum suppression keeps within each class.

    A box is dropped where a better one that is kept covers it. That is asked of all boxes together, until no answer
    changes (Zheng et al. 2020, Cluster-NMS): the answers are those of going through them one by one.
    """
    over = (overlap(boxes, boxes) > SUPPRESS) & (classes[:, :, None] == classes[:, None])
    over = over.triu(1).float()  # the better one, the box
    keep = over.new_ones(len(over), 1, over.shape[1])
    while True:
        again = ((keep @ over) == 0).float()
        if again.equal(keep):
            return keep[:, 0] > 0
        keep = again


def overlap(a: Float[Tensor, "*s D 4"], b: Float[Tensor, "*s G 4"]) -> Float[Tensor, "*s D G"]:
    """Intersection over union; 0 for boxes without area."""
    one, other = (x.unbind(-1) for x in (a[..., :, None, :], b[..., None, :, :]))
    wide, high = (
        (torch.minimum(one[i + 2], other[i + 2]) - torch.maximum(one[i], other[i])).clamp_(min=0) for i in (0, 1)
    )
    both = wide.mul_(high)
    areas = [(x[2] - x[0]).clamp(min=0) * (x[3] - x[1]).clamp(min=0) for x in (one, other)]
    either = areas[0] + areas[1] - both
    return torch.where(either > 0, both / either, 0)


def _right(boxes: Float[Tensor, "s D 4"], classes: Int[Tensor, "s D"], pictures: Pictures) -> Bool[Tensor, "s D T"]:
    """Which detections, the best first, are matched at each of `OVERLAPS`."""
    levels = torch.tensor(OVERLAPS, dtype=torch.float64, device=boxes.device)
    right = torch.zeros(*classes.shape, len(levels), dtype=torch.bool, device=boxes.device)
    if not pictures.boxes.shape[1]:
        return right
    of_class = classes[:, :, None] == pictures.classes[:, None]
    shared = torch.where(of_class, overlap(boxes, pictures.boxes), 0)  # [s, D, G]
    free = torch.ones(len(boxes), len(levels), shared.shape[2], dtype=torch.bool, device=boxes.device)
    reach = shared.amax(2) >= levels[0]
    order = (~reach).long().sort(dim=1, stable=True).indices  # few can be right: these alone are gone through
    which = torch.arange(len(boxes), device=boxes.device)
    for d in order[:, : int(reach.sum(1).max())].unbind(1):
        fits = torch.where(free, shared[which, d][:, None], -1)  # [s, T, G]
        best, g = fits.flip(2).max(2)  # the last of equals, as COCO takes it
        g = fits.shape[2] - 1 - g
        hit = best >= levels
        right[which, d] = hit
        free.scatter_(2, g[..., None], free.gather(2, g[..., None]) & ~hit[..., None])
    return right


def average_precision(
    y: Tensor, notes: Float[Tensor, "*batch S 200+C"], weights: Float[Tensor, "R S"] | None = None
) -> Float[Tensor, "*R_batch"]:
    """Mean over `OVERLAPS` and over the classes that occur of the precision at 101 recalls, of what `noted` gave.

    Precision at a recall is the best that is reached at it or beyond. With weights, which say how often each picture
    occurs, the score is that of the pictures so drawn; NaN where they show no object. `y` is not looked at.
    """
    flat = notes.reshape(-1, *notes.shape[-2:])
    w = flat.new_ones(1, flat.shape[1]) if weights is None else weights.to(flat)
    found = torch.stack([_ranked(one, w) for one in flat], 1)
    return found.view(notes.shape[:-2]) if weights is None else found.view(len(w), *notes.shape[:-2])


def _ranked(notes: Float[Tensor, "S 200+C"], w: Float[Tensor, "R S"]) -> Float[Tensor, " R"]:
    scores, coded, count = notes[:, :MOST], notes[:, MOST : 2 * MOST], notes[:, 2 * MOST :]
    picture, place = (coded >= 0).nonzero(as_tuple=True)
    code = coded[picture, place].long()
    order = scores[picture, place].sort(descending=True, stable=True).indices
    picture, classes, bits = picture[order], code[order] // 1024, code[order] % 1024
    total, occurring = w.new_zeros(len(w)), w.new_zeros(len(w))
    for c in count.any(0).nonzero()[:, 0].tolist():
        here = classes == c
        objects = w @ count[:, c]
        score = _of_class(w, picture[here], bits[here], objects)
        total += torch.where(objects > 0, score, 0)
        occurring += objects > 0
    return total / occurring


def _of_class(
    w: Float[Tensor, "R S"], picture: Int[Tensor, " n"], bits: Int[Tensor, " n"], objects: Float[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Of ranked detections of one class. Precision is read where one is right at some overlap: elsewhere it falls."""
    some = bits.nonzero()[:, 0]
    if not len(some):
        return w.new_zeros(len(w))
    right = (bits[some] >> torch.arange(len(OVERLAPS), device=bits.device)[:, None] & 1).to(w)  # [T, m]
    recalls = torch.from_numpy(_RECALLS).to(w)
    found = []
    for part, size in zip(*(x.split(max(1, _CHUNK // right.numel())) for x in (w, objects)), strict=True):
        each = part[:, picture]
        ranks = each.cumsum(1)[:, None, some] + torch.finfo(w.dtype).eps
        caught = (each[:, None, some] * right).cumsum(2)  # [r, T, m]
        precision = (caught / ranks).flip(2).cummax(2).values.flip(2)
        reached = torch.searchsorted(recalls, caught / size.clamp(min=1e-9)[:, None, None], right=True)
        steps = reached.diff(dim=2, prepend=reached.new_zeros(()).expand(*reached.shape[:2], 1))
        found.append((precision * steps).sum(2).mean(1) / len(_RECALLS))
    return torch.cat(found)
