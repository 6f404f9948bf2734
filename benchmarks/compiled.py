"""What do the pooling kernels become for a GPU? Needs none: triton's compiler and its disassembler are asked.

    python benchmarks/compiled.py

Prints a table and writes `results/compiled-sm90.md` and `.json`. The kernels are compiled with the very arguments that
`tsprobe.pooling.launch` gives them on such a chip. Instructions are those of the loop over whole tiles, by value of a
token that a thread reads. They bound the speed: a multiprocessor issues four instructions a cycle, each for a warp, so
that at the bandwidth of a copy there is time for so many a value and no more. This says nothing about time: it counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported

import torch
import triton
from pooling import NAMES
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tsprobe.pooling import Norm, Slots, kernels, launch
from tsprobe.pooling.kinds import codes

RESULTS = Path(__file__).parent / "results"


class Chip(NamedTuple):
    """Of which the bound is reckoned: the H200."""

    capability: int = 90
    multiprocessors: int = 132
    hertz: float = 1.98e9
    bandwidth: float = 4.3e12  # bytes a second of a copy, reads and writes together

    def instructions(self, bytes_a_value: int) -> float:
        """How many a value can be issued while its bytes are read."""
        return self.multiprocessors * 4 * 32 * self.hertz / (self.bandwidth / bytes_a_value)


class Case(NamedTuple):
    shape: tuple[int, int, int]
    dtype: torch.dtype
    names: tuple[str, ...] = NAMES
    norm: str = ""
    query: bool = False
    gradient: bool = False

    def __str__(self) -> str:
        more = [*(name for name in self.names if name not in NAMES)]
        more += [f"after a {self.norm} norm"] * bool(self.norm) + ["with a query"] * self.query
        more += [f"gradient of {' and '.join(self.names)}"] * self.gradient
        return ", ".join([f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}", *more])


CASES = (
    Case((64, 1024, 1024), torch.bfloat16),
    Case((64, 1024, 1024), torch.float16),
    Case((64, 1024, 1024), torch.float32),
    Case((32, 8192, 768), torch.bfloat16),
    Case((64, 1024, 1024), torch.bfloat16, (*NAMES, "min")),
    Case((64, 1024, 1024), torch.bfloat16, (*NAMES, "segments4")),
    Case((64, 1024, 1024), torch.bfloat16, norm="rms"),
    Case((64, 1024, 1024), torch.bfloat16, norm="layer"),
    Case((64, 1024, 1024), torch.bfloat16, query=True),
    Case((64, 1024, 1024), torch.bfloat16, ("mean", "std"), gradient=True),
)


class Call(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


@contextmanager
def recorded(chip: Chip) -> Iterator[list[Call]]:
    """Calls of kernels on such a chip, which are not run."""
    calls: list[Call] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **keywords: calls.append(Call(self.kernel, grid, arguments, keywords))

    recorders = {name: Recorder(getattr(kernels, name)) for name in ("_pool", "_combine", "_backward")}
    chips = {
        "_programs": lambda _, registers: chip.multiprocessors * launch.resident(registers),
        "_limits": lambda _, how: {"maxnreg": how.registers},
    }
    with patch.multiple(kernels, **recorders), patch.multiple(launch, **chips):
        yield calls


def calls_of(case: Case, chip: Chip) -> list[Call]:
    rows, tokens, width = case.shape
    x = torch.empty(case.shape, dtype=case.dtype)
    slots = Slots.parse(case.names)
    share = torch.zeros(rows, tokens, slots.segments) if slots.segments else None
    one = torch.ones(width, dtype=case.dtype)
    norm = Norm(case.norm, one, one) if case.norm else None
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    with recorded(chip) as calls:
        if case.gradient:
            launch.backward(x, mask, None, dict.fromkeys(("constant", "slope", "center"), torch.zeros(rows, width)))
            return calls
        launch.pool(x, mask, share, codes(slots.kinds), 0, norm=norm, query=one if case.query else None)
    return calls


def compile_call(call: Call, chip: Chip) -> bytes:
    """Machine code, specialised as triton does at a launch: by types, by sizes that 16 divides, by the value 1."""
    names = call.kernel.arg_names
    values = dict(zip(names, call.arguments, strict=False)) | {n: v for n, v in call.keywords.items() if n in names}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        if isinstance(value, Tensor):
            kind = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8"}[
                value.dtype
            ]
            signature[name] = f"*{kind}"
        elif name in call.keywords or value == 1:
            signature[name], constants[(i,)] = "constexpr", value
            continue
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    options = {name: value for name, value in call.keywords.items() if name not in names}
    source = ASTSource(call.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", chip.capability, 32), options=options).asm["cubin"]


def tool(code: bytes, *options: str) -> str:
    """What cuobjdump says of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main_loop(code: bytes) -> list[str]:
    """Operations of the loop over whole tiles: the first of those with the most wide loads."""
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", tool(code, "-sass"))]
    loops = []
    for at, text in lines:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < at:
            body = [re.sub(r"^@!?\w+\s+", "", t).split()[0] for place, t in lines if int(target[1], 16) <= place <= at]
            loops.append((-sum(op.startswith("LDG.E.128") for op in body), int(target[1], 16), body))
    return min(loops)[2]


def measure(case: Case, chip: Chip) -> dict[str, Any]:
    call, *others = calls_of(case, chip)
    code = compile_call(call, chip)
    for other in others:
        compile_call(other, chip)  # that merges the parts: small, but it must compile
    used = {name.lower(): int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", tool(code, "--dump-resource-usage"))}
    body = main_loop(code)
    count = lambda *names: sum(op.startswith(names) for op in body)  # noqa: E731
    how, size = call.keywords, case.dtype.itemsize
    warps = how.get("num_warps", 4)
    values = how["TILE"] * how.get("LANES", 1) * how["BLOCK"] / (32 * warps)
    return {
        "case": str(case),
        "programs": call.grid[0] * call.grid[1],
        "registers": used["reg"],
        "programs_a_multiprocessor": launch.resident(used["reg"] * warps),
        "spilled_in_loop": count("LDL", "STL"),
        "barriers_in_loop": count("BAR"),
        "loads": count("LDG"),
        "loads_of_16_bytes": count("LDG.E.128"),
        "instructions_a_value": len(body) / values,
        "time_for": chip.instructions(size * (2 if case.gradient else 1)),  # which is written too
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print rows as JSON and write nothing")
    parser.add_argument("--capability", type=int, default=Chip().capability, help="of another chip; writes nothing")
    options = parser.parse_args()
    chip = Chip(options.capability)
    rows = [measure(case, chip) for case in CASES]
    if options.json:
        print(json.dumps(rows))
        return
    head = (
        f"triton {triton.__version__}, compute capability {chip.capability / 10}. Nothing is run. At the bandwidth of "
        f"a copy, {chip.bandwidth / 1e12} TB/s, {chip.multiprocessors} multiprocessors at {chip.hertz / 1e9} GHz can "
        "issue the instructions of the last column for each value read, or read and written."
    )
    table = [
        "| case | programs | registers | a multiprocessor runs | barriers, spills in the loop | loads of 16 bytes "
        "| instructions a value | time for |",
        "|---|---|---|---|---|---|---|---|",
    ]
    table += [
        f"| {r['case']} | {r['programs']:,} | {r['registers']} | {r['programs_a_multiprocessor']} "
        f"| {r['barriers_in_loop']}, {r['spilled_in_loop']} | {r['loads_of_16_bytes']} of {r['loads']} "
        f"| {r['instructions_a_value']:.1f} | {r['time_for']:.1f} |"
        for r in rows
    ]
    text = "\n".join(["# What the pooling kernels compile to", "", head, "", *table, ""])
    print(text)
    if options.capability == Chip().capability:
        (RESULTS / "compiled-sm90.md").write_text(text)
        (RESULTS / "compiled-sm90.json").write_text(json.dumps({"head": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
