"""From a spec to a folder: the parts, the tables, the figures and the document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tsprobe.atlas import costs, hidden, labels, published
from tsprobe.atlas.document import Page, write_document
from tsprobe.atlas.layers import diagnostic_table, layer_table
from tsprobe.atlas.league import carried_over, league
from tsprobe.atlas.parts import Part, run_parts
from tsprobe.atlas.pickers import check_blind, correlations, picked, regrets
from tsprobe.atlas.spec import AtlasSpec
from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.study.progress import Stage, silent
from tsprobe.study.result import write_table

DOCUMENT = "ATLAS.md"


@dataclass(frozen=True)
class Atlas:
    """What an atlas left in its folder. As long as no study is finished there are no tables, and no document."""

    folder: Path
    document: Path | None
    parts: tuple[Part, ...]
    tables: dict[str, pd.DataFrame]

    @property
    def failed(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.state == "failed")


def run_atlas(
    spec: AtlasSpec,
    folder: Path,
    *,
    only: tuple[str, ...] = (),
    document: Path | None = None,
    config: str = "CONFIG",
    stage: Stage = silent,
) -> Atlas:
    """Run the parts that are not finished (of `only`, if it names some), then write tables, figures and the document.

    The document goes to `folder/ATLAS.md` with its figures in `folder/figures/`, or to `document`, with these in a
    folder of its name beside it. Raises `UnknownNameError` for a part that there is not, `SpecError` for a document
    that is no Markdown, and `LeakError` if a layer was picked by its test score.
    """
    for name in only:
        if name not in spec.parts:
            raise UnknownNameError("part of the atlas", name, spec.parts)
    path = document or folder / DOCUMENT
    if path.suffix != ".md":
        raise SpecError(f"--document {path}: the document is Markdown, name a file that ends in .md")
    parts = tuple(run_parts(spec, folder, only, stage))
    if not any(part.kind == "study" and part.state == "finished" for part in parts):
        return Atlas(folder, None, parts, {})
    tables = make_tables(spec, folder, parts)
    for name, table in tables.items():
        write_table(folder / "tables" / f"{name}.csv", table.to_dict("records"), tuple(table.columns))
    pictures = path.with_suffix("").with_name(path.stem.lower()) if document else folder / "figures"
    write_document(Page(spec, parts, tables, config, str(document or "")), path, pictures)
    return Atlas(folder, path, parts, tables)


def make_tables(spec: AtlasSpec, folder: Path, parts: tuple[Part, ...]) -> dict[str, pd.DataFrame]:
    """All tables, from the folders of the finished parts, of which one is a study. Raises `LeakError`."""
    finished = {part.name for part in parts if part.state == "finished"}
    studies = {name: part.modality for name, part in spec.studies.items() if name in finished}
    layers = pd.concat([layer_table(name, kind, folder / name) for name, kind in studies.items()], ignore_index=True)
    measured = pd.concat([diagnostic_table(name, folder / name, layers) for name in studies], ignore_index=True)
    few = pd.concat(
        [pd.read_csv(folder / name / labels.FILE).assign(study=name) for name in studies], ignore_index=True
    )
    gaps = pd.concat([hidden.gap_table(n, kind, folder / n) for n, kind in studies.items()], ignore_index=True)
    check_blind(layers, measured, few)
    picks, correlated = picked(layers, measured, few), correlations(layers, measured)
    lost = regrets(layers, picks)
    return {
        "layers": layers,
        "gaps": gaps,
        "objectives": hidden.by_objective(gaps, spec),
        "curves": hidden.curves(layers),
        "heads": hidden.heads(layers, spec),
        "published": published.compared(gaps, spec),
        "picks": picks,
        "correlations": correlated,
        "regrets": lost,
        "league": league(lost, correlated, spec),
        "carried_over": carried_over(correlated, lost, spec),
        # to a millionth: float32 features leave noise where a control changes nothing
        "tradeoff": costs.tradeoff_table(spec, folder, tuple(n for n in spec.alignments if n in finished)).round(6),
    }
