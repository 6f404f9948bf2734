"""Reading an encoder: hooks for one pass, pooled features of every layer, files that keep them."""

from tsprobe.capture.extract import extract
from tsprobe.capture.features import Features
from tsprobe.capture.hooks import read_layers
from tsprobe.capture.reading import Block, Reading, Watch, stream
from tsprobe.capture.steps import Steps, coarse_layers

__all__ = ["Block", "Features", "Reading", "Steps", "Watch", "coarse_layers", "extract", "read_layers", "stream"]
