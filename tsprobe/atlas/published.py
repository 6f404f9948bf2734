"""What others have published on where encoders hold their best features, and whether the atlas finds the same.

The figures in `CLAIMS` are the only numbers of the atlas that no run of it produced. Those of Aionoscope are a recount
of its released tables (39 systems with three layers or more, mixtures of two components, median of ten seeds): median
best depth, and median gap of the best layer over the last, of 34 latent parameters (Pearson) and of presence (AUROC).
Its gaps pick the best layer on the test set, those of the atlas on inner folds, and the atlas reads parameters in R²:
the sizes of gaps are not compared, only their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tsprobe.atlas.draws import Estimate, Grid, interval
from tsprobe.atlas.spec import AtlasSpec

if TYPE_CHECKING:
    import pandas as pd

AIONOSCOPE = "arXiv 2607.00956 (Aionoscope, released tables)"
LENEPA = "arXiv 2607.00958 (LeNEPA, PTB-XL by layer, figure of the released CSV)"
MANTIS = "arXiv 2607.00956 (Aionoscope, released tables of Mantis-8M and MantisV2)"
TOLERANCE = 0.15  # of a depth: what is nearer than that to a published one is taken for the same

FORECASTING, SELF_SUPERVISED = ("forecasting",), ("reconstruction", "contrastive", "jepa", "next-latent")
PROCESSES = "process/"


@dataclass(frozen=True)
class Claim:
    """A published figure. `more` is a depth or a gap of one group of objectives less that of another (its order is
    compared), `depth` the median best depth of one group (its value is compared)."""

    what: str
    kind: Literal["depth", "more depth", "more gap"]
    group: tuple[str, ...]
    other: tuple[str, ...]
    low: float
    high: float
    source: str


CLAIMS = (
    Claim("median best depth of forecasters", "depth", FORECASTING, (), 0.83, 0.83, AIONOSCOPE),
    Claim("median best depth of self-supervised encoders", "depth", SELF_SUPERVISED, (), 0.50, 0.54, AIONOSCOPE),
    Claim("forecasters peak deeper than self-supervised encoders, by", "more depth", FORECASTING, SELF_SUPERVISED, 0.29,
          0.33, AIONOSCOPE),
    Claim("self-supervised encoders hide more than forecasters, by", "more gap", SELF_SUPERVISED, FORECASTING, 0.003,
          0.055, AIONOSCOPE),
    Claim("best depth of contrastive encoders", "depth", ("contrastive",), (), 0.33, 0.67, MANTIS),
    Claim("best depth of masked latent prediction (JEPA)", "depth", ("jepa",), (), 1.0, 1.0, LENEPA),
    Claim("best depth of next-latent prediction", "depth", ("next-latent",), (), 0.50, 0.63, LENEPA),
)  # fmt: skip


def compared(gaps: pd.DataFrame, spec: AtlasSpec) -> pd.DataFrame:
    """Each claim beside what the atlas has for encoders of series on generated processes (on all tasks, where the atlas
    has none): `agrees`, `disagrees` or `undecided`, from the interval alone."""
    import pandas as pd

    series = gaps[gaps["modality"] == "series"]
    processes = series[series["base"].str.startswith(PROCESSES)]
    some = processes if len(processes) else series
    on = "generated processes" if len(processes) else "all tasks"
    rows: list[dict[str, Any]] = []
    for claim in CLAIMS:
        found, names = _found(claim, some, spec)
        rows.append(
            {"claim": claim.what, "published_low": claim.low, "published_high": claim.high, "source": claim.source,
             "on": on, "encoders": ", ".join(names)}
            | found.row("found") | {"verdict": agreement(claim, found)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _found(claim: Claim, gaps: pd.DataFrame, spec: AtlasSpec) -> tuple[Estimate, list[str]]:
    column, statistic = ("gap", "mean") if claim.kind == "more gap" else ("chosen_depth", "median")
    grids, names = [], []
    for group in (claim.group, claim.other):
        own = gaps[gaps["objective"].isin(group)]
        names += list(own["encoder"].unique())
        grids.append(Grid.of(own, column, tasks=gaps) if len(own) else None)
    first, other = grids
    if first is None or (claim.other and other is None):
        return Estimate(np.nan, np.nan, np.nan), names
    samples = first.resampled(spec.resamples, spec.seed, statistic)  # type: ignore[arg-type]
    clusters = first.clusters
    if other is not None:
        samples = samples - other.resampled(spec.resamples, spec.seed, statistic)  # type: ignore[arg-type]
        clusters = min(clusters, other.clusters)
    return interval(samples, clusters, spec.level), names


def agreement(claim: Claim, found: Estimate) -> str:
    """Of an order: whether the interval lies on its side of 0. Of a value: `agrees` where the interval lies within
    `TOLERANCE` of what is published, `disagrees` where it lies outside of that, `undecided` between."""
    if not found.known:
        return "undecided"
    if claim.kind != "depth":
        return "agrees" if found.low > 0 else "disagrees" if found.high < 0 else "undecided"
    low, high = claim.low - TOLERANCE, claim.high + TOLERANCE
    if found.low >= low and found.high <= high:
        return "agrees"
    return "disagrees" if found.high < low or found.low > high else "undecided"
