"""tsprobe: look inside time-series encoders.

Where in the network is the answer, does the final embedding hide it, and how sure are we?

    >>> import tsprobe as tp
    >>> encoder = tp.load_encoder("fracast")
    >>> encoder.layers[0].name, encoder.final
    ('embedding', 'norm')
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsprobe.api import align, probe
    from tsprobe.data.text import Question
    from tsprobe.encoders import load_encoder
    from tsprobe.study import Study
    from tsprobe.tasks import Classification, Dense, Forecasting, MultiLabel, Questions, Regression, load_task

__version__ = "0.1.0"

# Looked up when first used, so that `import tsprobe` costs next to nothing and needs no optional package.
_HOMES = {
    "Classification": "tsprobe.tasks",
    "Dense": "tsprobe.tasks",
    "Forecasting": "tsprobe.tasks",
    "MultiLabel": "tsprobe.tasks",
    "Question": "tsprobe.data.text",
    "Questions": "tsprobe.tasks",
    "Regression": "tsprobe.tasks",
    "Study": "tsprobe.study",
    "align": "tsprobe.api",
    "load_encoder": "tsprobe.encoders",
    "load_task": "tsprobe.tasks",
    "probe": "tsprobe.api",
}

__all__ = [
    "Classification", "Dense", "Forecasting", "MultiLabel", "Question", "Questions", "Regression", "Study",
    "align", "load_encoder", "load_task", "probe",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tsprobe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
