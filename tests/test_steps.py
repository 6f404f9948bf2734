"""Reading single steps: which tokens, of which window, and that nothing of the future is in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.toys import PATCH, StepsEncoder
from tsprobe.capture import Features, Reading, Steps, coarse_layers, extract
from tsprobe.data.panel import as_panel
from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.errors import DataError, EncoderError, SpecError, UnknownNameError
from tsprobe.pooling import Slots, StepMap
from tsprobe.types import Batch, Inputs, TokenMap


def reading(steps: np.ndarray, *, causal: bool = False, **settings: object) -> Reading:
    steps = Steps(steps, causal)
    return Reading((steps.pooling,), steps=steps, **settings)  # type: ignore[arg-type]


def read(encoder, series: list[np.ndarray], steps: list[list[int]], **settings: object) -> np.ndarray:
    """`[N, M, D]` of the last layer."""
    found = extract(encoder, as_panel(series), reading(np.array(steps), **settings))
    return found.arrays["block.2"]


def noise(*lengths: int, channels: int = 1, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((channels, length)).astype(np.float32) for length in lengths]


def slow(x: np.ndarray, mask, start, stop, step: int, length: int, causal: bool) -> np.ndarray:
    """One step of one row, a token after the other."""
    real = [t for t in range(len(x)) if mask[t]]
    none = np.zeros(x.shape[1])
    if causal:
        ended = [t for t in real if stop[t] <= step + 1]
        return np.mean([x[t] for t in ended if stop[t] == stop[ended[-1]]], 0) if ended else none
    if not real or not 0 <= step < length:
        return none
    centre = {t: (start[t] + stop[t] - 1) / 2 for t in real}
    places = sorted(set(centre.values()))
    values = np.stack([np.mean([x[t] for t in real if centre[t] == c], 0) for c in places])
    return np.array([np.interp(step, places, column) for column in values.T])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [1, 3, 4])
def test_steps_are_read_as_a_loop_reads_them(causal, stride):
    rng = np.random.default_rng(stride)
    rows, tokens, length = 3, 11, 40
    start = np.sort(rng.integers(0, 9, (rows, tokens)) * stride, axis=1)  # some tokens share their steps
    stop = np.minimum(start + 4, length)
    mask = rng.random((rows, tokens)) < 0.7
    mask[0, 0] = True
    mask[2] = False
    x = rng.standard_normal((rows, tokens, 5))
    x[~mask] = np.nan
    steps = np.tile(np.arange(-6, length + 6), (rows, 1))
    lengths = np.array([length, 25, length])
    token_map = TokenMap(*(torch.from_numpy(a) for a in (mask, start, stop)))
    plan = StepMap.of(token_map, torch.from_numpy(steps), torch.from_numpy(lengths), causal=causal)
    value, weight = plan.read(torch.from_numpy(x))
    expected = [
        [slow(x[r], mask[r], start[r], stop[r], s, lengths[r], causal) for s in steps[r].tolist()] for r in range(rows)
    ]
    np.testing.assert_allclose(value.numpy(), expected, atol=1e-6)  # shares are kept in float32
    answered = (np.abs(expected) > 0).any(-1)
    assert ((weight.numpy() > 0) == answered).all()


def test_a_token_a_step_is_read_as_it_is():
    x = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    place = torch.arange(20).expand(2, -1)
    tokens = TokenMap(torch.ones(2, 20, dtype=torch.bool), place, place + 1)
    steps = torch.tensor([[0, 7, 19], [3, 3, 4]])
    for causal in (False, True):
        value, _ = StepMap.of(tokens, steps, torch.tensor([20, 20]), causal=causal).read(x)
        assert torch.equal(value, torch.stack([x[0, steps[0]], x[1, steps[1]]]))


def test_a_causal_reading_never_sees_a_token_that_covers_the_future():
    encoder = StepsEncoder()
    (series,) = noise(32)
    steps = [list(range(32))]
    changed = {}
    for causal in (False, True):
        before = read(encoder, [series], steps, causal=causal)[0]
        moved = []
        for step in range(32):
            bumped = series.copy()
            bumped[:, step] += 3
            after = read(encoder, [bumped], steps, causal=causal)[0]
            moved.append((after != before).any(-1))
        changed[causal] = np.array(moved)  # [bumped step, asked step]
    past = np.tril(np.ones((32, 32), bool), -1)  # asked before the bump
    assert not changed[True][past].any()
    assert changed[False][past].any()
    ends = np.arange(PATCH - 1, 32, PATCH)  # the step that completes a token reads it
    assert changed[True][ends, ends].all()


def test_before_the_first_token_ends_a_causal_reading_is_zero():
    value = read(StepsEncoder(), noise(12), [[0, PATCH - 2, PATCH - 1]], causal=True)[0]
    assert (value[:2] == 0).all()
    assert (value[2] != 0).any()


@pytest.mark.parametrize("causal", [False, True])
def test_one_series_alone_reads_as_among_many_of_other_lengths(causal):
    series = noise(30, 17, 64, 5, 41)
    steps = [sorted(np.random.default_rng(i).integers(0, s.shape[1], 7).tolist()) for i, s in enumerate(series)]
    together = read(StepsEncoder(), series, steps, causal=causal, rows=4)
    for i, one in enumerate(series):
        alone = read(StepsEncoder(), [one], [steps[i]], causal=causal)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)


def test_each_step_is_read_in_the_window_that_contains_it():
    series, every = noise(64, 50), [list(range(50))] * 2
    whole = read(StepsEncoder(), series, every)
    cut = read(StepsEncoder(context=16), series, every)
    inside = [s for s in range(50) if 2 <= s % 16 <= 13 and s < 46]  # between two centres of the same window
    np.testing.assert_allclose(cut[0][inside], whole[0][inside], atol=1e-6)
    at_border = [15, 16, 31, 32, 47]
    assert (np.abs(cut[0][at_border] - whole[0][at_border]).max(-1) > 1e-3).all()  # no token of the next window


def test_a_causal_reading_goes_back_to_the_window_before():
    series, every = noise(64, 50), [list(range(50))] * 2
    whole = read(StepsEncoder(), series, every, causal=True)
    cut = read(StepsEncoder(context=16), series, every, causal=True)
    np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_channels_are_put_side_by_side_or_averaged():
    series = noise(24, 24, channels=3)
    steps = [[3, 9, 23]] * 2
    each = np.stack([read(StepsEncoder(), [s[c : c + 1] for s in series], steps) for c in range(3)])  # [C, N, M, D]
    np.testing.assert_allclose(read(StepsEncoder(), series, steps), np.concatenate(each, -1), atol=1e-6)
    np.testing.assert_allclose(read(StepsEncoder(), series, steps, channels="mean"), each.mean(0), atol=1e-6)


def test_channels_of_series_in_windows_of_unlike_length():
    series = noise(64, 29, 50, channels=3)
    steps = [[3, 40, 63], [3, 20, 28], [3, 33, 49]]
    each = [read(StepsEncoder(context=32), [s[c : c + 1] for s in series], steps) for c in range(3)]
    together = read(StepsEncoder(context=32), series, steps)
    np.testing.assert_allclose(together, np.concatenate(each, -1), atol=1e-6)


def test_missing_values_and_padding_are_not_read():
    (series,) = noise(32)
    series[0, 8:16] = np.nan  # two tokens have nothing observed, and are masked
    value = read(StepsEncoder(), [series], [[5, 6, 12, 17, 18]])[0]
    filled = read(StepsEncoder(), [np.nan_to_num(series)], [[5, 18]])[0]
    assert np.isfinite(value).all()
    tokens = read(StepsEncoder(), [series], [[7, 19]], causal=True)[0]  # each the last step of its token
    for step, read_there in zip((6, 12, 17), value[1:4], strict=True):  # the centres are at 5.5 and 17.5
        share = (step - 5.5) / 12
        np.testing.assert_allclose(read_there, (1 - share) * tokens[0] + share * tokens[1], atol=1e-5)
    assert np.abs(filled[1] - value[4]).max() < 1e-6  # between two tokens that are there
    np.testing.assert_allclose(filled[0], value[0], atol=1e-6)


def test_kept_features_are_those_in_memory(tmp_path):
    panel = as_panel(noise(30, 30, 64))
    how = reading(np.array([[1, 8, 29]] * 3))
    here = extract(StepsEncoder(), panel, how)
    extract(StepsEncoder(), panel, how, store=tmp_path / "kept")
    there = Features.load(tmp_path / "kept")
    assert there.poolings == ("steps3",)
    for layer in here.layers:
        np.testing.assert_array_equal(there.matrix(layer, "steps3"), here.matrix(layer, "steps3"))
        assert here.matrix(layer, "steps3").shape == (3, 3 * 6)


class Summed(nn.Module):
    """Tokens of 4 steps, and at the end one vector a series."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6)])

    def forward(self, x):
        x = self.blocks[0](x.reshape(len(x), -1, 4))
        return self.blocks[1](x.mean(1, keepdim=True))


class SummedEncoder(Encoder):
    def __init__(self, final: str) -> None:
        taps = {f"block.{i}": Tap(f"blocks.{i}") for i in range(2)}
        super().__init__("summed", Summed(), taps, final, Facts(patch=4, pads=False))

    def prepare(self, batch: Batch) -> Inputs:
        rows, _, length = batch.values.shape
        start = torch.arange(0, length, 4).expand(rows, -1)
        fine = TokenMap(torch.ones_like(start, dtype=torch.bool), start, start + 4)
        one = TokenMap(fine.mask[:, :1], start[:, :1], batch.lengths[:, None])
        return Inputs({"x": batch.values[:, 0]}, {"block.0": fine, "block.1": one}, 1)


def test_a_layer_with_one_vector_a_series_is_refused():
    panel = as_panel(noise(32, 32))
    encoder = SummedEncoder("block.0")
    assert coarse_layers(encoder, panel, ["block.0", "block.1"]) == ("block.1",)
    how = reading(np.array([[4, 9]] * 2))
    with pytest.raises(EncoderError, match=r"not applicable: summed has one token for a whole series at block\.1"):
        extract(encoder, panel, how, layers=["block.0", "block.1"])
    assert extract(encoder, panel, how, layers=["block.0"]).arrays["block.0"].shape == (2, 2, 6)


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        (np.array([[0, 5], [0, 20]]), "series 1 has 20 steps, and is asked about"),
        (np.array([[-1, 5], [0, 2]]), r"series 0 has 30 steps, and is asked about \[-1, 5\]"),
        (np.array([[0, 5]]), r"give int64 \[2, M\]"),
        (np.array([[0.0, 5.0]] * 2), "float64; give int64"),
        (np.zeros((2, 0), np.int64), "give int64"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps, complaint):
    with pytest.raises((DataError, SpecError, UnknownNameError), match=complaint if steps.size else "steps0|int64"):
        extract(StepsEncoder(), as_panel(noise(30, 20)), reading(steps))


def test_steps_and_statistics_do_not_mix():
    assert Slots.parse(["steps3"]).kinds == ("step",) * 3
    with pytest.raises(UnknownNameError):
        Slots.parse(["mean", "steps3"])
    with pytest.raises(DataError, match="do not fit the steps"):
        extract(StepsEncoder(), as_panel(noise(30)), Reading(("mean",), steps=Steps(np.array([[3]]))))
    with pytest.raises(DataError, match="do not fit the steps"):
        extract(StepsEncoder(), as_panel(noise(30)), Reading(("steps1",)))
