"""Series: panels of them, where they come from, and the generator of mixtures with exact labels."""

from tsprobe.data.panel import Panel, as_panel, from_dataset

__all__ = ["Panel", "as_panel", "from_dataset"]
