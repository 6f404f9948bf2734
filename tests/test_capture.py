"""Hooks, windows, the stream of features, and files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import PATCH, StepsEncoder

from tsprobe.capture import Reading, extract, read_layers
from tsprobe.capture.windows import batches, cut, interpolate, load
from tsprobe.data.panel import as_panel
from tsprobe.encoders.base import Facts, Tap
from tsprobe.errors import DataError, EncoderError, StorageError, UnknownNameError
from tsprobe.files import replace_file, safe_name
from tsprobe.types import Batch

ALL = ("mean", "max", "min", "std", "first", "last", "cls", "segments2")


def hooks_on(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def panel(n: int = 5, c: int = 1, s: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, c, s)).astype(np.float32)


def by_hand(encoder: StepsEncoder, series: np.ndarray, layer: int) -> torch.Tensor:
    """Tokens `[T, D]` of one channel after a block, without hooks."""
    module = encoder.module
    x = module.embed(torch.from_numpy(series).reshape(-1, PATCH))
    for block in module.blocks[: layer + 1]:
        x = block(x)
    return x


def test_features_equal_a_pass_by_hand() -> None:
    encoder = StepsEncoder()
    x = panel()
    features = extract(encoder, as_panel(x), Reading(("mean", "std")))
    assert features.layers == ("block.0", "block.1", "block.2")
    for layer in range(3):
        for i in range(5):
            tokens = by_hand(encoder, x[i, 0], layer).double()
            got = features.matrix(f"block.{layer}", "mean")[i], features.matrix(f"block.{layer}", "std")[i]
            np.testing.assert_allclose(got[0], tokens.mean(0), atol=1e-6)  # float32 sums of six numbers near 1
            np.testing.assert_allclose(got[1], tokens.std(0, correction=0), atol=1e-6)


def test_hooks_are_gone_after_a_pass_and_after_a_failure() -> None:
    encoder = StepsEncoder()
    extract(encoder, as_panel(panel()))
    assert hooks_on(encoder.module) == 0

    def fail(name: str, tokens: torch.Tensor) -> None:
        assert hooks_on(encoder.module) > 0  # they were there
        raise KeyboardInterrupt

    inputs = encoder.prepare(_batch(encoder))
    with pytest.raises(KeyboardInterrupt):
        read_layers(encoder, inputs, encoder.taps, fail)
    assert hooks_on(encoder.module) == 0


def _batch(encoder: StepsEncoder) -> Batch:
    data = as_panel(panel(2))
    return load(data, cut(data, encoder.facts, "toy"), keep_missing=True)


def test_layers_past_the_last_one_asked_for_are_not_run() -> None:
    encoder = StepsEncoder()
    encoder.module.blocks[2].register_forward_pre_hook(lambda *_: pytest.fail("block 2 was run"))
    features = extract(encoder, as_panel(panel()), layers=("block.0", "block.1"))
    assert features.layers == ("block.0", "block.1")


def test_a_layer_that_never_fires_is_an_error() -> None:
    encoder = StepsEncoder()
    encoder.taps["idle"] = Tap("blocks.0", call=1)  # block 0 runs once in a pass
    with pytest.raises(EncoderError, match=r"never reaches idle \(blocks.0, call 1\)"):
        extract(encoder, as_panel(panel()))


def test_unknown_layer_suggests_a_near_one() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'block.1'|'block.0'"):
        extract(StepsEncoder(), as_panel(panel()), layers=("blok.1",))


@pytest.mark.parametrize("channels", [1, 3])
def test_long_series_in_windows_equal_one_window(channels: int) -> None:
    """The toy looks at one token at a time, so windows must change nothing, for any pooling."""
    x = as_panel(panel(4, channels, 50))
    whole = extract(StepsEncoder(), x, Reading(ALL))
    cut_up = extract(StepsEncoder(context=16), x, Reading(ALL))
    assert cut_up.notes["windows"] == 4 * 4
    for layer in whole.layers:
        # float32 on both ways, and a merge in float64: a few units in the last place
        np.testing.assert_allclose(cut_up.arrays[layer], whole.arrays[layer], atol=2e-6)


def test_windows_are_even_whole_patches_and_cover_everything() -> None:
    data = as_panel([np.zeros((1, s)) for s in (3, 16, 32, 100)])
    windows = cut(data, Facts(context=16, patch=4), "toy")
    for i, length in enumerate(data.lengths):
        mine = [w for w in windows if w.series == i]
        assert [w.start for w in mine[1:]] == [w.stop for w in mine[:-1]]
        assert (mine[0].start, mine[-1].stop) == (0, length)
        assert all(len(w) <= 16 and w.start % 4 == 0 for w in mine)
        assert len(mine[0]) - len(mine[-1]) <= 4  # alike to a patch: no stub at the end


def test_ragged_series_give_the_same_alone_and_in_a_batch() -> None:
    series = [panel(1, 2, s, seed=s)[0] for s in (5, 24, 9, 24)]
    together = extract(StepsEncoder(), as_panel(series), Reading(ALL))
    for i, one in enumerate(series):
        alone = extract(StepsEncoder(), as_panel([one]), Reading(ALL))
        for layer in alone.layers:
            np.testing.assert_allclose(together.arrays[layer][i], alone.arrays[layer][0], atol=1e-6)


def test_an_encoder_that_cannot_mask_never_sees_padding() -> None:
    encoder = StepsEncoder(pads=False)
    windows = cut(as_panel([np.zeros((1, s)) for s in (8, 4, 8, 4, 4)]), encoder.facts, "toy")
    grouped = list(batches(windows, rows=2, pads=False))
    assert [[len(windows[i]) for i in batch] for batch in grouped] == [[4, 4], [8, 8], [4]]


def test_channels_stand_side_by_side_or_are_averaged() -> None:
    x = panel(3, 2, 24)
    both = extract(StepsEncoder(), as_panel(x))
    mean = extract(StepsEncoder(), as_panel(x), Reading(channels="mean"))
    one = [extract(StepsEncoder(), as_panel(x[:, [c]])).matrix("block.1", "mean") for c in (0, 1)]
    np.testing.assert_allclose(both.matrix("block.1", "mean"), np.hstack(one), atol=1e-6)
    np.testing.assert_allclose(mean.matrix("block.1", "mean"), (one[0] + one[1]) / 2, atol=1e-6)


def test_missing_values_are_masked_or_interpolated_and_counted() -> None:
    x = panel(2, 1, 24)
    x[0, 0, 4:8] = np.nan  # one whole patch
    x[1, 0, 3] = np.inf
    masked = extract(StepsEncoder(), as_panel(x))
    assert masked.notes["missing_values"] == 5
    assert masked.notes["missing_handling"] == "masked"
    kept = np.delete(x[0], np.s_[4:8], axis=1)
    np.testing.assert_allclose(
        masked.matrix("block.0", "mean")[0],
        extract(StepsEncoder(), as_panel([kept])).matrix("block.0", "mean")[0],
        atol=1e-6,
    )
    filled = extract(StepsEncoder(masks_missing=False), as_panel(x))
    assert filled.notes["missing_handling"] == "interpolated"
    by_line = np.stack([interpolate(series) for series in x])
    np.testing.assert_allclose(
        filled.arrays["block.2"], extract(StepsEncoder(), as_panel(by_line)).arrays["block.2"], atol=1e-6
    )
    with pytest.raises(DataError, match="5 values are missing or not finite"):
        extract(StepsEncoder(), as_panel(x), Reading(missing="error"))


def test_interpolation_is_linear_flat_at_the_ends_and_zero_without_any_value() -> None:
    x = np.array([[np.nan, 1, np.nan, 3, np.nan], [np.nan] * 5, [1, 2, 3, 4, 5]], np.float32)
    np.testing.assert_array_equal(interpolate(x), [[1, 1, 2, 3, 3], [0] * 5, [1, 2, 3, 4, 5]])


def test_too_short_and_wrong_channels_are_refused_with_the_index() -> None:
    data = as_panel([np.zeros((1, 9)), np.zeros((1, 3))])
    with pytest.raises(DataError, match="series 1 has 3 steps; toy needs at least 8"):
        extract(StepsEncoder(min_length=8), data)
    with pytest.raises(DataError, match="takes series of 2 channels; these have 1"):
        extract(StepsEncoder(channels=2), data)


def test_values_that_are_not_finite_name_the_layer_and_the_series() -> None:
    encoder = StepsEncoder()
    encoder.module.blocks[1] = nn.Hardshrink(float("inf"))
    encoder.module.blocks[1].forward = lambda x: x / (x.abs() > 1e9)  # type: ignore[method-assign]
    with pytest.raises(EncoderError, match=r"layer 'block.1' gives values that are not finite for 5 of 5"):
        extract(encoder, as_panel(panel()))


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, lambda handle: handle.write(b"old"))

    def fill_the_disk(handle: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device"):
        replace_file(path, fill_the_disk)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "a/b", "..", "", "x" * 300, "émile", "a:b", "<b>"])
def test_any_name_becomes_one_plain_file_name(name: str) -> None:
    safe = safe_name(name)
    assert safe
    assert Path(safe).name == safe
    assert not safe.startswith(".")
    assert len(safe) <= 100
    assert safe != safe_name(name + "!")
