"""Scores of answers in words, on checked input: predictions `p [P, N, K]` of N questions, weights `w [R, N]`.

They give `[R, P]`. `metrics` registers them under their names, and says what they have in common with all other scores.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tsprobe.detection_metrics import overlap
from tsprobe.errors import MissingPackageError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int, Num


def exact_match(y: Int[Tensor, " N"], p: Float[Tensor, "P N 1"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Share of questions whose answer is the right one, by number; -1 stands for a text that is the answer to none."""
    return w @ (p[..., 0] == y).double().T / w.sum(1, keepdim=True)


def interval_iou(y: Num[Tensor, "N 2"], p: Float[Tensor, "P N 2"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Mean over questions of the intersection over the union of two half-open spans; 0 for a span of no length."""
    y = y.double()
    both = torch.minimum(p[..., 1], y[:, 1]) - torch.maximum(p[..., 0], y[:, 0])
    both = both.clamp(min=0)
    either = (p[..., 1] - p[..., 0]).clamp(min=0) + (y[:, 1] - y[:, 0]) - both
    return w @ (both / either).T / w.sum(1, keepdim=True)


def box_found(y: Num[Tensor, "N 4"], p: Float[Tensor, "P N 4"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Share of questions whose box covers the right one by half or more of their union, the P@0.5 of RefCOCO.

    A box without area, as that of an answer that is none, is not found.
    """
    found = overlap(p[:, :, None], y.double()[:, None])[..., 0, 0] >= 0.5
    return w @ found.double().T / w.sum(1, keepdim=True)


def cider(y: Float[Tensor, "N K"], p: Float[Tensor, "P N W"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Mean over captions of CIDEr-D (Vedantam et al. 2015, sections 3 and 6), from 0 to 10, as pycocoevalcap has it.

    Words are numbers, as in `LanguageTask`. The document frequencies of n-grams are those of the references of all N
    rows, whatever their weights, so that a row scores the same in each resample. A caption that is one of several
    references scores less than 10, since it is compared with the others too.
    """
    scores = _judge(y.cpu().numpy().astype(np.int32).tobytes(), y.shape[1])(p.cpu().numpy())
    return w @ torch.from_numpy(scores).to(w).T / w.sum(1, keepdim=True)


def cider_library() -> Any:
    """The module that CIDEr is of. Raises MissingPackageError."""
    try:
        from pycocoevalcap.cider import cider_scorer
    except ModuleNotFoundError as error:
        raise MissingPackageError("pycocoevalcap", "the metric cider of captions", "language") from error
    return cider_scorer


class _Judge:
    """Scores captions of rows with these references, each caption of a row once: resamples bring the same again."""

    def __init__(self, references: list[list[str]]) -> None:
        self._library = cider_library()
        self._scorer = self._library.CiderScorer()
        self._scorer.crefs = [self._library.cook_refs(texts) for texts in references]
        self._scorer.compute_doc_freq()
        self._known: list[dict[bytes, float]] = [{} for _ in references]

    def __call__(self, captions: Float[np.ndarray, "P N W"]) -> Float64[np.ndarray, "P N"]:
        numbers = np.ascontiguousarray(captions.transpose(1, 0, 2).astype(np.int32))
        rows: list[list[bytes]] = numbers.view(np.dtype((np.void, numbers.shape[2] * 4)))[..., 0].tolist()
        waiting = [
            [c for c in dict.fromkeys(row) if c not in known] for row, known in zip(rows, self._known, strict=True)
        ]
        while any(waiting):  # the library scores one caption of each row at a time
            turn = [some.pop() if some else None for some in waiting]
            self._scorer.ctest = [self._library.cook_test("" if c is None else _text(c)) for c in turn]
            for known, caption, score in zip(self._known, turn, self._scorer.compute_cider(), strict=True):
                if caption is not None:
                    known[caption] = score
        return np.array([[known[c] for c in row] for row, known in zip(rows, self._known, strict=True)]).T


@lru_cache(maxsize=4)
def _judge(references: bytes, width: int) -> _Judge:
    """Of rows of references that end in zeros."""
    rows = np.frombuffer(references, np.int32).reshape(-1, width).tolist()
    return _Judge([[" ".join(map(str, words)) for spoken, words in groupby(row, bool) if spoken] for row in rows])


def _text(caption: bytes) -> str:
    """Numbers up to the first 0, as words for the library."""
    numbers = np.frombuffer(caption, np.int32).tolist()
    return " ".join(map(str, numbers[: numbers.index(0)] if 0 in numbers else numbers))
