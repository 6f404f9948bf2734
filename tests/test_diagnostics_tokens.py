"""Measures over tokens and attention against plain loops in float64, streamed as one pass reads them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tsprobe as tp
from tsprobe.capture import Reading, extract, read_layers
from tsprobe.capture.windows import cut, load
from tsprobe.data.panel import as_panel
from tsprobe.diagnostics import CATALOGUE, TokenWatch, attention, of_kind, places, tokens
from tsprobe.diagnostics.attention import attention_measures, looking
from tsprobe.diagnostics.places import Places
from tsprobe.diagnostics.tokens import measure_tokens
from tsprobe.types import Grid, TokenMap

NAMES = of_kind(CATALOGUE, "tokens")
WEIGHTS = of_kind(CATALOGUE, "attention")
TOLERANCE = dict.fromkeys(NAMES, 1e-9) | {"token_entropy": 1e-5}  # its eigenvalues are those of float32


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_map(masks: list[list[bool]], patch: int = 4) -> TokenMap:
    """Tokens of `patch` steps, one after the other; those that are masked cover none."""
    mask = torch.tensor(masks)
    start = (mask.cumsum(1) - 1).clamp(min=0) * patch
    return TokenMap(mask, torch.where(mask, start, 0), torch.where(mask, start + patch, 0))


def plain(x: np.ndarray, at: np.ndarray) -> dict[str, float]:
    """The definitions, token by token: x `[t, D]` real tokens in order, at `[t, k]` their places in tokens."""
    share = np.linalg.eigvalsh(x @ x.T / np.trace(x @ x.T)).clip(1e-300)
    angles = []
    for i in range(len(x) - 2):
        a, b = x[i + 1] - x[i], x[i + 2] - x[i + 1]
        angles.append(math.acos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))
    apart = np.abs(at[:, None] - at[None]).sum(-1)
    near, far = [], []
    for i in range(len(x)):
        for j in range(len(x)):
            cosine = x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
            if apart[i, j] == 1:
                near.append(cosine)
            elif apart[i, j] >= apart.max() / 2 and apart[i, j] > 1:
                far.append(cosine)
    norms = np.linalg.norm(x, axis=1)
    return {
        "token_entropy": -(share * np.log(share)).sum(),
        "curvature": np.mean(angles) if angles else np.nan,
        "token_locality": np.mean(near) - np.mean(far) if far else np.nan,
        "token_norm_ratio": norms.max() / np.median(norms),
    }


def test_rows_of_unlike_length_give_what_each_gives_alone() -> None:
    """Special tokens in front, padding on either side, more tokens than dimensions and fewer."""
    masks = [[False] + [True] * 11, [False, True] + [False] * 5 + [True] * 5, [False] * 9 + [True] * 3, [True] * 12]
    tokens_of = token_map(masks)
    for width in (5, 30):
        x = normal(4, 12, width) + 1
        found = measure_tokens(x, Places.of(tokens_of, torch.arange(4)), NAMES)
        for row, mask in enumerate(masks):
            real = x[row][torch.tensor(mask)].double().numpy()
            right = plain(real, np.arange(len(real))[:, None])
            for name, value in zip(NAMES, found[row].tolist(), strict=True):
                assert value == pytest.approx(right[name], abs=TOLERANCE[name]), (name, row)


def test_tokens_on_a_grid_are_neighbours_where_they_share_a_side() -> None:
    x = normal(1, 13, 6)
    mask = torch.tensor([[False] + [True] * 12])
    steps = torch.zeros_like(mask, dtype=torch.int64)
    at = Places.of(TokenMap(mask, steps, steps, 0, Grid(3, 4, 24)), torch.tensor([0]))
    found = dict(zip(NAMES, measure_tokens(x, at, NAMES)[0].tolist(), strict=True))
    places_of = np.array([(i // 4, i % 4) for i in range(12)])
    right = plain(x[0, 1:].double().numpy(), places_of)
    assert found["token_locality"] == pytest.approx(right["token_locality"], abs=1e-9)
    assert found["token_entropy"] == pytest.approx(right["token_entropy"], abs=1e-5)
    assert math.isnan(found["curvature"])  # a picture has no order of time
    assert at.at[0, 1 + 6].tolist() == [12, 15]  # the middle of row 1, column 2, of 24 x 24 pixels


def test_tokens_are_taken_in_the_order_of_their_time() -> None:
    x = normal(1, 8, 4)
    tokens_of = token_map([[True] * 8])
    turn = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    turned = TokenMap(tokens_of.mask, tokens_of.start[:, turn], tokens_of.stop[:, turn])
    straight = measure_tokens(x, Places.of(tokens_of, torch.tensor([0])), NAMES)
    assert torch.allclose(measure_tokens(x[:, turn], Places.of(turned, torch.tensor([0])), NAMES), straight)


def test_channels_that_share_a_time_have_no_curvature_and_a_locality() -> None:
    """Two channels, token by token: those of one time are no neighbours in time."""
    x = normal(1, 8, 4)
    start = torch.arange(8)[None] // 2 * 4
    at = Places.of(TokenMap(torch.ones(1, 8, dtype=torch.bool), start, start + 4), torch.tensor([0]))
    found = dict(zip(NAMES, measure_tokens(x, at, NAMES)[0].tolist(), strict=True))
    assert math.isnan(found["curvature"])
    right = plain(x[0].double().numpy(), np.arange(8)[:, None] // 2)
    assert found["token_locality"] == pytest.approx(right["token_locality"], abs=1e-9)


def test_known_answers() -> None:
    line = torch.arange(1.0, 7)[:, None] * torch.tensor([[1.0, 2.0]])  # one direction, straight on
    corner = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1], [0, 0], [1, 0]])  # right angles
    at = Places.of(token_map([[True] * 6] * 2), torch.arange(2))
    found = measure_tokens(torch.stack([line, corner]), at, NAMES)
    by_name = {name: found[:, i].tolist() for i, name in enumerate(NAMES)}
    assert by_name["token_entropy"][0] == pytest.approx(0, abs=1e-5)
    assert by_name["curvature"] == pytest.approx([0, math.pi / 2], abs=1e-7)
    assert by_name["token_locality"][0] == pytest.approx(0, abs=1e-9)
    assert by_name["token_norm_ratio"][0] == pytest.approx(6 / 3.5)


@pytest.mark.parametrize(
    ("count", "missing"),
    [(1, NAMES), (2, ("curvature", "token_locality")), (3, ())],
)
def test_too_few_tokens_are_not_measured(count: int, missing: tuple[str, ...]) -> None:
    mask = [True] * count + [False] * (4 - count)
    found = measure_tokens(normal(1, 4, 3), Places.of(token_map([mask]), torch.tensor([0])), NAMES)[0]
    assert {name for name, value in zip(NAMES, found.tolist(), strict=True) if math.isnan(value)} == set(missing)


def test_a_layer_that_overflows_or_is_constant_is_nan_and_spares_its_neighbours() -> None:
    x = normal(4, 6, 3)
    clean = measure_tokens(x, Places.of(token_map([[True] * 6] * 4), torch.arange(4)), NAMES)
    x[1, 2, 0], x[2, 0, 0] = torch.nan, torch.inf
    x[3] = 0
    found = measure_tokens(x, Places.of(token_map([[True] * 6] * 4), torch.arange(4)), NAMES)
    assert torch.equal(found[0], clean[0])
    assert found[1:3].isnan().all()
    values = dict(zip(NAMES, found[3].tolist(), strict=True))
    assert math.isnan(values["token_entropy"])
    assert math.isnan(values["curvature"])
    assert math.isnan(values["token_norm_ratio"])


def test_long_rows_are_thinned_out_for_entropy_and_cut_for_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ENTROPY_LIMIT", 5)
    monkeypatch.setattr(places, "LIMIT", 9)
    x = normal(1, 20, 6)
    found = measure_tokens(x, Places.of(token_map([[True] * 20]), torch.tensor([0])), NAMES)[0]
    first = x[0, :9].double().numpy()
    right = plain(first, np.arange(9)[:, None]) | {
        "token_entropy": plain(first[[0, 2, 4, 6, 8]], np.arange(5)[:, None])["token_entropy"]
    }
    for name, value in zip(NAMES, found.tolist(), strict=True):
        assert value == pytest.approx(right[name], abs=TOLERANCE[name]), name


class Heads(nn.Module):
    """Fused self-attention of four heads over tokens `[R, T, D]`, keys shared by two heads each where `groups`."""

    def __init__(self, width: int = 16, groups: bool = False, **how: object) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.groups, self.how = groups, how

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (part(x).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.q, self.k))
        return q, k[:, :2] if self.groups else k

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.queries_and_keys(x)
        v = self.v(x).unflatten(-1, (4, -1)).transpose(1, 2)
        v = v[:, :2] if self.groups else v
        return F.scaled_dot_product_attention(q, k, v, **self.how).transpose(1, 2).flatten(2)


def plain_attention(
    a: np.ndarray, real: np.ndarray, at: np.ndarray, queries: list[int] | None = None
) -> tuple[float, float]:
    """Head-averaged weights a `[T, T]` of a row, at the definition."""
    asks = [i for i in range(len(a)) if real[i]] if queries is None else queries
    keys = [j for j in range(len(a)) if real[j]]
    mass = max(np.mean([a[i, j] for i in asks]) for j in keys) * len(keys)
    reach = [sum(a[i, j] * np.linalg.norm(at[i] - at[j]) for j in keys) / sum(a[i, j] for j in keys) for i in asks]
    return mass, float(np.mean(reach))


def weights(module: Heads, x: Tensor) -> np.ndarray:
    """Explicit, head-averaged attention `[R, T, T]`."""
    q, k = (t.double() for t in module.queries_and_keys(x))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.transpose(2, 3) * module.how.get("scale", q.shape[-1] ** -0.5)
    mask = module.how.get("attn_mask")
    if module.how.get("is_causal"):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).mean(1).numpy()


BIAS = normal(4, 10, 10, seed=5)
SEEN = (torch.rand(3, 1, 1, 10, generator=torch.Generator().manual_seed(1)) > 0.3) | torch.eye(10, dtype=torch.bool)
HOWS = [{}, {"is_causal": True}, {"scale": 0.7}, {"attn_mask": BIAS}, {"attn_mask": SEEN}, {"attn_mask": SEEN[:1, 0]}]


@pytest.mark.parametrize("how", HOWS, ids=["plain", "causal", "scale", "bias", "mask of rows", "mask"])
@pytest.mark.parametrize("groups", [False, True])
def test_attention_equals_explicit_weights(how: dict, groups: bool) -> None:
    torch.manual_seed(0)
    shared = {"enable_gqa": True} if groups else {}
    module = Heads(groups=groups, **how, **shared).requires_grad_(False)
    x = normal(3, 10, 16) * 2
    tokens_of = token_map([[True] * 10, [False] + [True] * 9, [True] * 6 + [False] * 4])
    rows = torch.tensor([0, 2])
    with looking(module, {"a": ""}, rows, {"a": (3, 10)}) as seen:
        module(x)
    at = Places.of(tokens_of, rows)
    found = attention_measures(seen["a"], at, WEIGHTS)
    explicit = weights(module, x)
    for i, row in enumerate(rows.tolist()):
        right = plain_attention(explicit[row], tokens_of.mask[row].numpy(), at.at[i].numpy())
        assert found[i].tolist() == pytest.approx(right, rel=1e-5)  # queries and keys are float32


def test_many_queries_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES", 4)
    monkeypatch.setattr(attention, "SCORES", 1)  # a row at a time
    torch.manual_seed(0)
    module, x = Heads().requires_grad_(False), normal(2, 11, 16)
    tokens_of = token_map([[False] + [True] * 10, [True] * 11])
    with looking(module, {"a": ""}, torch.arange(2), {"a": (2, 11)}) as seen:
        module(x)
    at = Places.of(tokens_of, torch.arange(2))
    found, explicit = attention_measures(seen["a"], at, WEIGHTS), weights(module, x)
    for row, queries in enumerate([[1, 4, 7, 10], [0, 3, 7, 10]]):
        right = plain_attention(explicit[row], tokens_of.mask[row].numpy(), at.at[row].numpy(), queries)
        assert found[row].tolist() == pytest.approx(right, rel=1e-5)


def test_even_attention_has_mass_one_and_one_global_token_has_all() -> None:
    module, x = Heads(), torch.zeros(1, 8, 16)
    for part in (module.q, module.k, module.v):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    at = Places.of(token_map([[True] * 8]), torch.tensor([0]))
    found = []
    for strength in (0.0, 100.0):
        module.k.weight.data.fill_(strength)
        module.q.bias.data.fill_(1.0)
        x[0, 3] = strength
        with torch.no_grad(), looking(module, {"a": ""}, torch.tensor([0]), {"a": (1, 8)}) as seen:
            module(x)
        found.append(attention_measures(seen["a"], at, ("attention_mass",)).item())
    assert found == pytest.approx([1, 8], abs=1e-6)


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Heads()

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("on the way")


@pytest.mark.parametrize("module", [Heads(), Fails()])
def test_nothing_is_left_behind_however_the_pass_ends(module: nn.Module) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())

    x = torch.zeros(1, 8, 16 if isinstance(module, Fails) else 17)
    with looking(module, {"a": ""}, torch.tensor([0]), {"a": (1, 8)}):
        assert hooks() == 2
        with pytest.raises(RuntimeError):
            module(x)
        assert torch._C._len_torch_function_stack() == 0
    assert hooks() == 0
    assert torch._C._len_torch_function_stack() == 0
    with looking(module, {"a": ""}, torch.tensor([0]), {"a": (1, 8)}) as seen:
        F.scaled_dot_product_attention(*[torch.zeros(1, 4, 8, 4)] * 3)  # outside of the module
    assert not seen


def test_attention_over_other_tokens_is_not_taken_for_the_layers_own() -> None:
    module = Heads().requires_grad_(False)
    with looking(module, {"a": ""}, torch.tensor([0]), {"a": (2, 7)}) as seen:
        module(normal(2, 8, 16))
    at = Places.of(token_map([[True] * 7] * 2), torch.tensor([0]))
    assert attention_measures(seen["a"], at, WEIGHTS).isnan().all()


def mean_of_rows(encoder, panel, layer: str, series: list[int]) -> dict[str, float]:
    """One series at a time, and of its windows and channels one after the other: the mean of the values of each row."""
    rows = []
    for window in cut(panel, encoder.facts, encoder.name):
        if window.series in series:
            batch = load(panel, [window], keep_missing=encoder.facts.masks_missing)
            inputs, kept = encoder.prepare(batch), {}
            with torch.inference_mode():
                read_layers(encoder, inputs, [layer], kept.__setitem__)
            for r in range(len(kept[layer])):
                x = kept[layer][r][inputs.tokens_of(layer).mask[r]].double().numpy()
                rows.append(plain(x, np.arange(len(x))[:, None]))
    return {name: float(np.mean([row[name] for row in rows])) for name in NAMES}


@pytest.mark.parametrize("rows", [5, 64])
def test_streamed_equals_one_series_at_a_time(rows: int) -> None:
    """Two channels, series of unlike length, some in windows; whatever else is in the batch."""
    encoder = tp.load_encoder("zoo/forecasting")
    rng = np.random.default_rng(0)
    series = [rng.standard_normal((2, n)).cumsum(1).astype(np.float32) for n in (64, 120, 700, 64, 90)]
    panel = as_panel(series)
    chosen = [1, 2, 4]
    watch = TokenWatch((*NAMES, *WEIGHTS), chosen, encoder.attention)
    watched = extract(encoder, panel, Reading(rows=rows), watch=watch)
    assert watch.seen == set(chosen)
    assert watch.left == []
    found = watch.compute()
    assert list(found) == list(encoder.taps)
    for layer in ("embedding", "block.5", "norm"):
        right = mean_of_rows(encoder, panel, layer, chosen)
        for name in NAMES:
            # padding changes the order of sums in the network: float32 tokens differ by 1e-6
            assert found[layer][name].value == pytest.approx(right[name], rel=1e-4), (layer, name)
    plainly = extract(encoder, panel, Reading(rows=rows))
    for layer in encoder.taps:  # looking changes nothing
        assert np.array_equal(watched.arrays[layer], plainly.arrays[layer])
    assert math.isnan(found["norm"]["attention_mass"].value)
    assert found["norm"]["attention_mass"].note
    assert found["block.3"]["attention_mass"].value > 1


def test_the_zoo_shows_the_attention_that_its_blocks_compute() -> None:
    from tsprobe.encoders.backbone import attention_mask, rotate, rotation

    encoder = tp.load_encoder("zoo/reconstruction")
    panel = as_panel(np.random.default_rng(0).standard_normal((3, 1, 160)).cumsum(2).astype(np.float32))
    watch = TokenWatch(WEIGHTS, [0, 1, 2], encoder.attention)
    extract(encoder, panel, watch=watch)
    inputs = encoder.prepare(load(panel, cut(panel, encoder.facts, "zoo"), keep_missing=True))
    kept: dict[str, Tensor] = {}
    with torch.inference_mode():
        read_layers(encoder, inputs, ["block.3", "block.4"], kept.__setitem__)
        block = encoder.module.backbone.blocks[4]
        q, k, _ = block.qkv(block.norm1(kept["block.3"])).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        turn = rotation(torch.arange(20).expand(3, -1), q.shape[-1])
        scores = (rotate(q, turn) @ rotate(k, turn).transpose(2, 3)).double() * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~attention_mask(torch.ones(3, 20, dtype=torch.bool), causal=False), -torch.inf)
    at = np.arange(20)[:, None] * 8.0 + 4
    right = np.mean([plain_attention(a, np.ones(20, bool), at) for a in scores.softmax(-1).mean(1).numpy()], axis=0)
    found = watch.compute()["block.4"]
    assert [found[name].value for name in WEIGHTS] == pytest.approx(right.tolist(), rel=1e-5)


def pictures(side: int):
    return as_panel(np.random.default_rng(0).random((3, 3, side * side)).astype(np.float32))


def on_grid(explicit: Tensor, prefix: int, count: int, side: int) -> list[float]:
    """Of weights `[R, T, T]` of pictures of `count` x `count` tokens, special ones first: the mean over rows."""
    at = np.array([(i // count, i % count) for i in range(count**2)]) * side / count + side / count / 2
    at, real = np.concatenate([np.zeros((prefix, 2)), at]), np.arange(prefix + count**2) >= prefix
    return np.mean([plain_attention(a, real, at) for a in explicit.double().numpy()], axis=0).tolist()


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_pe_core_tiny_patch16_384"])
def test_timm_shows_the_attention_that_its_own_extractor_gives(model: str, tmp_path) -> None:
    """A class token in front; absolute positions, and PE's rotary ones; weights that are not fused are the referee."""
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf
    from timm.utils import AttentionExtract

    torch.manual_seed(0)
    small = {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
    made = timm.create_model(model, **small)
    save_for_hf(made, tmp_path, model_args=small, safe_serialization=True)
    encoder = tp.load_encoder(f"timm:{tmp_path}")
    panel = pictures(64)
    watch = TokenWatch(WEIGHTS, [0, 1, 2], encoder.attention)
    extract(encoder, panel, watch=watch)
    inputs = encoder.prepare(load(panel, cut(panel, encoder.facts, "timm"), keep_missing=False))
    for block in encoder.module.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        explicit = AttentionExtract(encoder.module, method="hook")(inputs.kwargs["x"])
    assert len(explicit) == 2
    for i, name in enumerate(explicit):
        right = on_grid(explicit[name].mean(1), 1, 4, 64)
        found = watch.compute()[f"block.{i}"]
        assert [found[name].value for name in WEIGHTS] == pytest.approx(right, rel=1e-5)
    watch = TokenWatch(WEIGHTS, [0, 1, 2], encoder.attention)
    extract(encoder, panel, watch=watch)  # with attention that is not fused there is nothing to be seen
    value = watch.compute()["block.0"]["attention_mass"]
    assert math.isnan(value.value)
    assert "attention" in value.note


def test_towers_of_vision_show_the_attention_that_their_blocks_compute() -> None:
    from vision.encoders.zoo import VisionZoo
    from vision.models.positions import rotate, rotation
    from vision.models.tower import Tower, TowerShape

    torch.manual_seed(0)
    encoder = VisionZoo("vision:small", Tower(TowerShape(32, 8, 32, 2, 2)), {})
    panel = pictures(32)
    watch = TokenWatch((*NAMES, *WEIGHTS), [0, 1, 2], encoder.attention)
    extract(encoder, panel, watch=watch)
    inputs = encoder.prepare(load(panel, cut(panel, encoder.facts, "vision"), keep_missing=False))
    kept: dict[str, Tensor] = {}
    with torch.inference_mode():
        read_layers(encoder, inputs, ["block.0", "block.1"], kept.__setitem__)
        block = encoder.module.blocks[1]
        q, k, _ = block.qkv(block.norm1(kept["block.0"])).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        turn = rotation(4, 4, 16, cls=True)
        scores = rotate(q, turn) @ rotate(k, turn).transpose(2, 3) * 16**-0.5
    found = watch.compute()["block.1"]
    right = on_grid(scores.double().softmax(-1).mean(1), 1, 4, 32)
    assert [found[name].value for name in WEIGHTS] == pytest.approx(right, rel=1e-5)
    assert math.isnan(found["curvature"].value)
    at = np.array([(i // 4, i % 4) for i in range(16)])
    right = np.mean([plain(x[1:].double().numpy(), at)["token_locality"] for x in kept["block.1"]])
    assert found["token_locality"].value == pytest.approx(right, abs=1e-6)


class Global(nn.Module):
    """Blocks of even attention; from the third on, all queries look at one token, which grows and is copied to all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(5))
        for i in range(5):
            self.blocks[i] = GlobalBlock(i >= 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unfold(1, 4, 4))
        for block in self.blocks:
            x = block(x)
        return x


class GlobalBlock(nn.Module):
    def __init__(self, stares: bool) -> None:
        super().__init__()
        self.stares = stares
        self.weight = nn.Parameter(torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        mark = torch.zeros_like(x)
        mark[:, 5] = 1
        q = torch.ones_like(x)
        mixed = F.scaled_dot_product_attention(q[:, None], mark[:, None] * 10 * self.stares, x[:, None])[:, 0]
        return x + (0.2 * mixed + 20 * mark if self.stares else 0.1 * mixed) @ self.weight


def test_a_planted_global_token_is_found_at_its_layer() -> None:
    torch.manual_seed(0)
    encoder = tp.load_encoder(Global(), blocks="blocks.*", prepare="bs", tokens=4, name="global")
    encoder.attention = {f"block.{i}": f"blocks.{i}" for i in range(5)}
    panel = as_panel(np.random.default_rng(0).standard_normal((20, 1, 64)).cumsum(2).astype(np.float32))
    watch = TokenWatch((*NAMES, *WEIGHTS), range(20), encoder.attention)
    extract(encoder, panel, watch=watch)
    found = watch.compute()
    curve = {name: [found[f"block.{i}"][name].value for i in range(5)] for name in (*NAMES, *WEIGHTS)}
    assert curve["attention_mass"] == pytest.approx([1, 1, 16, 16, 16], rel=1e-6)
    assert curve["token_norm_ratio"][4] > 1.5 * curve["token_norm_ratio"][1]
    assert curve["token_locality"][4] < 0.5 * curve["token_locality"][1]
