"""The kernels compile for real chips, and the compiler makes of them what their design asks for. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "compiled.py"


@pytest.mark.skipif(not hasattr(triton, "knobs"), reason="needs a triton that says where its disassembler is")
@pytest.mark.parametrize("capability", [80, 90])
def test_what_the_kernels_compile_to(capability: int) -> None:
    """Wide loads alone, nothing between threads in the loop over tokens, four programs a multiprocessor.

    Segments have weights, which are single values, and accumulators, which take registers.
    """
    command = [sys.executable, str(SCRIPT), "--json", "--capability", str(capability)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in json.loads(done.stdout)}
    assert len(rows) > 5
    for case, row in rows.items():
        assert row["spilled_in_loop"] <= 5 if "layer" in case else row["spilled_in_loop"] == 0, case
        if "segments" not in case:
            assert row["programs_a_multiprocessor"] >= 4, case
            masks = 8 if "gradient" in case else 0  # of single tokens
            assert row["loads"] == row["loads_of_16_bytes"] + masks, case
        if "norm" not in case and "query" not in case:  # these sum over the dimensions of a token
            assert row["barriers_in_loop"] == 0, case
