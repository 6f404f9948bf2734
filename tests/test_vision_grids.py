"""Tokens of pictures: the cells that they belong to, the pixels that they are read at, pixel statistics, the zoo."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official import batch_of, read
from safetensors.torch import save_file

from tsprobe import testing
from tsprobe.capture import Reading, Steps, coarse_layers, extract
from tsprobe.data.panel import as_panel
from tsprobe.encoders import Tap, list_encoders, load_encoder
from tsprobe.errors import DataError, EncoderError, UnknownNameError
from tsprobe.pooling import Slots, StepMap, pool
from tsprobe.testing import check_encoder
from tsprobe.types import Grid, TokenMap
from vision.encoders.grids import interleave, picture_tokens, single_token
from vision.encoders.pixels import DIRECTIONS, SIZE, Pixels, PixelStatistics
from vision.images import side, to_images, to_panel
from vision.models import MODEL_TYPE, build

TOWER = {"size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 2, "embed": 16}


def borders(size, segments):
    """As capture makes them."""
    return torch.tensor([float(size * size)])[:, None] * torch.linspace(0, 1, segments + 1)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_curve_goes_through_quarters_in_turn():
    place = torch.arange(4)
    assert interleave(place[:, None], place[None], 2).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


@pytest.mark.parametrize("cells", [2, 4, 8])
@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (16, 16), (24, 24), (32, 32), (37, 37), (9, 20)])
# whole cells; borders that are fractions; more steps than float32 counts in 256ths; about the smallest that can do
@pytest.mark.parametrize("size", [224, 225, 518, 378, 33, 16])
def test_segments_are_the_means_of_cells(grid, cells, size):
    tokens = picture_tokens(1, *grid, size, prefix=3, cls=0)
    x = noise(1, 3 + grid[0] * grid[1], 5)
    x[:, :3] = torch.nan
    row, column = (torch.arange(n) * cells // n for n in grid)
    picture = x[0, 3:].unflatten(0, grid)
    expected = torch.stack([picture[row == r][:, column == c].mean((0, 1)) for r in range(cells) for c in range(cells)])
    order = interleave(torch.arange(cells)[:, None], torch.arange(cells)[None], cells.bit_length() - 1).flatten()
    for path in ("auto", "reference"):
        found, weight = pool(x, tokens, Slots.parse([f"segments{cells**2}"]), borders(size, cells**2), path)
        torch.testing.assert_close(found[0, order], expected, rtol=1e-5, atol=1e-5)
        assert bool((weight > 0).all())


def test_halves_are_the_upper_and_the_lower():
    tokens, x = picture_tokens(1, 14, 14, 224), noise(1, 196, 4)
    found, _ = pool(x, tokens, Slots.parse(["segments2"]), borders(224, 2), "reference")
    torch.testing.assert_close(found[0], x[0].unflatten(0, (2, -1)).mean(1))


@pytest.mark.parametrize(
    ("grid", "size", "cells"),
    [(7, 224, 16), (3, 96, 4), (2, 50, 4), (1, 32, 1), (16, 8, 64), (16, 7, 16), (16, 5, 4), (4, 1, 1)],
)
def test_with_fewer_tokens_or_pixels_than_segments_those_of_a_cell_share_its_mean(grid, size, cells):
    tokens, x = picture_tokens(1, grid, grid, size), noise(1, grid**2, 4)
    assert bool((tokens.start < tokens.stop).all())
    assert int(tokens.stop.max()) <= size**2
    fine, weight = pool(x, tokens, Slots.parse(["segments64"]), borders(size, 64), "reference")
    coarse, _ = pool(x, tokens, Slots.parse([f"segments{cells}"]), borders(size, cells), "reference")
    shared = coarse[0].repeat_interleave(64 // cells, 0)
    full = weight[0] > 0
    torch.testing.assert_close(fine[0, full], shared[full])
    assert bool(full.all()) or size <= 7  # of the smallest pictures some segments hold no whole step


def test_pixels_are_read_between_the_centres_of_four_tokens():
    """2 x 2 tokens of 2 x 2 pixels each: centres at 0.5 and 2.5."""
    tokens = picture_tokens(1, 2, 2, 4, prefix=1, cls=0)
    x = torch.tensor([[[torch.nan], [0.0], [1.0], [10.0], [11.0]]])
    steps = torch.arange(16)[None]
    value, weight = StepMap.of(tokens, steps, torch.tensor([16])).read(x)
    share = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(value[0, :, 0].view(4, 4), share[None] + 10 * share[:, None])
    assert weight.tolist() == [[1.0] * 16]


@pytest.mark.parametrize(("rows", "columns", "size"), [(3, 3, 12), (4, 4, 7), (2, 5, 10), (14, 14, 8), (1, 1, 4)])
def test_pixels_are_read_as_torch_resizes(rows, columns, size):
    tokens = picture_tokens(2, rows, columns, size, prefix=2)
    x = noise(2, 2 + rows * columns, 6)
    steps = torch.arange(size * size).expand(2, -1)
    value, _ = StepMap.of(tokens, steps, torch.full((2,), size * size)).read(x)
    picture = x[:, 2:].transpose(1, 2).unflatten(2, (rows, columns))
    expected = F.interpolate(picture, size=(size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(value, expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_pixels_outside_and_pictures_in_time_are_refused():
    tokens = picture_tokens(1, 2, 2, 4)
    value, weight = StepMap.of(tokens, torch.tensor([[-1, 16, 3]]), torch.tensor([16])).read(torch.ones(1, 4, 2))
    assert weight.tolist() == [[0.0, 0.0, 1.0]]
    assert value[0, :, 0].tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(EncoderError, match="no before and after"):
        StepMap.of(tokens, torch.tensor([[3]]), torch.tensor([16]), causal=True)
    wrong = TokenMap(tokens.mask, tokens.start, tokens.stop, grid=Grid(3, 2, 4))
    with pytest.raises(EncoderError, match=r"3 x 2 tokens has rows of \[4\]"):
        StepMap.of(wrong, torch.tensor([[3]]), torch.tensor([16]))


@pytest.fixture
def folder(tmp_path):
    """A small tower of the zoo with random weights, in half precision as the shipped ones."""
    config = {"model_type": MODEL_TYPE, "tower": TOWER, "objective": "contrastive", "pretrained_on": "noise"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    module = build(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_file({k: v.half() for k, v in module.state_dict().items()}, tmp_path / "model.safetensors")
    return tmp_path


def pictures(n, size, seed=0):
    random = np.random.default_rng(seed)
    return list(to_panel(random.integers(0, 256, (n, 3, size, size)).astype(np.uint8)))


def test_dense_reading_and_segments_of_a_whole_panel(folder):
    """Through capture: dense tasks leave heads out; segments and pixels agree with the layers read by hand."""
    encoder = load_encoder(f"vision:{folder}")
    panel = as_panel(pictures(5, 32))
    assert coarse_layers(encoder, panel, encoder.taps) == ("pool", "projection")
    steps = Steps(np.tile(np.array([0, 5 * 32 + 7, 1023]), (5, 1)))
    fine = [name for name in encoder.taps if name not in ("pool", "projection")]
    found = extract(encoder, panel, Reading((steps.pooling,), steps=steps), layers=fine)
    _, layers = read(encoder, batch_of(list(panel.series)))
    for name in fine:
        picture = layers[name][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        whole = F.interpolate(picture, size=(32, 32), mode="bilinear", align_corners=False).flatten(2)
        expected = whole[:, :, steps.at[0]].transpose(1, 2)
        np.testing.assert_allclose(found.arrays[name], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(EncoderError, match="one token for a whole series at pool"):
        extract(encoder, panel, Reading((steps.pooling,), steps=steps))
    pooled = extract(encoder, panel, Reading(("mean", "cls", "segments4"))).arrays
    quarters = layers["norm"][:, 1:].unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    np.testing.assert_allclose(pooled["norm"][:, 2:], quarters, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled["norm"][:, 1], layers["norm"][:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled["projection"], layers["projection"].expand(-1, 6, -1), rtol=1e-4, atol=1e-5)


def test_pictures_of_unlike_size_are_read_in_batches_of_their_own(folder):
    encoder = load_encoder(f"vision:{folder}")
    many = [*pictures(2, 32), *pictures(1, 20), *pictures(2, 40)]
    found = extract(encoder, as_panel(many), Reading(("mean",))).arrays["norm"]
    for series, row in zip(many, found, strict=True):
        alone = extract(encoder, as_panel([series]), Reading(("mean",))).arrays["norm"]
        np.testing.assert_allclose(row, alone[0], rtol=1e-4, atol=1e-5)


def test_towers_of_the_zoo_are_read_as_they_run(folder):
    encoder = load_encoder(f"vision:{folder}")
    assert (encoder.final, encoder.final_of_steps) == ("projection", "norm")
    assert (encoder.facts.objective, encoder.facts.pretrained_on) == ("contrastive", "noise")
    many = pictures(3, 32)
    _, layers = read(encoder, batch_of(many))
    with torch.no_grad():
        x = torch.from_numpy(to_images(np.stack(many))) * 2 - 1
        torch.testing.assert_close(layers["norm"], encoder.module(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layers["projection"][:, 0], encoder.module.encode(x), rtol=1e-4, atol=1e-5)
    check_encoder(encoder, length=32 * 32, local=True)
    check_encoder(load_encoder(f"vision:{folder}", size=48), length=60 * 60)
    assert load_encoder(f"vision:{folder}@untrained").fingerprint() != encoder.fingerprint()
    assert load_encoder(f"vision:{folder}", size=48).fingerprint() != encoder.fingerprint()


def test_what_is_no_tower_of_the_zoo_is_refused(folder):
    with pytest.raises(UnknownNameError, match="did you mean 'vision/pixels'"):
        load_encoder("vision/pixel")
    with pytest.raises(EncoderError, match="whole patches of 8 pixels"):
        load_encoder(f"vision:{folder}", size=20)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tower": {**TOWER, "depth": 3}}))
    with pytest.raises(EncoderError, match="does not hold the weights of this model: missing blocks"):
        load_encoder(f"vision:{folder}")
    (folder / "config.json").write_text(json.dumps({**config, "tower": {**TOWER, "colour": 3}}))
    with pytest.raises(EncoderError, match="colour"):
        load_encoder(f"vision:{folder}")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(EncoderError, match="'bert', not 'vision-zoo'"):
        load_encoder(f"vision:{folder}")


def test_families_are_listed_with_those_of_tsprobe():
    rows = {row["name"]: row for row in list_encoders()}
    assert rows["vision/NAME"]["installed"] is True
    assert "PE core B 12 x 768, 94M" in rows["timm:MODEL_OR_FOLDER_OR_FILE"]["sizes"]


def test_pixels_know_colours_and_edges():
    encoder = load_encoder("vision/pixels")
    assert (encoder.final, encoder.final_of_steps) == ("all", "all")
    picture = np.zeros((1, 3, SIZE, SIZE), np.float32)
    picture[:, 0] = 0.5  # red, and in the right half blue besides
    picture[:, 2, :, SIZE // 2 + 2 :] = 1.0
    _, layers = read(encoder, batch_of(list(to_panel(picture))))
    fine = layers["fine"][0].unflatten(0, (16, 16))
    torch.testing.assert_close(fine[3, 2, :6], torch.tensor([0.5, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(fine[3, 12, :6], torch.tensor([0.5, 0, 1, 0, 0, 0]))
    assert float(fine[3, 2, 6:].abs().max()) == 0
    edge = fine[3, 8]  # 8 pixels wide, of which 6 are blue
    torch.testing.assert_close(edge[5], torch.tensor(math.sqrt(0.75 * 0.25)))
    assert edge[6:].argmax() == 0  # across
    assert bool((edge[7:] == 0).all())
    down, diagonal = picture.transpose(0, 1, 3, 2).copy(), picture.copy()
    diagonal[:, 2] = np.tril(np.ones((SIZE, SIZE)))
    for turned, direction in ((down, DIRECTIONS // 2), (diagonal, 3 * DIRECTIONS // 4)):
        _, layers = read(encoder, batch_of(list(to_panel(turned))))
        assert int(layers["coarse"][0, :, 6:].sum(0).argmax()) == direction
    whole = layers["all"][0].unflatten(0, (16, 16))
    torch.testing.assert_close(whole[5, 9, :14], layers["fine"][0].unflatten(0, (16, 16))[5, 9])
    torch.testing.assert_close(whole[5, 9, 14:28], layers["middle"][0].unflatten(0, (8, 8))[2, 4])
    torch.testing.assert_close(whole[5, 9, 28:], layers["coarse"][0].unflatten(0, (4, 4))[1, 2])


def test_pixel_statistics_keep_the_promises_of_encoders():
    encoder = load_encoder("vision/pixels")
    check_encoder(encoder, length=SIZE * SIZE, untrained=False)
    check_encoder(encoder, length=8 * 8, untrained=False)
    assert not list(PixelStatistics().parameters())
    assert (encoder.facts.objective, encoder.facts.channels) == ("none", 3)
    assert load_encoder("vision/pixels@untrained").facts.objective == "untrained"


def turned(tokens):
    return tokens.unflatten(1, (16, 16)).transpose(1, 2).flatten(1, 2)


class Wrong(Pixels):
    """Pixel statistics whose tokens lie elsewhere than their map says."""

    def __init__(self, fault):
        super().__init__()
        shift = {"columns": (0, 3), "rows": (3, 0), "two columns": (0, 2)}.get(fault)
        select = turned if shift is None else lambda x: x.unflatten(1, (16, 16)).roll(shift, (1, 2)).flatten(1, 2)
        self.taps = {"fine": Tap("levels.fine", select=select)}
        self.final = "fine"


@pytest.mark.parametrize("fault", ["turned", "columns", "rows", "two columns"])
def test_check_encoder_finds_tokens_at_the_wrong_place(fault):
    with pytest.raises(EncoderError, match="layer 'fine': a bump at step 8192 leaves its token unchanged"):
        check_encoder(Wrong(fault), length=SIZE * SIZE, untrained=False)


def test_check_encoder_finds_maps_of_the_wrong_grid(monkeypatch):
    encoder = load_encoder("vision/pixels")
    maps = encoder.maps(batch_of(pictures(1, SIZE)))
    wrong = {name: replace(tokens, grid=Grid(5, 5, SIZE)) for name, tokens in maps.items()}
    monkeypatch.setattr(encoder, "maps", lambda batch: {n: _repeated(t, len(batch.lengths)) for n, t in wrong.items()})
    with pytest.raises(EncoderError, match="the real tokens must be those of its Grid"):
        check_encoder(encoder, length=SIZE * SIZE, untrained=False)


def _repeated(tokens, count):
    parts = {name: getattr(tokens, name).expand(count, -1) for name in ("mask", "start", "stop")}
    return replace(tokens, **parts)


def test_neighbours_of_a_token_are_those_around_it():
    tokens = picture_tokens(1, 3, 4, 12, prefix=1, cls=0)
    covering = testing._covering(tokens, 5 * 12 + 4)  # the second row and column
    assert covering.tolist() == [[False, *(i == 5 for i in range(12))]]
    near = testing._beside(tokens, covering)[0, 1:].view(3, 4)
    assert near.tolist() == [[1, 1, 1, 0]] * 3


def test_images_go_to_series_and_back():
    given = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5)).astype(np.uint8)
    panel = to_panel(given)
    assert (panel.shape, panel.dtype) == ((2, 3, 25), np.float32)
    assert panel[1, 2, 3 * 5 + 4] == np.float32(given[1, 2, 3, 4]) / 255
    np.testing.assert_array_equal(to_images(panel), given.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(to_panel(given / 255.0), panel)
    assert side(25) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), "square RGB images"),
        (np.zeros((2, 1, 4, 4), np.uint8), "square RGB images"),
        (np.zeros((3, 4, 4), np.uint8), "square RGB images"),
        (np.zeros((0, 3, 4, 4), np.uint8), "square RGB images"),
        (np.zeros((1, 3, 4, 4), np.int64), "images of type int64"),
        (np.full((1, 3, 4, 4), 200.0), "values from 0 to 1"),
        (np.full((1, 3, 4, 4), np.nan), "values from 0 to 1"),
    ],
)
def test_what_is_no_image_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        to_panel(given)


@pytest.mark.parametrize("steps", [0, -4, 2, 24])
def test_sides_are_whole(steps):
    with pytest.raises(DataError, match="no square image"):
        side(steps)


def test_one_token_stands_for_the_whole_picture():
    tokens = single_token(2, 6, cls=True)
    assert (tokens.mask.tolist(), tokens.start.tolist(), tokens.stop.tolist()) == ([[True]] * 2, [[0]] * 2, [[36]] * 2)
    assert single_token(2, 6).cls is None
