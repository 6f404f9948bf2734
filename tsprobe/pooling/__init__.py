"""Pooling of tokens to vectors: the definition in plain torch, its fused paths, and the exact merge of windows."""

from tsprobe.pooling.merge import merge_windows
from tsprobe.pooling.native import state as native_state
from tsprobe.pooling.norm import Norm
from tsprobe.pooling.ops import path_used, pool
from tsprobe.pooling.slots import POOLINGS, Slots
from tsprobe.pooling.steps import StepMap

__all__ = ["POOLINGS", "Norm", "Slots", "StepMap", "merge_windows", "native_state", "path_used", "pool"]
