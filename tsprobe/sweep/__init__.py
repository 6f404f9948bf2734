"""A search for the readout on inner folds: layers and their combinations, poolings, scales, probes and strengths."""

from tsprobe.sweep.run import Sweep, run_sweep
from tsprobe.sweep.spec import SweepSpec, make_sweep_spec, read_sweep_spec

__all__ = ["Sweep", "SweepSpec", "make_sweep_spec", "read_sweep_spec", "run_sweep"]
