"""Label-free measures of a layer's pooled features. They describe; none is known to pick the best layer."""

from tsprobe.diagnostics.measures import DIAGNOSTICS, measure

__all__ = ["DIAGNOSTICS", "measure"]
