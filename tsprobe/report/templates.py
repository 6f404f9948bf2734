"""The templates of the pages, and the filters that they use. All that comes from names is escaped."""

from __future__ import annotations

from importlib import resources
from typing import Any

from tsprobe.report import text


def environment() -> Any:
    import jinja2

    def read(name: str) -> str:
        return resources.files("tsprobe.report").joinpath(name).read_text(encoding="utf-8")

    env = jinja2.Environment(
        loader=jinja2.FunctionLoader(read), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    env.filters.update(number=text.number, signed=lambda x: text.number(x, signed=True), p=text.p_value)
    return env
