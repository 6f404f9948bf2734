"""Studies on a Ray cluster: workers compute the cells that a study's folder does not have yet, one process fills it in.

`session` connects and hands out work, `work` is what runs on a worker, `shards` cuts large panels, `fill` plans and
takes in what comes back. The only room that imports ray.
"""

from tsprobe.cluster.fill import on_cluster
from tsprobe.cluster.options import Cluster

__all__ = ["Cluster", "on_cluster"]
