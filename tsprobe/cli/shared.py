"""What the commands share: their options, tables, and lines for the user."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsprobe.errors import TsprobeError

if TYPE_CHECKING:
    from tsprobe.study import Study
    from tsprobe.study.spec import Tracking

app = typer.Typer(
    name="tsprobe",
    help="Look inside time-series encoders: where in the network is the answer, and does the final embedding hide it?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Nan(StrEnum):
    handle = "handle"
    error = "error"


Out = Annotated[Path | None, typer.Option(help="Output folder; by default runs/NAME_OF_THE_CONFIG.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU where there is one.")]
Resume = Annotated[bool, typer.Option("--resume/--fresh", help="Go on where a stopped run was, or forget it.")]
Missing = Annotated[
    Nan | None, typer.Option("--nan", help="handle: mask or interpolate missing values and count them; error: refuse.")
]


def overrides(set_: list[str] | None, device: str | None) -> tuple[str, ...]:
    return (*(set_ or ()), *([f"device={device}"] if device else ()))


def show_verdicts(study: Study) -> None:
    rows = []
    for v in study.verdicts.to_dict("records"):
        role = study.controls.get(v["encoder"], "")
        interval = "" if role.startswith("ba") else f"{v['gap']:+.3f}"
        if interval and not math.isnan(v["gap_low"]):  # one test series has none
            interval += f" [{v['gap_low']:+.3f}, {v['gap_high']:+.3f}]"
        readable = [v["encoder"], v["task"], v["metric"], f"{v['final_score']:.3f}", f"{v['chosen_score']:.3f}"]
        rows.append([*readable, v["chosen_layer"], interval, f"{v['p_adjusted']:.3f}", v["verdict"]])
    print_table(["encoder", "task", "metric", "final", "chosen", "layer", "gap", "p (Holm)", "verdict"], rows)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(*header, header_style="bold", box=None, pad_edge=False)
    styles = {"hidden": "bold yellow", "broken": "bold red", "missing": "red", "exposed": "green", "ok": "green"}
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    console.print(table)


def cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def say(line: str) -> None:
    print(line, file=sys.stderr)


def tracked(what: str, folder: Path, where: Tracking, log: Callable[[str], Any]) -> tuple[str, bool]:
    """A line on where a study or sweep is logged, and whether that failed; `log` is given the store's address."""
    if not where.enabled:
        return "MLflow:  off", False
    from tsprobe.tracking import default_uri

    uri = where.uri or default_uri(folder)
    try:
        log(uri)
    except TsprobeError as error:
        return f"MLflow:  {error}; the {what} itself is safe, run it again to log it", True
    return f"MLflow:  mlflow ui --backend-store-uri {uri}", False
