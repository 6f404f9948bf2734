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


@dataclass(frozen=True)
class Entry:
    """Where a probe is, as `module:attribute`, what it is, and the kinds of target that it takes."""

    path: str
    description: str
    kinds: tuple[str, ...]


PROBES: dict[str, Entry] = {
    "ridge": Entry(
        "tsprobe.probes.ridge:fit_predict",
        "linear regression with an L2 penalty, in closed form; classes and labels as regression targets",
        (*_LABELS, "regression"),
    ),
    "logistic": Entry(
        "tsprobe.probes.logistic:fit_predict",
        "softmax (classes) or sigmoid (labels) regression with an L2 penalty, solved to convergence",
        _LABELS,
    ),
    "knn": Entry(
        "tsprobe.probes.knn:fit_predict",
        "vote of the nearest training samples by cosine similarity",
        (*_LABELS, "regression"),
    ),
}


def _entry(name: str) -> Entry:
    if name not in PROBES:
        raise UnknownNameError("probe", name, PROBES)
    return PROBES[name]


def get_probe(name: str) -> Probe:
    """The `fit_predict` of the probe of that name; raises UnknownNameError, which suggests near ones."""
    module, attribute = _entry(name).path.split(":")
    return getattr(importlib.import_module(module), attribute)


def probes_for(name: str) -> tuple[str, ...]:
    """The kinds of target that the probe of that name takes; raises UnknownNameError, which suggests near ones."""
    return _entry(name).kinds
