"""Alignment tuning: bring what hidden layers carry to the output, and show the price."""

from tsprobe.alignment.families import tradeoff
from tsprobe.alignment.recipes import RECIPES
from tsprobe.alignment.run import Outcome, run_alignment
from tsprobe.alignment.spec import AlignSpec, read_align_spec

__all__ = ["RECIPES", "AlignSpec", "Outcome", "read_align_spec", "run_alignment", "tradeoff"]
