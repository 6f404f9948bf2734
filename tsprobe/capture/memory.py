"""Whether an error says that memory has run out, and what can be given back."""

from __future__ import annotations

import gc

import torch

_ON_CPU = ("not enough memory", "can't allocate memory")  # torch's allocator has no exception of its own there


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of this machine where it says so instead of killing the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _ON_CPU)


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
