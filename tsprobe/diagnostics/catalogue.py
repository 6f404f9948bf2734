"""What there is to measure of a layer without labels: names, units and one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tsprobe.errors import UnknownNameError

Kind = Literal["features", "tokens", "attention", "views"]

KINDS: dict[Kind, str] = {
    "features": "over pooled features",
    "tokens": "over the tokens of a series",
    "attention": "over attention weights",
    "views": "over views of the same series",
}
GROUPS = {"standard": "all but those that need views", "all": "all, with two views", "none": "none"}


@dataclass(frozen=True)
class Diagnostic:
    """A measure. `missing` says why it is NaN where its own definition leaves nothing to measure."""

    kind: Kind
    unit: str
    what: str
    missing: str


_FEW = "too few samples, or all alike"
_FIRST = "no layer of the same width before it"
_TOKENS = "no row has tokens enough"
_ATTENTION = "the attention of this layer cannot be seen"
_VIEWS = "too few samples, or all views alike"

CATALOGUE: dict[str, Diagnostic] = {
    "effective_rank": Diagnostic(
        "features", "dimensions", "exp of the entropy of the singular values, centred (Roy and Vetterli 2007)", _FEW
    ),
    "rankme": Diagnostic("features", "dimensions", "the same of features that are not centred (Garrido 2022)", _FEW),
    "sample_entropy": Diagnostic(
        "features", "nats", "von Neumann entropy of the Gram matrix over samples (Giraldo 2014, Skean 2025)", _FEW
    ),
    "alpha_req": Diagnostic(
        "features", "slope", "decay of the covariance's eigenvalues, a power law's exponent (Agrawal 2022)", _FEW
    ),
    "two_nn": Diagnostic(
        "features", "dimensions", "intrinsic dimension from the two nearest neighbours (Facco 2017)", _FEW
    ),
    "anisotropy": Diagnostic(
        "features", "cosine", "mean cosine between two different samples (Ethayarajh 2019)", _FEW
    ),
    "uniformity": Diagnostic(
        "features", "log", "log of the mean of exp(-2 d²) on the sphere, low is even (Wang and Isola 2020)", _FEW
    ),
    "cka_final": Diagnostic(
        "features", "CKA", "linear CKA with the final layer, unbiased, up to 1 (Kornblith 2019)", _FEW
    ),
    "cka_mean": Diagnostic("features", "CKA", "linear CKA with the mean of each channel of the input", _FEW),
    "cka_std": Diagnostic("features", "CKA", "linear CKA with the standard deviation of each channel", _FEW),
    "cka_spectrum": Diagnostic(
        "features", "CKA", "linear CKA with the log power of the input in bands of an octave", _FEW
    ),
    "displacement": Diagnostic(
        "features", "1 - cosine", "how far the layer turns its input, Block Influence (Men 2024)", _FIRST
    ),
    "relative_change": Diagnostic(
        "features", "ratio", "norm of what the layer adds over that of its input (Csordás 2025)", _FIRST
    ),
    "lens_r2": Diagnostic(
        "features", "R²", "how well ridge reads the final embedding from the layer, rows held out (Belrose 2023)", _FEW
    ),
    "token_entropy": Diagnostic(
        "tokens", "nats", "von Neumann entropy of the Gram matrix over tokens (Giraldo 2014, Skean 2025)", _TOKENS
    ),
    "curvature": Diagnostic(
        "tokens", "radians", "angle between successive differences of tokens (Hosseini and Fedorenko 2023)",
        "no row has three tokens in an order of time",
    ),
    "token_locality": Diagnostic(
        "tokens", "cosine", "cosine of neighbouring tokens less that of distant ones (LDS, Singh 2025)", _TOKENS
    ),
    "token_norm_ratio": Diagnostic(
        "tokens", "ratio", "largest norm of a token over the median norm (outliers, Darcet 2023)", _TOKENS
    ),
    "attention_mass": Diagnostic(
        "attention", "ratio", "largest mean attention that a token gets, times tokens; 1 if even (PE, section 5.1)",
        _ATTENTION,
    ),
    "attention_distance": Diagnostic(
        "attention", "steps or pixels", "mean distance that attention reaches over (Dosovitskiy 2020, Raghu 2021)",
        _ATTENTION,
    ),
    "lidar": Diagnostic(
        "views", "dimensions", "effective rank of what tells samples apart from their views (Thilak 2023)", _VIEWS
    ),
    "dime": Diagnostic("views", "nats", "matrix mutual information of two views, less chance (Skean 2023)", _VIEWS),
    "infonce": Diagnostic("views", "nats", "log N less the contrastive loss of two views (van den Oord 2018)", _VIEWS),
    "alignment": Diagnostic("views", "distance²", "mean squared distance of two views (Wang and Isola 2020)", _VIEWS),
}  # fmt: skip

DIAGNOSTICS: dict[str, str] = {name: entry.what for name, entry in CATALOGUE.items()}


@dataclass(frozen=True)
class Value:
    """What was measured; where it is NaN, `note` says why."""

    value: float
    note: str = ""


class Undefined(ArithmeticError):
    """The definition leaves nothing to measure here; the message says why."""


def of_kind(names: Iterable[str], *kinds: Kind) -> tuple[str, ...]:
    return tuple(name for name in names if CATALOGUE[name].kind in kinds)


def chosen(names: str | Iterable[str]) -> tuple[str, ...]:
    """The measures behind a name of `GROUPS`, or a list of such and of measures, in the order of the catalogue.

    Raises `UnknownNameError`, with near names.
    """
    wanted: set[str] = set()
    for name in (names,) if isinstance(names, str) else names:
        if name == "all":
            wanted |= set(CATALOGUE)
        elif name == "standard":
            wanted |= set(of_kind(CATALOGUE, "features", "tokens", "attention"))
        elif name in CATALOGUE:
            wanted.add(name)
        elif name != "none":
            raise UnknownNameError("diagnostic", str(name), (*CATALOGUE, *GROUPS))
    return tuple(name for name in CATALOGUE if name in wanted)
