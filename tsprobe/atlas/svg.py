"""Shapes of a picture as SVG text. No background and colours of middle lightness: it reads on white and on black."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tsprobe.report.figures import NEUTRAL

FONT = "system-ui, sans-serif"


class Drawing:
    """Shapes in px, the origin above left. `write` gives the picture with a title for those who cannot see it."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []

    def text(
        self, x: float, y: float, words: object, *, anchor: str = "start", size: float = 11, colour: str = NEUTRAL,
        bold: bool = False,
    ) -> None:  # fmt: skip
        weight = ' font-weight="bold"' if bold else ""
        self._shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f"{escape(str(words))}</text>"
        )

    def line(self, a: tuple[float, float], b: tuple[float, float], colour: str = NEUTRAL, width: float = 1.0) -> None:
        self.path([a, b], colour, width)

    def path(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1.6, dash: str = "") -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._shapes.append(
            f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 3.0) -> None:
        self._shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0) -> None:
        self._shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
            f'fill-opacity="{opacity:.2f}"/>'
        )

    def write(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}" '
            f'width="{self.width:.0f}" height="{self.height:.0f}" role="img" font-family="{FONT}">'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", *self._shapes, "</svg>"]) + "\n"


def scaled(values: Sequence[float], low: float, high: float, start: float, end: float) -> list[float]:
    """Values between `low` and `high` as places between `start` and `end`; what lies outside is put on the edge."""
    span = (high - low) or 1.0
    return [start + (min(max(v, low), high) - low) / span * (end - start) for v in values]
