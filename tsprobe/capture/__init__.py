"""Reading an encoder: hooks for one pass, pooled features of every layer, files that keep them."""

from tsprobe.capture.extract import Reading, extract
from tsprobe.capture.features import Features
from tsprobe.capture.hooks import read_layers

__all__ = ["Features", "Reading", "extract", "read_layers"]
