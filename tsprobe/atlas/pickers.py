"""Ways to pick a layer, and what each of them costs on the test set.

Whoever picks sees `BLIND` columns alone: scores of inner folds, diagnostics, layers that few labels chose. The test set
is looked at afterwards, and once more by `check_blind`, which shuffles test scores and demands the same picks.

The regret of a pick is (best test score of any layer - test score of the picked layer) / (best test score - chance): a
share of what can be read out at all, so that tasks of unlike metrics can be averaged. A task that no layer reads better
than chance has none, nor one where the best layer is less than `READABLE` of the way from chance to a perfect score:
there the share is noise over noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from tsprobe.atlas.layers import BLIND, CASE, candidates
from tsprobe.errors import TsprobeError

if TYPE_CHECKING:
    import pandas as pd

LAST, MIDDLE, INNER, ANY = "last", "middle", "all labels", "any layer"
REFERENCES = {
    LAST: "the final layer, which users take today",
    MIDDLE: "the layer at half depth",
    INNER: "the best on inner folds of all training labels",
    ANY: "a layer drawn at random",
}
SIGNED, HIGHEST, LOWEST = "", " (highest)", " (lowest)"
FEWEST = 4  # layers over which there is a correlation
READABLE = 0.05
_SHUFFLE = 0


class LeakError(TsprobeError):
    """A pick that changes with the test scores."""


Picks = list[dict[str, Any]]


def few(n: int) -> str:
    return f"{n} labelled series"


def correlations(layers: pd.DataFrame, diagnostics: pd.DataFrame) -> pd.DataFrame:
    """Of each diagnostic, encoder and task: rank correlations across layers with the test score, and of Spearman's the
    one with scores of inner folds (`inner`), by which signs are chosen."""
    import pandas as pd

    keys = ["study", "encoder", "task", "layer"]
    joined = candidates(layers).merge(diagnostics, on=keys)
    rows = []
    for case, some in joined.groupby([*CASE, "diagnostic"], sort=False):
        value, score, inner = (some[name].to_numpy(float) for name in ("value", "score", "inner"))
        if len(some) < FEWEST or np.ptp(value) == 0:
            continue
        flat = np.ptp(score) == 0
        rows.append(
            dict(zip([*CASE, "diagnostic"], case, strict=True)) | {
                "layers": len(some),
                "spearman": math.nan if flat else float(stats.spearmanr(value, score).statistic),
                "kendall": math.nan if flat else float(stats.kendalltau(value, score).statistic),
                "inner": math.nan if np.ptp(inner) == 0 else float(stats.spearmanr(value, inner).statistic),
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=[*CASE, "diagnostic", "layers", "spearman", "kendall", "inner"])


def signs(correlated: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """Whether high or low is good, +1 or -1 by (modality, diagnostic, encoder): as the other encoders of the modality
    have it, by scores of their inner folds. None where there is no other one."""
    found = {}
    for (modality, diagnostic), some in correlated.dropna(subset="inner").groupby(["modality", "diagnostic"]):
        for encoder in correlated.loc[correlated["modality"] == modality, "encoder"].unique():
            others = some[some["encoder"] != encoder]
            if len(others):
                mean = others.groupby("encoder")["inner"].mean().mean()
                found[modality, diagnostic, encoder] = 1.0 if mean >= 0 else -1.0
    return found


def pick_all(
    blind: pd.DataFrame, diagnostics: pd.DataFrame, sign: dict[tuple[str, str, str], float], labels: pd.DataFrame
) -> pd.DataFrame:
    """A row for each case, picker and draw with the layer that is picked; `blind` has the columns of `BLIND` alone."""
    import pandas as pd

    measured = dict(list(diagnostics.groupby(["study", "encoder", "task"])))
    chosen = dict(list(labels.groupby(["study", "encoder", "task"])))
    rows: Picks = []
    for case, some in blind.groupby(CASE, sort=False):
        named = dict(zip(CASE, case, strict=True))
        key = (named["study"], named["encoder"], named["task"])
        for picker, draw, layer in _picks(some, measured.get(key), chosen.get(key), sign):
            rows.append(named | {"picker": picker, "draw": draw, "layer": layer})
    return pd.DataFrame(rows, columns=[*CASE, "picker", "draw", "layer"])


def _picks(
    some: pd.DataFrame, measured: pd.DataFrame | None, chosen: pd.DataFrame | None, sign: dict[Any, float]
) -> Iterator[tuple[str, int, str]]:
    yield LAST, 0, _last(some)
    yield MIDDLE, 0, _middle(some)
    yield INNER, 0, best_inner(some)
    for draw, layer in enumerate(some["layer"]):
        yield ANY, draw, layer
    if chosen is not None:
        for row in chosen.itertuples():
            if row.layer in set(some["layer"]):
                yield few(row.labels), row.draw, row.layer
    if measured is None:
        return
    first = some.iloc[0]
    for diagnostic, values in measured[measured["layer"].isin(some["layer"])].groupby("diagnostic", sort=False):
        if len(values) < FEWEST or np.ptp(values["value"]) == 0:
            continue
        highest = str(values.loc[values["value"].idxmax(), "layer"])
        lowest = str(values.loc[values["value"].idxmin(), "layer"])
        yield f"{diagnostic}{HIGHEST}", 0, highest
        yield f"{diagnostic}{LOWEST}", 0, lowest
        way = sign.get((first.modality, diagnostic, first.encoder))
        if way is not None:
            yield f"{diagnostic}{SIGNED}", 0, highest if way > 0 else lowest


def _last(some: pd.DataFrame) -> str:
    return str(some.loc[some["final"], "layer"].iloc[0])


def _middle(some: pd.DataFrame) -> str:
    trunk = some[some["trunk"]]
    return str(trunk.loc[(trunk["place"] - 0.5).abs().idxmin(), "layer"])


def best_inner(some: pd.DataFrame) -> str:
    """The layer with the best score of inner folds; among equals the final one, then the deeper."""
    best = some["inner"].max()
    equals = some[some["inner"] >= best]
    return str((equals[equals["final"]] if equals["final"].any() else equals)["layer"].iloc[-1])


def regrets(layers: pd.DataFrame, picks: pd.DataFrame) -> pd.DataFrame:
    """What each pick costs on the test set, averaged over draws: `lost` in units of the metric, `regret` as a share,
    NaN where a task is not read out."""
    of_case = candidates(layers).groupby(CASE, sort=False)["score"]
    scored = candidates(layers).assign(oracle=of_case.transform("max"))
    joined = picks.merge(scored[[*CASE, "layer", "place", "score", "oracle", "chance"]], on=[*CASE, "layer"])
    readable = joined["oracle"] - joined["chance"]
    joined["lost"] = joined["oracle"] - joined["score"]
    perfect = np.where(joined["metric"].str.startswith("neg_"), 0.0, 1.0)  # an error of nothing, or the whole score
    read = readable > READABLE * (perfect - joined["chance"]).clip(lower=0)
    joined["regret"] = joined["lost"] / readable.where(read & (readable > 0))
    means = {"place": "mean", "score": "mean", "oracle": "first", "lost": "mean", "regret": "mean"}
    return joined.groupby([*CASE, "picker"], sort=False).agg(means).reset_index()


Pick = Callable[..., "pd.DataFrame"]


def picked(
    layers: pd.DataFrame, diagnostics: pd.DataFrame, labels: pd.DataFrame, pick: Pick = pick_all
) -> pd.DataFrame:
    """All picks, by what may be chosen by."""
    some = candidates(layers)
    blind = some[list(BLIND)]
    return pick(blind, diagnostics, signs(correlations(layers, diagnostics)), labels)


def check_blind(layers: pd.DataFrame, diagnostics: pd.DataFrame, labels: pd.DataFrame, pick: Any = picked) -> None:
    """Raise `LeakError` if any pick changes when test scores are shuffled among the layers and tasks."""
    rng = np.random.default_rng(_SHUFFLE)
    other = layers.assign(score=rng.permutation(layers["score"].to_numpy()), chance=0.0)
    before, after = (pick(table, diagnostics, labels) for table in (layers, other))
    if not before.equals(after):
        differ = before["layer"].to_numpy() != after["layer"].to_numpy() if len(before) == len(after) else [True]
        who = before["picker"].to_numpy()[np.flatnonzero(differ)[0]] if len(before) == len(after) else "a picker"
        raise LeakError(f"the layer picked by {who!r} changes with the test scores: a choice has seen the test set")
