"""What does a layerwise study of published size cost beyond the forward passes of its encoder?

`python benchmarks/study_gpu.py` does work of the shape of Aionoscope's (arXiv 2607.00956) on one GPU: 65,536 training
series and ten validation sets of as many, all layers, 14 presence labels and 33 masked parameters, from statistics
that never leave the device, in one pass over each set. Chronos-2 reads 8,192 steps, MantisV2 512; both are the official
architectures with random weights in bfloat16. The published walls (one H200, figures from the published run logs) are
874 s for Chronos-2, of them 234 s forward, and 86 s for MantisV2, of them 12.4 s.

`--small` does the same in seconds on any device, to see that it works. It writes `results/study-<device>.md` and
`.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tsprobe.capture import Features, Reading, stream
from tsprobe.data.panel import Panel
from tsprobe.data.process import Mixture, generate
from tsprobe.encoders.base import Encoder
from tsprobe.metrics import get_metric
from tsprobe.probes.base import Target
from tsprobe.probes.statistics import RidgeStatistics, Solution

RESULTS = Path(__file__).parent / "results"
METRICS = {"presence": ("multilabel", "auroc"), "state": ("regression", "r2")}
FOLDS = 5


@dataclass(frozen=True)
class Case:
    encoder: Encoder
    steps: int
    rows: int  # series of a batch
    published: tuple[float, float]  # seconds: forward, and in all


def chronos_2(small: bool = False) -> Case:
    from chronos.chronos2 import Chronos2Model
    from chronos.chronos2.config import Chronos2CoreConfig

    from tsprobe.encoders.chronos2 import Chronos2

    size = (32, 8, 64, 3, 4) if small else (768, 64, 3072, 12, 12)
    names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    config = Chronos2CoreConfig(**dict(zip(names, size, strict=True)))
    config.chronos_config = {
        "context_length": 8192, "input_patch_size": 16, "input_patch_stride": 16, "output_patch_size": 16,
        "max_output_patches": 64, "quantiles": [i / 10 for i in range(1, 10)], "use_reg_token": True,
        "use_arcsinh": True, "time_encoding_scale": 8192,
    }  # fmt: skip
    return Case(Chronos2("random", Chronos2Model(config)), 8192, 64, (234, 874))


def mantis_v2(small: bool = False) -> Case:
    from mantis.architecture import MantisV2

    from tsprobe.encoders.mantis import Mantis

    size = {"hidden_dim": 32, "transf_depth": 2, "transf_num_heads": 2, "transf_mlp_dim": 64, "transf_dim_head": 16}
    module = MantisV2(device="cpu", **(size if small else {}))
    return Case(Mantis("random", module, {}, "contrastive"), 512, 1024, (12.4, 86))


CASES = {"Chronos-2": chronos_2, "MantisV2": mantis_v2}


class Watch:
    """Seconds by stage. What runs on a GPU is waited for at the end of a stage, so that it is counted there."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._device, self._last = device, time.perf_counter()

    def lap(self, stage: str, less: float = 0.0) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last - less
        self._last = now


def targets(mixture: Mixture) -> dict[str, torch.Tensor]:
    return {"presence": mixture.presence.double().cpu(), "state": mixture.parameters.double().cpu()}


def study(case: Case, n: int, sets: int, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by stage and mean scores of the best layer."""
    encoder, watch = case.encoder.to(device), Watch(device)
    reading = Reading(("mean",), rows=case.rows)
    forward = 0.0

    def made(seed: int) -> tuple[Panel, dict[str, torch.Tensor]]:
        mixture = generate(n, components=2, seed=seed, length=case.steps, device=device)
        panel = Panel(tuple(mixture.values.cpu().numpy()))
        watch.lap("data")
        return panel, targets(mixture)

    panel, y = made(0)
    folds = torch.from_numpy(np.random.default_rng(0).permutation(n) % FOLDS)
    statistics: dict[tuple[str, tuple[str, ...]], RidgeStatistics] = {}
    with closing(stream(encoder, panel, reading)) as blocks:
        for block in blocks:
            forward += block.forward
            rows = torch.from_numpy(block.index)
            for layers, x in Features(block.arrays, ("mean",), {}).stacks("mean"):
                for name, (kind, _) in METRICS.items():
                    key = name, layers
                    if key not in statistics:
                        target = Target(kind, y[name])
                        statistics[key] = RidgeStatistics.of(
                            target, folds, groups=len(x), width=x.shape[2], device=device
                        )
                    statistics[key].update(torch.from_numpy(x), rows)
    watch.lap("reading and sums", less=forward)
    solved: dict[tuple[str, tuple[str, ...]], Solution] = {}
    for (name, layers), sums in statistics.items():
        solved[name, layers] = sums.solve(get_metric(METRICS[name][1]))
    statistics.clear()
    watch.lap("probes")

    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for i in range(sets):
        panel, y = made(1 + i)
        before, predicted = forward, {}
        with closing(stream(encoder, panel, reading)) as blocks:
            for block in blocks:
                forward += block.forward
                rows = torch.from_numpy(block.index).to(device)
                for layers, x in Features(block.arrays, ("mean",), {}).stacks("mean"):
                    moved = torch.from_numpy(x).to(device)
                    for name in METRICS:
                        part = solved[name, layers].predict(moved).float()
                        if (name, layers) not in predicted:
                            predicted[name, layers] = part.new_empty(len(part), n, part.shape[2])
                        predicted[name, layers][:, rows] = part
        watch.lap("reading and sums", less=forward - before)
        for name, (_, metric) in METRICS.items():
            scores = [get_metric(metric)(y[name].to(device), p) for (which, _), p in predicted.items() if which == name]
            found[name].append(float(torch.cat(scores).max()))
        watch.lap("probes")
    return {"forward": forward, **watch.seconds}, {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=list(CASES), action="append", help="one of them; both by default")
    parser.add_argument("--series", type=int, default=65_536)
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="a tiny network, 64 series of 512 steps, float32; no file")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    rows = []
    for which in options.encoder or CASES:
        torch.manual_seed(0)
        try:
            case = CASES[which](options.small)
        except ImportError as error:
            print(f"{which} is left out: {error}")
            continue
        if options.small:
            case = Case(case.encoder, 512, 16, case.published)
        else:
            case.encoder.module.to(torch.bfloat16)
        series, sets = (64, 2) if options.small else (options.series, options.sets)
        seconds, scores = study(case, series, sets, device)
        beyond = sum(value for key, value in seconds.items() if key not in ("forward", "data"))
        rows.append({"encoder": which, "series": series, "sets": sets, "steps": case.steps, "seconds": seconds,
                     "beyond_over_forward": beyond / seconds["forward"], "scores": scores,
                     "published": case.published})  # fmt: skip
    table = [
        "| encoder | forward | reading and sums | probes | making the series | beyond the forward pass, over it "
        "| published: forward, in all |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        s = r["seconds"]
        stages = " | ".join(f"{s[stage]:.1f} s" for stage in ("forward", "reading and sums", "probes", "data"))
        table.append(
            f"| {r['encoder']}, {1 + r['sets']} x {r['series']:,} series of {r['steps']:,} steps | {stages} | "
            f"{r['beyond_over_forward']:.2f} | {r['published'][0]:g} s, {r['published'][1]:g} s |"
        )
    text = "\n".join([f"# A study of published size on {name}", "", f"torch {torch.__version__}", "", *table, ""])
    print(text)
    if not options.small:
        RESULTS.mkdir(exist_ok=True)
        key = name.lower().replace(" ", "-")
        (RESULTS / f"study-{key}.md").write_text(text)
        (RESULTS / f"study-{key}.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
