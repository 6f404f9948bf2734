"""Which cluster, and how much of it a piece of work is given."""

from __future__ import annotations

import math

from pydantic import Field

from tsprobe.settings import Frozen

SHARD = 4096  # series: minutes of reading for most encoders, so that what a lost worker costs is small
PATIENCE = 120.0  # seconds


class Cluster(Frozen):
    """`address` is `local` (this machine, for as long as the study runs), `auto` (the cluster that this machine is part
    of), `HOST:PORT` or `ray://HOST:PORT`."""

    address: str = Field(min_length=1)
    shard: int = Field(default=SHARD, ge=1)  # series; larger panels are cut into parts of about so many
    cpus: float = Field(default=1, gt=0)  # of one piece of work, and so many threads
    gpus: float | None = Field(
        default=None, ge=0
    )  # None: one for encoders, if the spec's device allows and there is one
    patience: float = Field(default=PATIENCE, ge=0)  # seconds that work may wait for a node that could run it

    @property
    def threads(self) -> int:
        return max(1, math.floor(self.cpus))
