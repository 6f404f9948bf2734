"""Checks for those who write adapters: does an encoder keep the promises that every number rests on?

`check_encoder(load_encoder("my-family:./folder"), channels=2)` is a whole test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from tsprobe.capture import read_layers
from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs, TokenMap

if TYPE_CHECKING:
    from torch import Tensor

    from tsprobe.encoders.base import Encoder

_SERIES = 8  # enough that a token which is the same for all of them can only be a special one
# float32 sums in another order, for other batch sizes and paddings, differ by 1e-6 of a layer's scale a block or so
_TOLERANCE = 1e-4


def check_encoder(
    encoder: Encoder,
    *,
    length: int | None = None,
    channels: int = 1,
    causal: Literal[False, True, "scaled"] = False,
    local: bool = False,
    untrained: bool = True,
) -> None:
    """Raise `EncoderError`, saying which promise is broken, unless for noise of `length` steps:

    - every layer runs, with shape `[R, T, D]` as in its token map, and finite values at real tokens;
    - real tokens cover steps of the series in order (where it is no picture), special and padded ones none, and no real
      token is blind to the series;
    - `prepare` leaves the batch alone, and a pass leaves no hook behind;
    - a series gives the same alone and in a batch, and (if it `pads`) beside a longer one;
    - (if it `masks_missing`) missing values give no NaN, and tokens with nothing observed are masked;
    - a bump in the middle changes the tokens at `embedding` that cover it; with `causal=True` no earlier token of any
      layer;
    - where a peak in the middle and a dip after it change places, which a scaling by the whole window does not see, the
      tokens at `embedding` that cover them change, and the one that moves most is among them or, for an embedding that
      reads beyond the steps of a token, next to them (`local=True`: among them); with `causal=True`, or `"scaled"` for
      an encoder that is causal but for such a scaling, no earlier token of any layer changes;
    - (`untrained=True`) the untrained twin differs, is the same for the same seed only, and leaves the original alone.

    Without `length`, a length is chosen within the declared facts. A picture of S x S pixels has S * S steps; which
    tokens cover a pixel, and which are next to them, is asked of its grid.
    """
    facts = encoder.facts
    channels = facts.channels or channels
    length = length or _length(encoder)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_SERIES, channels, length, generator=generator).cumsum(-1) / 3 + torch.randn(
        _SERIES, channels, length, generator=generator
    )
    batch = Batch.whole(noise).to(encoder.device)
    hooks = _hooks(encoder)
    inputs, layers = _read(encoder, batch)
    _check_blind(encoder, batch, inputs, layers)
    _check_alone(encoder, batch, inputs, layers)
    if facts.pads and length > facts.min_length:
        _check_padding(encoder, batch)
    _check_bump(encoder, batch, layers, causal is True)
    _check_swap(encoder, batch, bool(causal), local)
    if facts.masks_missing:
        _check_missing(encoder, batch)
    _require(encoder, _hooks(encoder) == hooks, "hooks are left on its modules after a pass")
    if untrained:
        _check_untrained(encoder, batch, layers)


def _check_map(encoder: Encoder, batch: Batch, inputs: Inputs, layers: dict[str, Tensor]) -> None:
    rows = len(batch.lengths) * inputs.rows
    lengths = batch.lengths.repeat_interleave(inputs.rows)[:, None]
    for name, x in layers.items():
        tokens = inputs.tokens_of(name)
        where, shapes = f"layer {name!r}", f"{tuple(x.shape)}, its token map {tuple(tokens.mask.shape)}"
        fits = x.shape[:2] == tokens.mask.shape == tokens.start.shape == tokens.stop.shape and x.shape[0] == rows
        _require(encoder, fits, f"{where} has shape {shapes}, for {rows} rows")
        inside = (tokens.start >= 0) & (tokens.start < tokens.stop) & (tokens.stop <= lengths)
        _require(encoder, bool(inside[tokens.mask].all()), f"{where}: real tokens must cover steps of their series")
        covered = (tokens.stop - tokens.start)[~tokens.mask]
        _require(encoder, bool((covered == 0).all()), f"{where}: masked tokens must cover no steps")
        if tokens.grid is None:
            ordered = [bool((tokens.start[r, m].diff() >= 0).all()) for r, m in enumerate(tokens.mask)]
            _require(encoder, all(ordered), f"{where}: tokens must follow the order of time")
        else:
            whole = bool((tokens.mask.sum(1) == tokens.grid.rows * tokens.grid.columns).all())
            _require(encoder, whole, f"{where}: the real tokens must be those of its {tokens.grid}")
        if tokens.cls is not None and x.shape[1] > 1:
            _require(encoder, not bool(tokens.mask[:, tokens.cls].any()), f"{where}: the class token must be masked")
        _require(encoder, bool(tokens.mask.any(1).all()), f"{where}: a row has no real token")
        _require(encoder, bool(x[tokens.mask].isfinite().all()), f"{where} has values that are not finite")


def _check_blind(encoder: Encoder, batch: Batch, inputs: Inputs, layers: dict[str, Tensor]) -> None:
    """A real token that is the same for all series at the first layer is a special one."""
    name, x = next(iter(layers.items()))
    mask = inputs.tokens_of(name).mask.reshape(len(batch.lengths), inputs.rows, -1)
    by_series = x.reshape(*mask.shape, -1)
    blind = (by_series == by_series[:1]).all(-1).all(0) & mask[0]  # [rows, T]
    which = f"token {int(blind.any(0).nonzero()[0])} at {name!r}" if bool(blind.any()) else ""
    _require(encoder, not which, f"{which} is the same for all series: a special token, which must be masked")


def _check_alone(encoder: Encoder, batch: Batch, inputs: Inputs, layers: dict[str, Tensor]) -> None:
    last = len(batch.lengths) - 1
    _, alone = _read(encoder, _take(batch, last))
    for name, x in layers.items():
        mask = inputs.tokens_of(name).mask[last * inputs.rows :]
        _compare(encoder, alone[name][mask], x[last * inputs.rows :][mask], name, "a series alone and in a batch")


def _check_padding(encoder: Encoder, batch: Batch) -> None:
    """A short series alone, and padded to the length of the others."""
    length = batch.values.shape[-1]
    short = max(encoder.facts.min_length, length - encoder.facts.patch - max(1, encoder.facts.patch // 2))
    inside = torch.ones_like(batch.observed)
    inside[0, :, short:] = False
    lengths = batch.lengths.clone()
    lengths[0] = short
    mixed, together = _read(encoder, Batch(batch.values * inside, inside, lengths))
    own, alone = _read(encoder, Batch(batch.values[:1, :, :short], batch.observed[:1, :, :short], lengths[:1]))
    for name, x in alone.items():
        here, there = own.tokens_of(name), mixed.tokens_of(name)
        rows = own.rows
        for field in ("start", "stop"):
            same = torch.equal(getattr(here, field)[here.mask], getattr(there, field)[:rows][there.mask[:rows]])
            _require(encoder, same, f"layer {name!r}: padding changes which steps tokens cover ({field})")
        _compare(encoder, together[name][:rows][there.mask[:rows]], x[here.mask], name, "a series alone and padded")


def _check_missing(encoder: Encoder, batch: Batch) -> None:
    """Two patches from one step before the middle on are missing, in half of the series."""
    observed = batch.observed.clone()
    middle = batch.values.shape[-1] // 2
    observed[::2, :, max(1, middle - 1) : middle + 2 * encoder.facts.patch - 1] = False
    holed = Batch(batch.values * observed, observed, batch.lengths)
    inputs, layers = _read(encoder, holed)
    for name in layers:
        tokens = inputs.tokens_of(name)
        seen = observed.any(1) if inputs.rows == 1 else observed.flatten(0, 1)
        for row, index in tokens.mask.nonzero().tolist():
            span = slice(int(tokens.start[row, index]), int(tokens.stop[row, index]))
            message = f"layer {name!r}: a token whose steps {span.start} to {span.stop} are all missing is not masked"
            _require(encoder, bool(seen[row, span].any()), message)


def _check_bump(encoder: Encoder, batch: Batch, layers: dict[str, Tensor], causal: bool) -> None:
    step = batch.values.shape[-1] // 2
    bumped = batch.values.clone()
    bumped[..., step] += 5 * batch.values.std()
    inputs, changed = _read(encoder, Batch(bumped, batch.observed, batch.lengths))
    for position, (name, x) in enumerate(layers.items()):
        tokens = inputs.tokens_of(name)
        covering = _covering(tokens, step)
        if position == 0:
            _require(encoder, bool(covering.any(1).all()), f"layer {name!r}: no token covers step {step}")
            same = (changed[name] == x).all(-1) & covering
            _require(encoder, not bool(same.any()), f"layer {name!r}: a bump at step {step} leaves its token unchanged")
        if causal:
            before = tokens.mask & (tokens.stop <= step)
            _compare(encoder, changed[name][before], x[before], name, f"tokens before a bump at step {step}")


def _check_swap(encoder: Encoder, batch: Batch, causal: bool, local: bool) -> None:
    """Mean, spread and range of the window stay, so that only tokens which read the two steps have cause to move."""
    length = batch.values.shape[-1]
    peak, dip = length // 2, length * 3 // 4
    spread = 4 * batch.values.std(-1)
    values = batch.values.clone()
    values[..., peak], values[..., dip] = values.mean(-1) + spread, values.mean(-1) - spread
    swapped = values.clone()
    swapped[..., [peak, dip]] = values[..., [dip, peak]]
    inputs, before = _read(encoder, Batch(values, batch.observed, batch.lengths))
    _, after = _read(encoder, Batch(swapped, batch.observed, batch.lengths))
    what = f"a peak at step {peak} and a dip at step {dip} change places"
    for position, (name, x) in enumerate(before.items()):
        tokens = inputs.tokens_of(name)
        covers = [_covering(tokens, step) for step in (peak, dip)]
        if position == 0:
            moved = (after[name] - x).abs().amax(-1).masked_fill(~tokens.mask, 0)  # [R, T]
            covering = covers[0] | covers[1]
            _require(encoder, bool((moved > 0)[covering].all()), f"layer {name!r}: a token does not move where {what}")
            near = covering.float() if local else _beside(tokens, covering)
            far = moved.masked_fill(near > 0, 0).amax(1) >= moved.amax(1)
            message = f"layer {name!r}: the token that moves most where {what} covers neither, so the token map is off"
            _require(encoder, not bool(far.any()), message)
        if causal:
            early = tokens.mask & (tokens.stop <= peak)
            _compare(encoder, after[name][early], x[early], name, f"tokens before the two where {what}")


def _covering(tokens: TokenMap, step: int) -> Tensor:
    """The real tokens that cover a step, `[R, T]`."""
    if tokens.grid is None:
        return tokens.mask & (tokens.start <= step) & (step < tokens.stop)
    rows, columns, side = tokens.grid.rows, tokens.grid.columns, tokens.grid.side
    covered = step // side * rows // side * columns + step % side * columns // side
    return tokens.mask & (tokens.mask.cumsum(1) - 1 == covered)


def _beside(tokens: TokenMap, covering: Tensor) -> Tensor:
    """These tokens and those next to them, `[R, T]`; 1 and 0."""
    if tokens.grid is None:
        return F.max_pool1d(covering[:, None].float(), 3, 1, 1)[:, 0]
    near = torch.zeros(covering.shape, device=covering.device)
    picture = covering[tokens.mask].float().unflatten(0, (len(near), 1, tokens.grid.rows, tokens.grid.columns))
    near[tokens.mask] = F.max_pool2d(picture, 3, 1, 1).flatten()
    return near


def _check_untrained(encoder: Encoder, batch: Batch, layers: dict[str, Tensor]) -> None:
    before = encoder.fingerprint()
    twin = encoder.untrained(seed=0)
    _require(encoder, encoder.fingerprint() == before, "untrained() changes the encoder itself")
    _require(encoder, twin.fingerprint() != before, "untrained() has the weights of the encoder")
    again, other = encoder.untrained(seed=0), encoder.untrained(seed=1)
    _require(encoder, twin.fingerprint() == again.fingerprint(), "untrained(seed=0) differs from call to call")
    _require(encoder, twin.fingerprint() != other.fingerprint(), "untrained() is the same for two seeds")
    inputs, fresh = _read(twin, batch)
    mask = inputs.tokens_of(encoder.final).mask
    x, y = layers[encoder.final][mask], fresh[encoder.final][mask]
    _require(encoder, bool(y.isfinite().all()), "untrained() gives values that are not finite")
    _require(encoder, not torch.allclose(x, y), "untrained() gives what the encoder gives")


def _read(encoder: Encoder, batch: Batch) -> tuple[Inputs, dict[str, Tensor]]:
    """One pass, with the checks that hold for every batch."""
    kept = Batch(batch.values.clone(), batch.observed.clone(), batch.lengths.clone())
    layers: dict[str, Tensor] = {}
    with torch.no_grad():
        inputs = encoder.prepare(batch)
        read_layers(encoder, inputs, encoder.taps, lambda name, x: layers.__setitem__(name, x.clone()))
    same = all(torch.equal(getattr(batch, part), getattr(kept, part)) for part in ("values", "observed", "lengths"))
    _require(encoder, same, "prepare() or run() changes the batch that it is given")
    layers = {name: layers[name] for name in encoder.taps}
    _check_map(encoder, batch, inputs, layers)
    return inputs, layers


def _compare(encoder: Encoder, found: Tensor, expected: Tensor, layer: str, what: str) -> None:
    _require(encoder, found.shape == expected.shape, f"layer {layer!r}: {what} differ in their real tokens")
    if not len(found):
        return
    gap = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    _require(encoder, gap < _TOLERANCE, f"layer {layer!r}: {what} differ by {gap:.1e} of the layer's largest value")


def _require(encoder: Encoder, holds: bool, message: str) -> None:
    if not holds:
        raise EncoderError(f"{encoder.name}: {message}")


def _length(encoder: Encoder) -> int:
    """Some patches and a half, within what the encoder declares."""
    facts = encoder.facts
    length = max(facts.min_length, 5 * facts.patch + facts.patch // 2, 24)
    return length if facts.context is None else min(length, facts.context)


def _take(batch: Batch, index: int) -> Batch:
    part = slice(index, index + 1)
    return Batch(batch.values[part], batch.observed[part], batch.lengths[part])


def _hooks(encoder: Encoder) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.module.modules())
