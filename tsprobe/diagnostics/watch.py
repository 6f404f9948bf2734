"""Token and attention measures of some series of a panel, taken while the panel is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from tsprobe.diagnostics.attention import Seen, attention_measures, looking
from tsprobe.diagnostics.catalogue import CATALOGUE, Value, of_kind
from tsprobe.diagnostics.places import Places
from tsprobe.diagnostics.tokens import measure_tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from tsprobe.types import Inputs

Visit = Callable[[str, "Tensor"], None]


class RowMeans:
    """The mean over rows of each measure, of each layer, over the rows for which it is defined."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def update(self, layer: str, values: Float[Tensor, "n M"]) -> None:
        """Nothing is waited for where the values are on a GPU."""
        finite = values.isfinite()
        new = torch.where(finite, values, 0).sum(0), finite.sum(0)
        old = self._sums.get(layer)
        self._sums[layer] = new if old is None else (old[0] + new[0], old[1] + new[1])

    def copy(self) -> RowMeans:
        twin = RowMeans(self._names)
        twin._sums = dict(self._sums)
        return twin

    def compute(self) -> dict[str, dict[str, Value]]:
        found: dict[str, dict[str, Value]] = {}
        for layer, (total, count) in self._sums.items():
            means = (total / count).tolist()
            found[layer] = {
                name: Value(mean, "" if mean == mean else CATALOGUE[name].missing)
                for name, mean in zip(self._names, means, strict=True)
            }
        return found


class TokenWatch:
    """Looks at the tokens of the `series` that are chosen as an encoder reads them, and keeps sums only.

    A row is a window of a channel (of all channels, where these share tokens); rows count alike. `seen` are the series
    that have been read; `attention` are the paths of `diagnostics.attention`, by layer.
    """

    def __init__(self, names: Sequence[str], series: Sequence[int], attention: Mapping[str, str]) -> None:
        self._tokens, self._weights = of_kind(names, "tokens"), of_kind(names, "attention")
        self._chosen = frozenset(series)
        self._attention = dict(attention) if self._weights else {}
        self._means = RowMeans((*self._tokens, *self._weights))
        self.seen: set[int] = set()

    @property
    def left(self) -> list[int]:
        """The chosen series that no pass has read yet."""
        return sorted(self._chosen - self.seen)

    @contextmanager
    def watching(
        self, module: nn.Module, inputs: Inputs, series: Sequence[int], layers: Sequence[str]
    ) -> Iterator[Visit | None]:
        """For one pass over a batch whose entries belong to `series`: what is to be called with each layer's tokens.

        None where no series of the batch is chosen.
        """
        places = [i for i, s in enumerate(series) if s in self._chosen]
        if not places:
            yield None
            return
        self.seen.update(series[i] for i in places)
        first = inputs.tokens_of(next(iter(layers))).mask
        rows = torch.tensor([i * inputs.rows + r for i in places for r in range(inputs.rows)], device=first.device)
        maps: dict[int, Places] = {}  # layers share token maps, which live as long as the batch
        paths = {layer: path for layer, path in self._attention.items() if layer in layers}
        shapes = {layer: tuple(inputs.tokens_of(layer).mask.shape) for layer in paths}

        before = self._means.copy()
        with looking(module, paths, rows, shapes) as attended:  # type: ignore[arg-type]

            def visit(layer: str, x: Tensor) -> None:
                tokens = inputs.tokens_of(layer)
                if id(tokens) not in maps:
                    maps[id(tokens)] = Places.of(tokens, rows)
                self._update(layer, x[rows], maps[id(tokens)], attended.pop(layer, None))

            try:
                yield visit
            except BaseException:  # a pass that came to nothing, and may be tried again on a smaller batch
                self._means = before
                self.seen.difference_update(series[i] for i in places)
                raise

    def _update(self, layer: str, x: Tensor, places: Places, attended: Seen | None) -> None:
        parts = []
        if self._tokens:
            parts.append(measure_tokens(x, places, self._tokens))
        if self._weights:
            seen = attended or Seen(places.order[:0, 0], (0, 0))
            parts.append(attention_measures(seen, places, self._weights))
        self._means.update(layer, torch.cat(parts, 1))

    def compute(self) -> dict[str, dict[str, Value]]:
        """The mean over rows of each measure, by layer; with the reason where it is NaN."""
        return self._means.compute()
