"""Searches on inner folds: for a readout (layer, pooling, probe, strength), or for the settings of an alignment."""

from tsprobe.sweep.folder import Sweep
from tsprobe.sweep.run import run_sweep
from tsprobe.sweep.spec import SweepSpec, make_sweep_spec, make_tuning_sweep_spec, read_sweep_spec
from tsprobe.sweep.tuning_spec import TuningSweepSpec
from tsprobe.sweep.tunings import run_tuning_sweep

__all__ = [
    "Sweep",
    "SweepSpec",
    "TuningSweepSpec",
    "make_sweep_spec",
    "make_tuning_sweep_spec",
    "read_sweep_spec",
    "run_sweep",
    "run_tuning_sweep",
]
