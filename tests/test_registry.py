"""What `tsprobe list encoders` says of the families: sizes, licences, and what is missing here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tsprobe.cli import app
from tsprobe.encoders import Card, list_encoders, load_encoder, registry
from tsprobe.encoders.registry import Size, _short
from tsprobe.errors import MissingPackageError


def card(**changes):
    given = {"package": "numpy", "also": (), "extra": None, **changes}
    return Card("x:ID", "jepa", code_licence="MIT", weights_licence="MIT", final_is="the last", **given)


def test_every_family_tells_objective_licences_and_how_to_get_it():
    rows = {row["name"]: row for row in list_encoders()}
    for family in (
        "timesfm-2.0",
        "timesfm-2.5",
        "timesfm-3",
        "moment",
        "moirai-2",
        "ttm",
        "sundial",
        "time-moe",
        "timer",
    ):
        row = rows[f"{family}:ID_OR_FOLDER"]
        assert row["sizes"], family
        assert row["install"], family
        assert row["objective"] == ("reconstruction" if family == "moment" else "forecasting")
        assert row["code_licence"] in ("Apache-2.0", "MIT")
        assert row["weights_licence"].startswith(("Apache-2.0", "MIT", "CC-BY-NC-4.0", "timesfm-non-commercial"))
    assert rows["moment:ID_OR_FOLDER"]["sizes"].splitlines()[2] == "large 24 x 1024, 341M"


@pytest.mark.parametrize(
    ("made", "missing", "install"),
    [
        (card(), None, "pip install numpy"),
        (card(package=None), None, ""),
        (card(package="no_such_package"), "no_such_package", "pip install no_such_package"),
        (card(package="no_such_package", extra="models"), "no_such_package", 'pip install "tsprobe[models]"'),
        (card(package="no_such", install_as="such[torch]>=3"), "no_such", 'pip install "such[torch]>=3"'),
        (card(also=("sktime.libs.timer",)), None, "pip install numpy"),
        (card(also=("sktime.libs.no_such",), extra="models"), "sktime.libs.no_such", "pip install --upgrade sktime"),
        (card(package=None, also=("no.such.part",)), "no.such.part", "pip install --upgrade no"),
    ],
)
def test_what_is_missing_and_what_brings_it(made, missing, install):
    assert (made.missing, made.install) == (missing, install)


def test_looking_for_a_part_of_a_package_imports_nothing():
    code = (
        "import sys; from tsprobe.encoders.registry import _is_here; "
        "print(_is_here('sktime.libs.uni2ts.moirai2_module'), _is_here('sktime.libs.no'), 'sktime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]


def test_a_family_without_its_part_says_what_to_install(monkeypatch):
    here = registry._is_here
    monkeypatch.setattr(registry, "_is_here", lambda module: module != "sktime.libs.timer" and here(module))
    with pytest.raises(MissingPackageError, match=r"timer:x needs the package 'sktime.libs.timer'.*--upgrade sktime"):
        load_encoder("timer:x")
    row = next(row for row in list_encoders() if row["name"].startswith("timer:"))
    assert (row["installed"], row["install"]) == (False, "pip install --upgrade sktime")


def test_the_table_has_a_line_for_each_family_and_size(capsys, monkeypatch):
    monkeypatch.setattr(registry, "_is_here", lambda module: module.partition(".")[0] not in ("timesfm3", "toto"))
    app(["list", "encoders"], standalone_mode=False)
    printed = capsys.readouterr().out
    for words in (
        "blocks x width, parameters",
        "large 24 x 1024, 341M",
        "CC-BY-NC-4.0",
        'no: pip install "timesfm[torch]>=3"',
        "TSPROBE_ALLOW_WORKERS=1",
    ):
        assert words in printed


def test_sizes_are_told_shortly():
    assert [_short(n) for n in (805, 85_001, 805_280, 8_653_696, 231_289_280, 1_203_000_000)] == [
        "805", "85k", "805k", "8.7M", "231M", "1.2B"
    ]  # fmt: skip
    assert str(Size("", 10, 64, 85_001)) == "10 x 64, 85k"
