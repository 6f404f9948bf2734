"""What an encoder is to tsprobe: a frozen module, the places where its layers can be read, and how it takes series.

An adapter subclasses `Encoder` and gives `prepare` (a batch of series to the module's own arguments and a token map),
`run` (the forward pass of the trunk) and `fresh_module` (the same architecture with new weights, for the control).
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tsprobe.errors import EncoderError, UnknownNameError
from tsprobe.types import Batch, Inputs, Layer

if TYPE_CHECKING:
    from torch.export import ExportedProgram

UNTRAINED = "@untrained"


@dataclass(frozen=True)
class Tap:
    """Where a layer's tokens can be read: a submodule, its input or its output, and which of its calls.

    `call` matters for modules with tied weights, which run many times in one pass. `select` takes what the module
    gives (or its first positional input) to a tensor `[R, T, D]`; by default that thing is such a tensor already, or
    a tuple or model output whose first entry is.
    """

    path: str
    side: Literal["output", "input"] = "output"
    call: int = 0
    select: Callable[[Any], Tensor] | None = None

    def read(self, value: Any) -> Tensor:
        """The tokens in what the module gave; on the input side, in the tuple of its arguments."""
        if self.side == "input":
            value = value[0]
        if self.select is not None:
            return self.select(value)
        while not isinstance(value, Tensor):
            value = value[0]
        return value


@dataclass(frozen=True)
class Facts:
    """What is declared about an encoder and carried in every result."""

    objective: str = "unknown"  # forecasting, reconstruction, contrastive, jepa, supervised, untrained, none, unknown
    context: int | None = None  # longest window in steps; None: any length
    min_length: int = 1  # shortest series that makes a token
    patch: int = 1  # steps a token; windows are cut at multiples of it
    pads: bool = True  # padded steps can be masked, so series of unlike length share a batch
    masks_missing: bool = False  # missing values can be masked; otherwise they are interpolated
    joint_channels: bool = False  # channels attend to each other
    channels: int | None = None  # the one channel count it takes; None: any
    pretrained_on: str = "not declared"
    code_licence: str = "not declared"
    weights_licence: str = "not declared"
    final_is: str = ""  # the package's call whose result `final` is
    overlaps: tuple[str, ...] = field(default=())  # evaluation sets seen in pretraining, as far as declared


class Encoder(ABC):
    """A frozen encoder that can be read layer by layer.

    `taps` maps layer names to places, from the input to the output, in the order in which they run; `final` names
    the layer that users of this encoder take as the embedding today. Where that is one vector for all of the input,
    `final_of_steps` names the layer whose tokens they take when they need some; elsewhere it is the same.

    `attention` may map layers to the path of a module in which the layer's self-attention runs, as one call of torch's
    `scaled_dot_product_attention` over the layer's own tokens `[R, heads, T, d]`: diagnostics then see its weights.
    """

    attention: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, name: str, module: nn.Module, taps: Mapping[str, Tap], final: str, facts: Facts, *, heads: int = 0
    ) -> None:
        if final not in taps:
            raise EncoderError(f"{name}: final layer {final!r} is not among the layers {list(taps)}")
        paths = dict(module.named_modules())
        for layer, tap in taps.items():
            if tap.path not in paths:
                raise UnknownNameError(f"path for layer {layer!r} of {name}", tap.path, paths)
        self.name = name
        self.module = module.eval().requires_grad_(False)
        self.taps = dict(taps)
        self.final = self.final_of_steps = final
        self.facts = facts
        self.tuned: Any = None  # what alignment did to it
        self.cut: Any = None  # where it was truncated
        self._heads = heads

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers from input to output; the last `heads` of them lie past the trunk and have no depth."""
        names = list(self.taps)
        last = max(len(names) - self._heads - 1, 1)
        return tuple(Layer(name, i / last if i <= last else None) for i, name in enumerate(names))

    @property
    def device(self) -> torch.device:
        tensor = next(self.module.parameters(), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        tensor = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        return tensor.dtype if tensor is not None else torch.float32

    def to(self, device: torch.device | str) -> Encoder:
        self.module.to(device)
        return self

    @abstractmethod
    def prepare(self, batch: Batch) -> Inputs:
        """Turn series `[B, C, S]` into the module's arguments and a token map over its R rows."""

    def trial_batch(self) -> Batch:
        """One short series that the encoder takes, for a look at what runs in it."""
        facts = self.facts
        steps = max(facts.min_length, 4 * facts.patch, 64)
        steps = min(steps, facts.context or steps)
        x = torch.rand(1, facts.channels or 1, steps, generator=torch.Generator().manual_seed(0))
        return Batch.whole(x.to(self.device))

    def run(self, inputs: Inputs) -> Any:
        """The forward pass over the trunk; hooks read the layers. Gives what the module gives."""
        return self.module(**inputs.kwargs)

    def fresh_module(self) -> nn.Module:
        """The same architecture with newly drawn weights, under the caller's seed."""
        module = copy.deepcopy(self.module).cpu()  # one generator on every device
        # children first: where a parent initialises the parts of its children too, its word is the last
        owners = [(n, m) for n, m in reversed(list(module.named_modules())) if list(m.parameters(recurse=False))]
        stuck = [n or type(m).__name__ for n, m in owners if not _redraw(m)]
        if stuck:
            raise EncoderError(
                f"{self.name}: cannot redraw the weights of {', '.join(stuck[:5])}, which have no reset_parameters(); "
                "give `fresh=`, a function that builds the module anew"
            )
        return module

    def untrained(self, seed: int = 0) -> Encoder:
        """A copy with the same architecture and fresh weights: the control for what the architecture alone gives."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            module = self.fresh_module()
        if self.cut is not None:
            module = self.cut.applied(module)
        twin = copy.copy(self)
        twin.module = module.to(self.device).eval().requires_grad_(False)
        twin.name = self.name + UNTRAINED
        twin.facts = replace(self.facts, objective="untrained", pretrained_on="nothing", overlaps=())
        return twin

    def truncate(self, layer: str) -> Encoder:
        """A copy that ends at a layer of the trunk, without what comes after it; see `encoders.truncated`."""
        from tsprobe.encoders.truncated import truncate

        return truncate(self, layer)

    def export(self, batch: Batch | None = None) -> ExportedProgram:
        """The pass over prepared inputs as a `torch.export` program; see `encoders.exported`."""
        from tsprobe.encoders.exported import export

        return export(self, batch)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a tuned encoder to a folder that `load_encoder("aligned:FOLDER")` takes; see `aligned.save`."""
        from tsprobe.encoders import aligned

        aligned.save(self, Path(folder), dtype)

    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes and values of all weights, and of where the layers are read."""
        digest = hashlib.sha256(repr([(k, t.path, t.side, t.call) for k, t in self.taps.items()]).encode())
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def trunk_taps(
    blocks: Sequence[str], norm: str | None = None, select: Callable[[Any], Tensor] | None = None
) -> dict[str, Tap]:
    """The usual layers: `embedding`, what enters the first block; `block.i`, what leaves each; `norm` after them."""
    taps = {"embedding": Tap(blocks[0], "input", select=select)}
    taps |= {f"block.{i}": Tap(path, select=select) for i, path in enumerate(blocks)}
    return taps if norm is None else taps | {"norm": Tap(norm, select=select)}


def _redraw(module: nn.Module) -> bool:
    # nn.MultiheadAttention has only the name with the underscore
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if not callable(reset):
        return False
    reset()
    return True
