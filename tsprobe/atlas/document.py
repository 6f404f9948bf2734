"""The tables as one page of Markdown: answers first, then what they rest on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tsprobe.atlas import answers, figures
from tsprobe.atlas.draws import LEAST
from tsprobe.atlas.parts import Part
from tsprobe.atlas.pickers import LAST, READABLE
from tsprobe.atlas.published import TOLERANCE
from tsprobe.atlas.spec import AtlasSpec
from tsprobe.files import replace_text
from tsprobe.report.text import number

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Page:
    """What a document is made from. `config` is the file that the user gave."""

    spec: AtlasSpec
    parts: tuple[Part, ...]
    tables: dict[str, pd.DataFrame]
    config: str
    document: str  # as the command is to name it, or nothing


def write_document(page: Page, path: Path, pictures: Path) -> None:
    """Write the page, and its figures into the folder `pictures`. Raises `StorageError`."""
    drawn = _draw(page, pictures)
    shown = {name: str(Path(_relative(pictures, path.parent)) / file) for name, file in drawn.items()}
    environment = Environment(
        loader=PackageLoader("tsprobe", "atlas"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.globals["table"] = _markdown
    text = environment.get_template("document.md.j2").render(_content(page, shown))
    replace_text(path, text)


def modalities(page: Page) -> list[str]:
    return list(dict.fromkeys(page.tables["objectives"]["modality"]))


def _draw(page: Page, folder: Path) -> dict[str, str]:
    tables, drawn = page.tables, {}
    for modality in modalities(page):
        drawn[f"curves-{modality}"] = figures.curves_figure(tables["curves"], modality)
        if (tables["league"]["modality"] == modality).any():
            drawn[f"league-{modality}"] = figures.league_figure(tables["league"], modality)
    if len(tables["tradeoff"]):
        drawn["tradeoff"] = figures.tradeoff_figure(tables["tradeoff"])
    for name, text in drawn.items():
        replace_text(folder / f"{name}.svg", text)
    return {name: f"{name}.svg" for name in drawn}


def _relative(folder: Path, start: Path) -> str:
    import os

    return os.path.relpath(folder.resolve(), start.resolve())


def _content(page: Page, shown: dict[str, str]) -> dict[str, Any]:
    t, spec, kinds = page.tables, page.spec, modalities(page)
    finished = [part.name for part in page.parts if part.state == "finished"]
    command = f"tsprobe atlas {page.config}"

    def only(kind: str) -> str:
        names = [part.name for part in page.parts if part.kind == kind]
        return " ".join([command, *(f"--only {name}" for name in names)])

    def pictures(start: str, what: str) -> list[tuple[str, str]]:
        return [(f"{what}, {name.partition('-')[2]}", f) for name, f in shown.items() if name.startswith(start)]

    asked = [name for name in spec.alignments if name in finished]
    questions = [
        (answers.of_alignments(t["tradeoff"], spec, asked), [("Change by recipe and family", shown["tradeoff"])]
         if "tradeoff" in shown else [], only("alignment")),
        (answers.of_diagnostics(t["league"], t["carried_over"], kinds, spec), pictures("league", "Regret of picks"),
         only("study")),
        (answers.of_objectives(t["objectives"], t["published"], kinds), pictures("curves", "Score against depth"),
         only("study")),
    ]  # fmt: skip
    return {
        "command": command + (f" --document {page.document}" if page.document else ""), "spec": spec, "least": LEAST,
        "several": t["gaps"]["encoder"].nunique() > 1, "tolerance": TOLERANCE, "answers": questions,
        "blind": "inner folds alone choose the layers of all gaps, and shuffled test scores leave all "
        f"{len(t['picks']):,} picks as they are",
        "unread": _unread(t["regrets"]), "readable": READABLE,
        "missing": [part for part in page.parts if part.state != "finished"],
        "objectives": _objectives(t["objectives"]), "heads": _heads(t["heads"]),
        "published": _published(t["published"]), "league": _league(t["league"]), "tradeoff": _tradeoff(t["tradeoff"]),
        "left_out": [f"{part.name}: {line}" for part in page.parts for line in part.left_out],
    }  # fmt: skip


def _unread(regrets: pd.DataFrame) -> str:
    """How many encoders on tasks have no regret, as a task is not read out."""
    one = regrets[regrets["picker"] == LAST]
    return f"{int(one['regret'].isna().sum())} of {len(one)}"


Rows = list[dict[str, str]]


def _objectives(table: pd.DataFrame) -> Rows:
    return [
        {
            "modality": r["modality"], "objective": r["objective"], "family": r["family"], "tasks": str(r["tasks"]),
            "gap": answers.between(r, "gap"), "median depth": _plain(r, "depth"),
            "hidden": f"{r['hidden']} of {r['verdicts']}", "gap less untrained": answers.between(r, "less_untrained"),
        }
        for r in table.to_dict("records")
    ]  # fmt: skip


def _heads(table: pd.DataFrame) -> Rows:
    return [
        {"modality": r["modality"], "encoder": r["encoder"], "layer": r["layer"], "tasks": str(r["tasks"]),
         "change": answers.between(r, "change")} for r in table.to_dict("records")
    ]  # fmt: skip


def _published(table: pd.DataFrame) -> Rows:
    return [
        {
            "claim": r["claim"], "published": number(r["published_low"]) if r["published_low"] == r["published_high"]
            else f"{number(r['published_low'])} to {number(r['published_high'])}",
            "here": _plain(r, "found"), "on": f"{r['on']}: {r['encoders']}", "verdict": r["verdict"],
            "source": r["source"],
        }
        for r in table.to_dict("records")
    ]  # fmt: skip


def _league(table: pd.DataFrame) -> Rows:
    return [
        {
            "modality": r["modality"], "picker": r["picker"], "kind": r["kind"], "cases": str(r["cases"]),
            "regret": _plain(r, "regret"),
            "less last": answers.between(r, "less_last") if r["picker"] != "last" else "",
            "less middle": answers.between(r, "less_middle") if r["picker"] != "middle" else "",
            "Spearman": "" if math.isnan(r["spearman"]) else answers.between(r, "spearman"),
            "Kendall": "" if math.isnan(r["kendall"]) else answers.between(r, "kendall"), "verdict": r["verdict"],
        }
        for r in table[table["kind"] != "ends"].to_dict("records")
    ]  # fmt: skip


def _tradeoff(table: pd.DataFrame) -> Rows:
    return [
        {
            "alignment": r["alignment"], "encoder": r["encoder"], "control": r["control"], "family": r["family"],
            "to lift": "yes" if r["lifted"] and not r["control"] else "", "tasks": str(r["tasks"]),
            "change": answers.between(r, "change"), "kept": answers.between(r, "kept"),
            "retention": number(r["retention"]),
        }
        for r in table.to_dict("records")
    ]  # fmt: skip


def _plain(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    between = "" if math.isnan(low) else f" [{number(low)}, {number(high)}]"
    return f"{number(row[name])}{between}"


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return "Nothing."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(v).replace("|", "\\|") for v in r.values()] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
