"""Label-free measures of each layer. They describe; none is known to pick the best layer."""

from tsprobe.diagnostics.catalogue import CATALOGUE, DIAGNOSTICS, GROUPS, KINDS, Value, chosen, of_kind
from tsprobe.diagnostics.watch import TokenWatch

__all__ = ["CATALOGUE", "DIAGNOSTICS", "GROUPS", "KINDS", "TokenWatch", "Value", "chosen", "of_kind"]
