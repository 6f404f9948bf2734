"""Published results of frozen vision encoders, and the protocols by which ours are compared with them.

`table.py` has the numbers, `protocols.py` how DAVIS and ADE20k are measured at each layer. With weights and data at
hand, `tsprobe anchors timm:PE-Spatial-B16-512.pt --data davis=DIR` measures, and says whether it agrees.
"""

from vision.anchors.protocols import PROTOCOLS
from vision.anchors.table import ANCHORS

__all__ = ["ANCHORS", "PROTOCOLS"]
