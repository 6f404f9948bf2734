"""The answers in words, which follow from intervals by rule. Every number in them comes out of the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsprobe.atlas import costs, hidden
from tsprobe.atlas.league import fewest_labels
from tsprobe.atlas.pickers import INNER, LAST, MIDDLE
from tsprobe.atlas.spec import AtlasSpec
from tsprobe.report.text import count, number

if TYPE_CHECKING:
    import pandas as pd

BETTER = "better than last and middle"


@dataclass(frozen=True)
class Answer:
    """A question, what the intervals say of it in a sentence, the evidence line by line, and what would change it."""

    question: str
    headline: str
    evidence: tuple[str, ...]
    change: str


def between(row: Any, name: str, *, signed: bool = True) -> str:
    """`+0.012 [+0.004, +0.020]`; without an interval where there are too few tasks for one."""
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(low):
        return f"{number(value, signed=signed)} (too few tasks for an interval)"
    return f"{number(value, signed=signed)} [{number(low, signed=signed)}, {number(high, signed=signed)}]"


def sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def listed(names: Sequence[str]) -> str:
    names = [str(name) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


# What alignment keeps


def of_alignments(tradeoff: pd.DataFrame, spec: AtlasSpec, asked: Sequence[str]) -> Answer:
    question = (
        "Can alignment tuning preserve all useful intermediate features, or does each alignment privilege one family?"
    )
    if not len(tradeoff):
        why = "nothing was hidden, so that nothing was tuned" if asked else "the atlas has no finished alignment"
        return Answer(question, f"No answer: {why}.", (), "An alignment that tunes an encoder.")
    own = tradeoff[tradeoff["control"] == ""]
    found = {name: costs.privilege(some, spec) for name, some in own.groupby("alignment", sort=False)}
    recipe = dict(zip(own["alignment"], own["recipe"], strict=True))
    evidence = tuple(
        _alignment(name, recipe[name], one, own[own["alignment"] == name], spec) for name, one in found.items()
    )
    ways: dict[str, list[str]] = {}
    for name, one in found.items():
        ways.setdefault(one["verdict"], []).append(name)
    said = {
        "privileges": "lifts one family at the cost of another", "loses": "loses some of what hidden layers had",
        "keeps": "keeps everything that the best hidden layers had", "undecided": "is undecided",
    }  # fmt: skip
    parts = [
        f"{listed(names)}: {said[way]}" for way, names in sorted(ways.items(), key=lambda w: list(said).index(w[0]))
    ]
    if ways.get("keeps"):
        kept = listed([f"{name} did in {_families_of(own, name)}" for name in ways["keeps"]])
        headline = (
            f"Alignment can preserve all that was asked about: {kept}, to within {number(spec.margin)} of the score"
        )
    elif ways.get("privileges") or ways.get("loses"):
        headline = "No alignment here is shown to preserve all of it"
    else:
        headline = "Undecided"
    return Answer(question, f"{headline}. {'; '.join(parts)}.", evidence, _change_alignments(found, spec))


def _families_of(own: pd.DataFrame, name: str) -> str:
    families = own[(own["alignment"] == name) & (own["family"] != costs.ALL)]["family"]
    return listed(list(families))


def _alignment(name: str, recipe: str, one: dict[str, Any], rows: pd.DataFrame, spec: AtlasSpec) -> str:
    families = rows[rows["family"] != costs.ALL]
    target = ", ".join(f"{r['family']} {between(r, 'change')}" for r in families[families["lifted"]].to_dict("records"))
    rest = families[~families["lifted"]]
    elsewhere = ", ".join(f"{r['family']} {between(r, 'change')}" for r in rest.to_dict("records"))
    whole = rows[rows["family"] == costs.ALL].iloc[0]
    text = f"**{name}** ({recipe}, {count(int(whole['seeds']), 'tuning')}): to lift: {target or 'not in the study'}"
    text += f"; elsewhere: {elsewhere}" if elsewhere else ""
    text += f". Output less the best hidden layer, over {one['tasks']} tasks: {between(whole, 'kept')}"
    return f"{text}. Verdict: {one['verdict']}."


def _change_alignments(found: dict[str, dict[str, Any]], spec: AtlasSpec) -> str:
    wanted = [
        f"{name} would need about {_tasks_needed(one['kept'], -spec.margin, one['tasks'])} tasks"
        for name, one in found.items() if one["verdict"] == "undecided" and one["kept"].known
    ]  # fmt: skip
    more = f"; {'; '.join(wanted)} to decide at the size that was found" if wanted else ""
    return (
        "A recipe whose change has an interval above 0 in one family and none below 0 in another, and whose output is "
        f"not more than {number(spec.margin)} under the best hidden layers{more}. Other encoders: every alignment here "
        "tuned a small one."
    )


def _tasks_needed(found: Any, threshold: float, tasks: int) -> str:
    distance = abs(found.value - threshold)
    if distance == 0:
        return "infinitely many"
    return str(math.ceil(tasks * max(1.0, ((found.high - found.low) / 2 / distance) ** 2)))


# Which diagnostics


def of_diagnostics(league: pd.DataFrame, carried: pd.DataFrame, modalities: Sequence[str], spec: AtlasSpec) -> Answer:
    question = "Which layerwise diagnostics should be standard when evaluating a new encoder?"
    evidence: list[str] = []
    headlines = []
    for modality in modalities:
        own = league[league["modality"] == modality]
        measures = own[own["kind"] == "diagnostic"]
        good = list(measures.loc[measures["verdict"] == BETTER, "picker"])
        if not len(measures):
            headlines.append(f"{modality}: no diagnostic was measured")
            continue
        if good:
            headlines.append(f"{modality}: {listed(good)} picked better layers than the last and the middle one")
        else:
            headlines.append(f"{modality}: none is shown to pick better layers than both the last and the middle one")
        evidence += _of_modality(own, modality, spec)
    evidence += [
        f"From {listed(sorted(modalities))}: the {row['what']} of {row['diagnostics']} diagnostics correlates by "
        f"{between(row, 'correlation')}: "
        + ("it carries over." if row["correlation_low"] > 0 else "it is turned round." if row["correlation_high"] < 0
           else "whether it carries over is undecided.")
        for row in carried.to_dict("records")
    ]  # fmt: skip
    return Answer(
        question, sentence("; ".join(headlines)), tuple(evidence),
        "More encoders: a sign is chosen by the others, and intervals run over encoders. A measure becomes standard "
        "when its regret, less that of the last and of the middle layer, has an interval below 0, at a level that is "
        "divided by the number of measures.",
    )  # fmt: skip


def _of_modality(own: pd.DataFrame, modality: str, spec: AtlasSpec) -> list[str]:
    by = own.set_index("picker")
    lines = [
        f"{modality}: regret of picking the {name} layer {between(by.loc[name], 'regret', signed=False)}"
        for name in (LAST, MIDDLE)
    ]
    if INNER in by.index:
        lines[-1] += f", of choosing on inner folds of all labels {between(by.loc[INNER], 'regret', signed=False)}"
    lines = ["; ".join(lines) + f" ({int(by.loc[LAST, 'encoders'])} encoders, {int(by.loc[LAST, 'tasks'])} tasks)."]
    measures = own[own["kind"] == "diagnostic"]
    best = measures.iloc[0]
    lines.append(
        f"{modality}: the best diagnostic is {best['picker']}, regret {between(best, 'regret', signed=False)}; less "
        f"that of the last layer {between(best, 'less_last')}, of the middle one {between(best, 'less_middle')}."
    )
    ranked = measures[(measures["spearman_low"] > 0) | (measures["spearman_high"] < 0)]
    lines.append(
        f"{modality}: rank correlation with the scores leaves out 0 for "
        + (", ".join(f"{r['picker']} {between(r, 'spearman')}" for r in ranked.to_dict("records")) or "none")
        + ": worth showing as a description, beside the labels that decide."
    )
    n = fewest_labels(own, modality, spec)
    lines.append(
        f"{modality}: " + (f"{n} labelled series pick better layers than the last and the middle one."
        if n else f"up to {max(spec.labels)} labelled series are not shown to pick better layers than both.")
    )  # fmt: skip
    return lines


# Which objectives


def of_objectives(table: pd.DataFrame, compared: pd.DataFrame, modalities: Sequence[str]) -> Answer:
    question = (
        "Does the hidden-features pattern appear in encoders trained with forecasting, reconstruction, contrastive or "
        "JEPA objectives?"
    )
    evidence, headlines = [], []
    whole = table[table["family"] == hidden.ALL]
    for modality in modalities:
        own = whole[whole["modality"] == modality]
        ways: dict[str, list[str]] = {}
        for row in own.to_dict("records"):
            ways.setdefault(pattern(row), []).append(row["objective"])
            evidence.append(_objective(row, modality))
        headlines.append(f"{modality}: " + "; ".join(f"{way} in {listed(names)}" for way, names in ways.items()))
    counts = compared["verdict"].value_counts()
    said = ", ".join(f"{counts.get(way, 0)} {way}" for way in ("agrees", "disagrees", "undecided"))
    evidence.append(f"Beside published results, {len(compared)} claims: {said} (table below).")
    return Answer(
        question, sentence(". ".join(headlines)), tuple(evidence),
        "Other encoders of the same objective: most objectives here have one, so that an interval runs over tasks, and "
        "speaks of this encoder. An interval of the gap that leaves 0, or one of the difference to the untrained copy.",
    )  # fmt: skip


def _objective(row: dict[str, Any], modality: str) -> str:
    return (
        f"{modality}, {row['objective']} ({count(row['encoders'], 'encoder')}, {count(row['tasks'], 'task')}): gap "
        f"{between(row, 'gap')}, median depth of the chosen layer {between(row, 'depth', signed=False)}, hidden in "
        f"{row['hidden']} of {count(row['verdicts'], 'verdict')}; gap less that of the untrained copy "
        f"{between(row, 'less_untrained')}: {pattern(row)}."
    )


def pattern(row: dict[str, Any]) -> str:
    """By the intervals of the gap and of what it has over that of the untrained copy."""
    if math.isnan(row["gap_low"]):
        return "undecided"
    if row["gap_low"] > 0:
        return (
            "hidden, more than without training"
            if row["less_untrained_low"] > 0
            else "hidden, not shown to be more than without training"
        )
    return "undecided" if row["gap_high"] > 0 else "not hidden"
