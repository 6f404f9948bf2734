"""Low-rank tuning: the encoder's weights stay as they are, and each linear layer gets a small product beside it.

LoRA (Hu et al. 2022) through the package `peft`: W x + (alpha / r) B A x with alpha = 2 r, and B = 0 at the start, so
that nothing is changed by inserting it. Before the encoder is saved, W becomes W + 2 B A and the additions are gone:
what is saved is an encoder of the same shape, which needs no peft.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tsprobe.encoders.base import Encoder
from tsprobe.errors import MissingPackageError, SpecError

_SCALE = 2.0  # of the product, alpha / r


def insert_lora(encoder: Encoder, rank: int, targets: tuple[str, ...]) -> list[nn.Parameter]:
    """Freeze all weights, give the linear layers of the blocks their products, and give these.

    `targets` are the last parts of the layers' names, such as `qkv` or `mlp.up`; without any, all of them. Raises
    `MissingPackageError` without peft, `SpecError` for a target that no layer is named by.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingPackageError("peft", "tuning=lora", "align") from error
    module = encoder.module
    paths = _linear(encoder)
    for target in targets:
        if not any(_named(path, target) for path in paths):
            known = sorted({path.rpartition(".")[2] for path in paths})
            raise SpecError(f"no linear layer of the blocks of {encoder.name} is named {target!r} ({', '.join(known)})")
    chosen = [path for path in paths if not targets or any(_named(path, target) for target in targets)]
    if not chosen:
        raise SpecError(f"the blocks of {encoder.name} have no linear layers to change: use tuning=full")
    before = set(module.parameters())
    module.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=round(_SCALE * rank), target_modules=chosen, bias="none")
    inject_adapter_in_model(config, module)
    module.eval()
    added = [p for p in module.parameters() if p not in before]
    for parameter in added:
        parameter.requires_grad_(True)
    return added


def merge_lora(module: nn.Module) -> None:
    """Add the products to the weights, and put the linear layers back in their places."""
    for path, layer in list(module.named_modules()):
        base: Any = getattr(layer, "get_base_layer", None)
        if base is None or not hasattr(layer, "merge"):
            continue
        layer.merge()
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, base())


def _named(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _linear(encoder: Encoder) -> list[str]:
    """Paths of the linear layers within the blocks, each once.

    Those of torch's own attention are left out: it reads their weights and never calls them.
    """
    blocks = dict.fromkeys(tap.path for name, tap in encoder.taps.items() if name.startswith("block."))
    own = [name for name, part in encoder.module.named_modules() if isinstance(part, nn.MultiheadAttention)]
    return [
        path
        for path, part in encoder.module.named_modules()
        if isinstance(part, nn.Linear)
        and any(path == block or path.startswith(f"{block}.") for block in blocks)
        and not any(path.startswith(f"{attention}.") for attention in own)
    ]
