"""`import tsprobe` is light, needs little, and the check of that can fail."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import tsprobe as tp

HEAVY = (
    "mlflow",
    "optuna",
    "ray",
    "sktime",
    "gluonts",
    "timm",
    "transformers",
    "triton.compiler",
    "sklearn",
    "plotly",
    "pandas",
)
BARE = ("torch", "numpy", "einops", "xarray")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)


def heavy_after(statement: str) -> list[str]:
    result = run(f"{statement}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])")
    assert result.returncode == 0, result.stderr
    return eval(result.stdout)  # a list that this test printed itself


def test_import_is_light() -> None:
    assert heavy_after("import tsprobe") == []


def test_the_check_of_light_imports_can_fail() -> None:
    assert heavy_after("import tsprobe, pandas") == ["pandas"]


@pytest.mark.parametrize(
    "statement",
    [
        "import tsprobe",
        "import tsprobe.capture, tsprobe.pooling, tsprobe.probes, tsprobe.stats, tsprobe.metrics, tsprobe.diagnostics",
        "from tsprobe import load_encoder, Classification",
    ],
)
def test_the_core_imports_where_only_torch_numpy_einops_xarray_are_installed(statement: str) -> None:
    blocker = """
        import importlib.abc, sys
        class Absent(importlib.abc.MetaPathFinder):
            names = {"sklearn", "pydantic", "yaml", "typer", "rich", "zarr", "sktime", "gluonts", "mlflow", "optuna",
                     "plotly", "transformers", "chronos", "fracast", "timm", "jaxtyping", "scipy", "triton", "numba"}
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in self.names:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        import torch, numpy, einops, xarray
        sys.meta_path.insert(0, Absent())
    """
    result = run(textwrap.dedent(blocker) + statement)
    assert result.returncode == 0, result.stderr


def test_public_names_are_there_and_unknown_ones_are_not() -> None:
    for name in tp.__all__:
        assert getattr(tp, name) is not None
    assert set(tp.__all__) <= set(dir(tp))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tp.nonsense  # noqa: B018
