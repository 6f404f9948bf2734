"""Pooling of tokens to vectors: the definition in plain torch, and the exact merge of windows."""

from tsprobe.pooling.merge import merge_windows
from tsprobe.pooling.reference import pool
from tsprobe.pooling.slots import POOLINGS, Slots

__all__ = ["POOLINGS", "Slots", "merge_windows", "pool"]
