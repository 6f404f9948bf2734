"""Targets: configs in YAML, and the overrides of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsprobe.alignment.spec import read_align_spec
from tsprobe.atlas.spec import read_atlas_spec
from tsprobe.pretraining.corpus import GENERATORS
from tsprobe.pretraining.spec import read_pretrain_spec
from tsprobe.study import read_spec
from tsprobe.sweep.spec import read_sweep_spec

from .harness import Target

_STUDY = b"""encoders: [zoo/jepa, {source: fracast, name: f, tokens: {block.0: 4}}]
tasks: [ucr/GunPoint, process/k2]
probes: [ridge, knn]
poolings: [mean, max]
seeds: [0, 1]
layers: [block.0]
diagnostics: {measures: [rankme], tokens: 8}
level: 0.05
tracking: {enabled: false, uri: "sqlite:///x.db"}
"""
_ALIGN = b"""encoder: zoo/jepa
recipe: dense
teacher: auto
study: {tasks: [dense/regimes], poolings: [mean], probes: [ridge], seeds: [0]}
lift: [dense]
series: [ucr/GunPoint]
seeds: [0, 1]
controls: [unregularised]
free: [concat]
steps: 10
mask: 0.5
"""
_SWEEP = b"""encoders: [zoo/jepa]
tasks: [ucr/GunPoint]
space:
  layers: [block.0, norm]
  combine: [one, concat]
  poolings: [mean, mean+max]
  lengths: [null, 64]
  probes: {ridge: [1, 10], knn: {low: 1, high: 20}}
trials: 20
sampler: random
storage: sqlite:///x.db
"""
_ATLAS = b"""studies:
  a: {modality: series, encoders: [zoo/jepa], tasks: [ucr/GunPoint]}
  b: {config: base.yaml, seeds: [1], tracking: {enabled: false}}
alignments:
  c: {encoder: zoo/jepa, recipe: dense, study: {tasks: [dense/regimes]}}
labels: [5, 10]
draws: 2
"""
_PRETRAIN = b"""objective: jepa
backbone: {patch: 8, context: 512, width: 64, depth: 2, heads: 2, hidden: 64}
corpus: {sources: [SOURCE], shortest: 64, longest: 256}
steps: 10
rate: 0.001
""".replace(b"SOURCE", next(iter(GENERATORS)).encode())
_SET = b"""seeds=[0,1]
tracking.enabled=false
diagnostics.tokens=4
name=x
encoders=[fracast]"""


def _spec(read: Callable[[Path, tuple[str, ...]], Any]) -> Callable[[Path, bytes], Any]:
    def target(folder: Path, content: bytes) -> Any:
        (folder / "config.yaml").write_bytes(content)
        spec = read(folder / "config.yaml", ())
        return spec.dump() if hasattr(spec, "dump") else spec

    return target


def _overrides(folder: Path, content: bytes) -> Any:
    (folder / "config.yaml").write_bytes(_STUDY)
    return read_spec(folder / "config.yaml", tuple(content.decode(errors="replace").split("\n"))).dump()


def _atlas(folder: Path, content: bytes) -> Any:
    (folder / "base.yaml").write_bytes(_STUDY)
    (folder / "config.yaml").write_bytes(content.replace(b"base.yaml", str(folder / "base.yaml").encode()))
    return read_atlas_spec(folder / "config.yaml")


TARGETS = [
    Target("study-config", ".yaml", lambda _: [_STUDY], _spec(read_spec)),
    Target("align-config", ".yaml", lambda _: [_ALIGN], _spec(read_align_spec)),
    Target("sweep-config", ".yaml", lambda _: [_SWEEP], _spec(read_sweep_spec)),
    Target("atlas-config", ".yaml", lambda _: [_ATLAS], _atlas),
    Target("pretrain-config", ".yaml", lambda _: [_PRETRAIN], _spec(read_pretrain_spec)),
    Target("overrides", ".txt", lambda _: [_SET], _overrides),
]
