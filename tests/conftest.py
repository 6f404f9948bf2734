"""Triton's kernels run in its interpreter where there is no GPU; it looks at this once, when it is first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
