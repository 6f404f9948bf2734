"""Reading an encoder: hooks for one pass, pooled features of every layer, files that keep them."""

from tsprobe.capture.extract import extract
from tsprobe.capture.features import Features
from tsprobe.capture.hooks import read_layers
from tsprobe.capture.reading import Block, Reading, stream

__all__ = ["Block", "Features", "Reading", "extract", "read_layers", "stream"]
