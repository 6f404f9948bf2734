"""What does reading all layers cost over the bare forward pass of the same model on the same batches?

`python benchmarks/extraction.py` prints a table and rewrites `results/extraction-<device>.md` and `.json`. The two go
first in turn; a ratio is the median over rounds of one round's ratio. "Inside pooling" is the time spent in `pool`,
over the rest of the pass: it says more than the ratio where two equal passes differ by several percent.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tsprobe as tp
from tsprobe.capture import Reading, extract, reading
from tsprobe.capture.windows import batches, cut, load
from tsprobe.data.panel import Panel, as_panel
from tsprobe.encoders.base import Encoder, Facts, trunk_taps
from tsprobe.pooling import path_used
from tsprobe.types import Batch, Inputs, TokenMap

POOLINGS = ("mean", "max", "std", "first", "last")
RESULTS = Path(__file__).parent / "results"


class Patches(nn.Module):
    """A pre-norm transformer encoder over patches of eight steps."""

    def __init__(self, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        make = lambda: nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, norm_first=True)  # noqa: E731
        self.blocks = nn.ModuleList(make() for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [R, S]
        x = self.embed(x.unfold(-1, 8, 8))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def chronos_bolt() -> Encoder:
    """The official architecture at the size of Chronos-Bolt-small, random weights."""
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    from tsprobe.encoders.chronos_bolt import ChronosBolt

    patches = {"context_length": 512, "prediction_length": 64, "input_patch_size": 16, "input_patch_stride": 16}
    more = {"quantiles": [0.1, 0.5, 0.9], "use_reg_token": True}
    config = T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, feed_forward_proj="relu")
    config.chronos_config = patches | more
    return ChronosBolt("random", ChronosBoltModelForForecasting(config).eval())


class PerceptionEncoder(Encoder):
    """PE-Core-B16 at 224 pixels, random weights. An image is a series of three channels, its rows behind each other."""

    def __init__(self) -> None:
        import timm

        module = timm.create_model("vit_pe_core_base_patch16_224", pretrained=False)
        taps = trunk_taps([f"blocks.{i}" for i in range(len(module.blocks))], "norm")
        super().__init__("pe-core", module, taps, "norm", Facts(channels=3, pads=False, joint_channels=True))

    def prepare(self, batch: Batch) -> Inputs:
        images = batch.values.unflatten(-1, (224, 224))
        index = torch.arange(197, device=self.device).expand(len(images), -1)
        mask = index > 0  # the class token stands first
        return Inputs({"x": images}, TokenMap(mask, index - mask.int(), index, cls=0), rows=1)

    def run(self, inputs: Inputs) -> Any:
        return self.module.forward_features(**inputs.kwargs)


def cases() -> dict[str, tuple[Encoder, Panel, int]]:
    """Name to encoder, series and how many of them are a batch."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 1, 4096)).astype(np.float32)
    images = rng.standard_normal((16, 3, 224 * 224)).astype(np.float32)
    plain = tp.load_encoder(
        Patches(384, 12, 6), blocks="blocks.*", final="norm", prepare="bs", tokens=8, name="patches"
    )
    return {
        "Chronos-Bolt-small, 6 blocks, 33 tokens, d 512, batch 32": (chronos_bolt(), as_panel(x[:, :, :512]), 32),
        "12 blocks, 512 tokens, d 384, batch 8": (plain, as_panel(x[:16]), 8),
        "PE-Core-B16, 12 blocks, 197 tokens, d 768, batch 8": (PerceptionEncoder(), as_panel(images), 8),
        "Fracast-0, 10 calls, 2048 tokens, d 64, batch 32": (tp.load_encoder("fracast"), as_panel(x[:32, :, :512]), 32),
    }


def bare(encoder: Encoder, panel: Panel, size: int) -> tuple[float, float]:
    """Seconds of the forward passes alone, of which none are inside pooling."""
    begin = time.perf_counter()
    windows = cut(panel, encoder.facts, encoder.name)
    with torch.inference_mode():
        for batch in batches(windows, size, encoder.facts.pads):
            picked = [windows[i] for i in batch]
            encoder.run(encoder.prepare(load(panel, picked, keep_missing=encoder.facts.masks_missing)))
    return time.perf_counter() - begin, 0.0


def read(encoder: Encoder, panel: Panel, size: int) -> tuple[float, float]:
    """Seconds of the extraction, and of those the seconds inside pooling."""
    inside, pool = 0.0, reading.pool

    def timed(*arguments: Any) -> Any:
        nonlocal inside
        begin = time.perf_counter()
        try:
            return pool(*arguments)
        finally:
            inside += time.perf_counter() - begin

    reading.pool = timed  # type: ignore[assignment]
    try:
        begin = time.perf_counter()
        extract(encoder, panel, Reading(POOLINGS, rows=size * panel.channels))
        return time.perf_counter() - begin, inside
    finally:
        reading.pool = pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    rows = []
    for name, (encoder, panel, size) in cases().items():
        bare(encoder, panel, size), read(encoder, panel, size)  # warm
        ratios, shares, seconds = [], [], []
        for turn in range(rounds):
            took = {way: way(encoder, panel, size) for way in ((read, bare) if turn % 2 else (bare, read))}
            (without, _), (whole, inside) = took[bare], took[read]
            ratios.append(whole / without)
            shares.append(inside / (whole - inside))
            seconds.append(without)
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {"case": name, "bare_seconds": statistics.median(seconds), "ratio": statistics.median(ratios),
             "ratio_quartiles": [low, high], "inside_pooling": statistics.median(shares)}
        )  # fmt: skip
    path = path_used(torch.empty(1, 1, 1))
    head = f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, pooling: {path}, {rounds} rounds"
    table = ["| case | bare pass | all layers, five statistics, over bare | inside pooling |", "|---|---|---|---|"]
    table += [
        f"| {r['case']} | {r['bare_seconds']:.2f} s | {r['ratio']:.3f} ({r['ratio_quartiles'][0]:.3f} to "
        f"{r['ratio_quartiles'][1]:.3f}) | {r['inside_pooling']:.2%} |"
        for r in rows
    ]
    text = "\n".join(["# Reading all layers over the bare forward pass", "", head, "", *table, ""])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "extraction-cpu.md").write_text(text)
    (RESULTS / "extraction-cpu.json").write_text(json.dumps({"head": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
