"""All targets by name."""

from __future__ import annotations

from . import checkpoints, configs, folders, pictures, series, towers
from .harness import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (series, configs, checkpoints, folders, pictures, towers)
    for target in module.TARGETS
}
