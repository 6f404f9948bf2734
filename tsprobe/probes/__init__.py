"""Readouts trained on frozen features, for all layers and poolings at once.

Every probe is a function `fit_predict(x, target, x_test, folds, metric, *, strengths=None) -> Readout`; see `base`.
Modules are loaded when a probe is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsprobe.errors import UnknownNameError

if TYPE_CHECKING:
    from tsprobe.probes.base import Probe

_LABELS = ("classification", "multilabel")
_VALUES = ("regression", "detection")


@dataclass(frozen=True)
class Entry:
    """Where a probe is, as `module:attribute`, what it is, and the kinds of target that it takes.

    `sourced` is where the probe of a source is made, for those that are also named `NAME:SOURCE`.
    """

    path: str
    description: str
    kinds: tuple[str, ...]
    sourced: str | None = None


PROBES: dict[str, Entry] = {
    "ridge": Entry(
        "tsprobe.probes.ridge:fit_predict",
        "linear regression with an L2 penalty, in closed form; classes and labels as regression targets",
        (*_LABELS, *_VALUES),
    ),
    "logistic": Entry(
        "tsprobe.probes.logistic:fit_predict",
        "softmax (classes) or sigmoid (labels) regression with an L2 penalty, solved to convergence",
        _LABELS,
    ),
    "knn": Entry(
        "tsprobe.probes.knn:fit_predict",
        "vote of the nearest training samples by cosine similarity",
        (*_LABELS, *_VALUES),
    ),
    "correspondence": Entry(
        "tsprobe.probes.correspondence:fit_predict",
        "labels of the most similar training tokens, weighted by their similarity; nothing is trained",
        ("classification",),
    ),
    "attentive": Entry(
        "tsprobe.probes.attentive:fit_predict",
        "cross-attention over the segments of a series or the steps of a dense task, with a linear readout",
        (*_LABELS, *_VALUES),
    ),
    "dpt": Entry(
        "tsprobe.probes.dpt:fit_predict",
        "a light convolutional head over the map of the pixels that are asked about, for values such as depth",
        ("regression",),
    ),
    "quantile": Entry(
        "tsprobe.probes.quantile:fit_predict",
        "linear head for the quantiles 0.1 to 0.9 of each step: median regression, and quantiles of its residuals",
        ("forecast",),
    ),
    "language": Entry(
        "tsprobe.probes.language:fit_predict",
        "answers in words of a small causal language model that reads the features through a projector of two layers",
        ("choice", "answer", "grounding", "box", "caption"),
        "tsprobe.probes.pretrained:with_decoder",
    ),
}


def _entry(name: str) -> tuple[Entry, str]:
    """The probe of that name, and the source where it is `NAME:SOURCE`."""
    plain, colon, source = name.partition(":")
    if plain not in PROBES or (colon and not (source and PROBES[plain].sourced)):
        raise UnknownNameError("probe", name, PROBES)
    return PROBES[plain], source


def get_probe(name: str) -> Probe:
    """The `fit_predict` of the probe of that name; raises UnknownNameError, which suggests near ones.

    `language:SOURCE` is the language probe with another decoder (`tsprobe.probes.pretrained`).
    """
    entry, source = _entry(name)
    module, attribute = ((source and entry.sourced) or entry.path).split(":")
    found = getattr(importlib.import_module(module), attribute)
    return found(source) if source else found


def probes_for(name: str) -> tuple[str, ...]:
    """The kinds of target that the probe of that name takes; raises UnknownNameError, which suggests near ones."""
    return _entry(name)[0].kinds
