"""Several processes that tune one encoder: each learns from series of its own, and their gradients are averaged.

`torchrun --nproc-per-node N -m tsprobe.cli align CONFIG` starts them, on one machine or, with torchrun's own options,
on several that share a file system; each takes one GPU where there are any. Gradients are averaged here and not by
`DistributedDataParallel`, which cannot wrap a pass that ends at the layer that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch import Tensor

_PATIENCE = timedelta(days=1)  # the others wait while the first process studies


@dataclass(frozen=True)
class Processes:
    """How many there are, and which of them this is; the one that is 0 writes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()

    def average(self, weights: Iterable[Tensor]) -> None:
        """Gradients become their means over processes; a weight without one, since its series had no use for it,
        counts as 0."""
        if self.size == 1:
            return
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad)
            weight.grad /= self.size

    def device(self, wanted: str) -> str:
        """One GPU a process, where GPUs are wanted."""
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if self.size > 1 and wanted == "cuda" else wanted


ALONE = Processes()


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone; `device` says whether they speak through GPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
    try:
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
