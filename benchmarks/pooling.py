"""What pooling costs, in multiples of one read of the tokens measured in the same run.

    python benchmarks/pooling.py                    # on the GPU where there is one, else on the CPU
    python benchmarks/pooling.py --device cpu --compile

Writes `benchmarks/results/pooling-<device>.json` and `.md`. Each way is timed once a round, ways in turn, on buffers
that rotate so that no read finds its tokens in a cache; the figure is the median over rounds, and the spread its
quartiles. The ratio of the fastest rounds stands beside that of the medians: where other work shares the machine, a
thread that waits for its turn costs more than any pooling, and only some rounds are free of it. On a GPU the calls of
a round are captured in a graph, so that the time is that of kernels and not of Python.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsprobe.pooling import Norm, Slots, native_state, pool, reference
from tsprobe.types import TokenMap

NAMES = ("mean", "max", "std", "first", "last")
SHAPES = {
    "cpu": [(32, 512, 768), (8, 2048, 768), (32, 33, 512)],
    "cuda": [(64, 1024, 1024), (256, 1024, 1024), (32, 8192, 768), (1, 100_000, 768), (512, 33, 512)],
}
DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16, torch.float32)}
HELD = 512 << 20  # bytes that the rotating buffers hold together, at the least: more than any cache
Way = Callable[[Tensor], object]


class Row(NamedTuple):
    """One way on one shape: milliseconds a call, and that time over one read of the tokens."""

    shape: tuple[int, ...]
    dtype: str
    way: str
    milliseconds: float
    low: float
    high: float
    ratio: float
    fastest: float  # the same ratio of the fastest rounds
    bandwidth: float  # share of the copy's bandwidth at which the tokens are read


def token_map(rows: int, tokens: int, device: str) -> TokenMap:
    steps = torch.arange(tokens, device=device).expand(rows, tokens)
    return TokenMap(torch.ones(rows, tokens, dtype=torch.bool, device=device), steps, steps + 1)


def separate(x: Tensor) -> object:
    """What is commonly written: an operation a statistic."""
    return x.mean(1), x.amax(1), x.std(1, correction=0), x[:, 0].clone(), x[:, -1].clone()


def definition(x: Tensor) -> Tensor:
    """The five statistics without a mask, in float32, for the compiler to fuse."""
    v = x.float()
    mean = v.mean(1)
    std = (v - mean[:, None]).square().mean(1).sqrt()
    return torch.stack([mean, v.amax(1), std, v[:, 0], v[:, -1]], 1)


def one_read(x: Tensor) -> Tensor:
    """Every byte once, whatever the type: a sum of 16-bit values would not run at the speed of memory."""
    return x.view(torch.float32).sum()


def ways(shape: tuple[int, int, int], device: str, *, compiled: bool) -> dict[str, Way]:
    rows, tokens, width = shape
    tokens_map, slots = token_map(rows, tokens, device), Slots.parse(NAMES)

    def by(path: str, **more: object) -> Way:
        return lambda x: pool(x, tokens_map, slots, path=path, **more)  # type: ignore[arg-type]

    into: dict[torch.dtype, Tensor] = {}

    def copy(x: Tensor) -> Tensor:
        return into.setdefault(x.dtype, torch.empty_like(x)).copy_(x)

    found: dict[str, Way] = {"one read": one_read, "copy": copy}
    if device == "cuda":
        norm = Norm("layer", torch.ones(width, device=device), torch.zeros(width, device=device))
        borders = torch.linspace(0, tokens, 5, device=device).expand(rows, 5)
        segmented = Slots.parse((*NAMES, "segments4"))
        found |= {
            "triton": by("triton"),
            "triton after a LayerNorm": by("triton", norm=norm),
            "triton with a query": by("triton", query=torch.ones(width, device=device) / width),
            "triton with 4 segments": lambda x: pool(x, tokens_map, segmented, borders, "triton"),
        }
    else:
        if native_state().function is not None:
            found["native"] = by("native")
        found["blocked torch"] = by("blocked torch")
    found |= {"definition": lambda x: reference.pool(x, tokens_map, slots), "separate operations": separate}
    if compiled:
        # A function of its own for each shape: a shared one would be compiled for all sizes at the second.
        found["torch.compile"] = torch.compile(lambda x: definition(x), dynamic=False)
    return found


def captured(way: Way, buffers: list[Tensor]) -> Callable[[], None]:
    """Every buffer once, as a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for x in buffers:
            way(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x in buffers:
            way(x)
    return graph.replay


def timer(way: Way, buffers: list[Tensor], device: str) -> Callable[[], float]:
    """Seconds a call, of one buffer after the other."""
    if device == "cpu":
        turn = itertools.cycle(buffers)

        def measure() -> float:
            x = next(turn)
            time.sleep(5e-4)  # others' turns on a shared machine end here rather than in the middle of a call
            begin = time.perf_counter()
            way(x)
            return time.perf_counter() - begin

        return measure
    try:
        run = captured(way, buffers)
    except RuntimeError:  # the definition asks whether all tokens are real, which a graph cannot answer
        torch.cuda.synchronize()

        def run() -> None:
            for x in buffers:
                way(x)

    def measure_events() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / len(buffers)

    return measure_events


def measure(shape: tuple[int, int, int], dtype: torch.dtype, device: str, rounds: int, *, compiled: bool) -> list[Row]:
    size = torch.Size(shape).numel() * dtype.itemsize
    count = max(12, -(-HELD // size))
    buffers = [torch.randn(shape, device=device, dtype=torch.float32).to(dtype) for _ in range(count)]
    with torch.inference_mode():
        found = ways(shape, device, compiled=compiled)
        apart = count // len(found)  # or one way would leave its tokens in the cache to the next
        timers = {
            name: timer(way, buffers[i * apart :] + buffers[: i * apart], device)
            for i, (name, way) in enumerate(found.items())
        }
        seconds: dict[str, list[float]] = {name: [] for name in timers}
        for turn in range(rounds + 3):
            for name, run in timers.items():
                taken = run()
                if turn >= 3:  # the first rounds compile and fill the allocator
                    seconds[name].append(taken)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        low, _, high = statistics.quantiles(values, n=4)
        bandwidth = (size / middle[name]) / (2 * size / middle["copy"])
        if name == "copy":
            bandwidth = 1.0
        took, low, high = (round(1e3 * value, 4) for value in (middle[name], low, high))
        ratio = round(middle[name] / middle["one read"], 2)
        fastest = round(min(values) / min(seconds["one read"]), 2)
        rows.append(
            Row(shape, str(dtype).removeprefix("torch."), name, took, low, high, ratio, fastest, round(bandwidth, 3))
        )
    return rows


def describe(device: str) -> dict[str, object]:
    facts: dict[str, object] = {"torch": torch.__version__, "device": torch_device_name(device)}
    if device == "cpu":
        facts |= {"threads": torch.get_num_threads(), "native": native_state().detail}
    return facts


def torch_device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.machine()


def lines(rows: list[Row], facts: dict[str, object]) -> Iterator[str]:
    yield f"# Pooling ({', '.join(NAMES)}) on {facts['device']}\n"
    yield ", ".join(f"{key} {value}" for key, value in facts.items() if key != "device") + "\n"
    yield "Ratio: median time over that of one read of the same tokens in the same run; fastest: that of the fastest"
    yield "rounds. Bandwidth: bytes of the tokens a second over the bytes a second that a copy moves, reads and writes"
    yield "together. In brackets the quartiles.\n"
    for (shape, dtype), part in itertools.groupby(rows, lambda row: (row.shape, row.dtype)):
        yield f"## {list(shape)}, {dtype}\n"
        yield "| way | milliseconds | ratio | fastest | bandwidth |"
        yield "|---|---|---|---|---|"
        for row in part:
            took = f"{row.milliseconds:.3g} ({row.low:.3g} to {row.high:.3g})"
            yield f"| {row.way} | {took} | {row.ratio:.2f} | {row.fastest:.2f} | {row.bandwidth:.0%} |"
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--compile", action="store_true", help="on a CPU too (always on a GPU); minutes longer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    rows: list[Row] = []
    for shape, dtype in itertools.product(SHAPES[chosen.device], DTYPES[chosen.device]):
        compiled = chosen.compile or chosen.device == "cuda"
        rows += measure(shape, dtype, chosen.device, chosen.rounds, compiled=compiled)
    facts = describe(chosen.device)
    text = "\n".join(lines(rows, facts))
    print(text)
    chosen.out.mkdir(parents=True, exist_ok=True)
    name = "cpu" if chosen.device == "cpu" else re.sub(r"[^a-z0-9]+", "-", str(facts["device"]).lower()).strip("-")
    (chosen.out / f"pooling-{name}.md").write_text(text)
    (chosen.out / f"pooling-{name}.json").write_text(
        json.dumps({"facts": facts, "rows": [row._asdict() for row in rows]}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
