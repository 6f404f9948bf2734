"""What an encoder costs up to a layer: parameters that are left when it is cut there, and the time of a pass."""

from __future__ import annotations

import statistics
import time

import torch

from tsprobe.capture.windows import batches, cut, load
from tsprobe.data.panel import Panel
from tsprobe.encoders.base import Encoder
from tsprobe.errors import EncoderError

KINDS = ("parameters", "latency")
PASSES = 7  # of which the median counts, after one that warms up


def parameters(encoder: Encoder) -> int:
    return sum(weight.numel() for weight in encoder.module.parameters())


def cost(encoder: Encoder, layer: str, panel: Panel, kind: str) -> float:
    """Of the encoder up to a layer: `parameters`, or `latency` in milliseconds a series of the panel.

    A head lies past the trunk, and costs the whole. Raises `EncoderError` where the encoder cannot be cut.
    """
    trunk = [one.name for one in encoder.layers if one.depth is not None]
    shorter = encoder.truncate(layer) if layer in trunk else encoder
    if kind == "parameters":
        return float(parameters(shorter))
    if shorter.cut is not None and not shorter.cut.runs_alone:
        raise EncoderError(f"{encoder.name} does not run alone up to {layer}; take cost: parameters")
    return latency(shorter, panel)


def latency(encoder: Encoder, panel: Panel, rows: int = 16) -> float:
    """Median milliseconds a series (of a window, where series are longer than that) of a pass over one batch."""
    windows = cut(panel, encoder.facts, encoder.name)
    first = next(iter(batches(windows, rows, encoder.facts.pads)))
    batch = load(panel, [windows[i] for i in first], keep_missing=encoder.facts.masks_missing).to(encoder.device)
    seconds = []
    with torch.inference_mode():
        inputs = encoder.prepare(batch)
        for _ in range(PASSES + 1):
            begin = time.perf_counter()
            encoder.run(inputs)
            if encoder.device.type == "cuda":
                torch.cuda.synchronize(encoder.device)
            seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds[1:]) / len(first)
