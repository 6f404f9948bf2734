"""The small vision towers, their parts against independent formulas, and the three recipes that train them."""

from __future__ import annotations

import csv
import json
import math
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_cli import tsprobe

from tsprobe.errors import DataError, EncoderError, SpecError, StorageError
from tsprobe.pretraining import fit, recipes
from tsprobe.settings import read_settings
from tsprobe.study.progress import silent
from vision.models import TextShape, TextTower, Tower, TowerShape, Vocabulary, build, load_text
from vision.models.blocks import AttentionPool
from vision.models.positions import resized, rotate, rotation
from vision.models.text import END, PAD
from vision.pretraining import Run, spec_of
from vision.pretraining.augment import Augmentation, mirrored, view
from vision.pretraining.objectives.autoregressive import normalised, prefix_mask
from vision.pretraining.objectives.base import hide
from vision.pretraining.objectives.contrastive import matching
from vision.pretraining.pool import Batch, Pool, generator, rows_at
from vision.pretraining.train import optimiser

CONFIGS = Path(__file__).parents[1] / "configs" / "pretrain"
RECIPES = ("contrastive", "autoregressive", "self-distillation")
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (120, 120, 120)}
SMALL = {"size": 32, "patch": 8, "width": 16, "depth": 2, "heads": 2, "embed": 12}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pool(n, seed=0):
    """Two coloured halves: a world that these towers learn in a few steps."""
    draw = np.random.default_rng(seed)
    names = list(COLOURS)
    images, captions = np.zeros((n, 3, 32, 32), np.uint8), []
    for i in range(n):
        left, right = draw.permutation(names)[:2]
        images[i, :, :, :16] = np.array(COLOURS[left])[:, None, None]
        images[i, :, :, 16:] = np.array(COLOURS[right])[:, None, None]
        captions.append(f"{left} left of {right}")
    noise = draw.integers(-15, 16, images.shape)
    return Pool(np.clip(images + noise, 0, 255).astype(np.uint8), captions)


def spec_for(recipe, tower=None, **settings):
    own = {"contrastive": {"text": {"width": 16, "depth": 1, "heads": 2, "context": 12}}}
    base = {
        "recipe": f"vision/{recipe}", "tower": SMALL | (tower or {}), "images": 96, "batch": 8, "warmup": 2,
        "world": {"pool": 64, "held_out": 16, "size": 32}, "resolutions": [{"size": 32, "share": 1.0}],
    }  # fmt: skip
    if recipe == "self-distillation":
        own[recipe] = {"small_size": 16, "prototypes": 24}
    return spec_of(base | own.get(recipe, {}) | settings)


def run_of(recipe, **settings):
    return Run(spec_for(recipe, **settings), "cpu", (pool(64), pool(16, seed=1)))


def batch_of(n=6):
    return pool(n).batch(np.arange(n), 32)


def tower_of(**settings):
    torch.manual_seed(0)
    return Tower(TowerShape(**SMALL | settings)).eval()


def table(folder):
    with (folder / "losses.csv").open() as file:
        return list(csv.DictReader(file))


# --- positions ---


def test_rotation_is_the_published_one():
    """Written out pair by pair: x in the first half, y in the second, both from 1, CLS not turned."""
    size, rows, columns = 16, 3, 4
    q = torch.randn(1, 1, 1 + rows * columns, size, generator=rng(), dtype=torch.float64)
    expected = q.clone().numpy()
    for token in range(rows * columns):
        for half, place in enumerate((token % columns + 1, token // columns + 1)):
            for pair in range(size // 4):
                angle = place * 10_000 ** (-2 * pair / (size // 2))
                at = half * size // 2 + 2 * pair
                a, b = q[0, 0, token + 1, at : at + 2].tolist()
                expected[0, 0, token + 1, at] = a * math.cos(angle) - b * math.sin(angle)
                expected[0, 0, token + 1, at + 1] = a * math.sin(angle) + b * math.cos(angle)
    found = rotate(q.float(), rotation(rows, columns, size, cls=True))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_rotations_are_not_rescaled_with_the_image():
    small, large = rotation(2, 2, 8, cls=False), rotation(5, 5, 8, cls=False).view(5, 5, -1)
    torch.testing.assert_close(large[:2, :2].reshape(4, -1), small)
    assert torch.equal(small[0], torch.ones_like(small[0]))  # without a CLS token the first patch stands at 0


def test_learned_grid_is_resized_bilinearly_and_keeps_cls():
    grid = torch.randn(1 + 64, 6, generator=rng())
    halved = resized(grid, 4, 4, cls=True)
    means = grid[1:].view(4, 2, 4, 2, 6).mean((1, 3)).view(16, 6)  # between four neighbours, hence their mean
    torch.testing.assert_close(halved[1:], means)
    assert torch.equal(halved[0], grid[0])
    assert torch.equal(resized(grid, 8, 8, cls=True), grid)


def test_tower_equals_timm_in_the_same_shape():
    """PE core as timm builds it, with our weights: patches, CLS, both positions, every block and the norm."""
    import timm

    shape = TowerShape(size=64, patch=16, width=192, depth=2, heads=3)
    theirs = timm.create_model(
        "vit_pe_core_tiny_patch16_384", pretrained=False, img_size=64, depth=2, ref_feat_shape=(4, 4)
    ).eval()  # fmt: skip
    ours = tower_of(**vars(shape))
    names = {
        "cls_token": "cls", "pos_embed": "positions", "patch_embed.proj.weight": "patches.weight",
        "norm_pre.weight": "norm_pre.weight", "norm_pre.bias": "norm_pre.bias",
        "norm.weight": "norm.weight", "norm.bias": "norm.bias",
    }  # fmt: skip
    parts = {"attn.qkv": "qkv", "attn.proj": "out", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
    parts |= {name: name for name in ("norm1", "norm2")}
    for i in range(2):
        names |= {
            f"blocks.{i}.{a}.{end}": f"blocks.{i}.{b}.{end}" for a, b in parts.items() for end in ("weight", "bias")
        }
    state, mine = theirs.state_dict(), ours.state_dict()
    for name, value in mine.items():  # norms and biases start as ones and zeros: a mix-up would not be seen
        mine[name] = value + 0.1 * torch.randn(value.shape, generator=rng(1))
    ours.load_state_dict(mine)
    theirs.load_state_dict({a: mine[b].view_as(state[a]) for a, b in names.items()}, strict=False)
    left = [n for n in state if n not in names and not n.startswith(("attn_pool", "head", "fc_norm"))]
    assert left == []
    images = torch.randn(2, 3, 64, 64, generator=rng())
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.forward_features(images), atol=2e-5, rtol=1e-4)


# --- towers ---


def test_size_of_the_standard_tower():
    count = sum(p.numel() for p in Tower(TowerShape()).parameters())
    assert 2e6 < count <= 3e6  # 6 MB in half precision


def test_attention_pool_agrees_with_torch():
    torch.manual_seed(0)
    pool_, reference = AttentionPool(16, 2, 4), torch.nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        for part in (pool_.q, pool_.kv, pool_.out):
            part.bias.normal_()
        reference.in_proj_weight.copy_(torch.cat([pool_.q.weight, pool_.kv.weight]))
        reference.in_proj_bias.copy_(torch.cat([pool_.q.bias, pool_.kv.bias]))
        reference.out_proj.load_state_dict(pool_.out.state_dict())
        x = torch.randn(3, 5, 16, generator=rng())
        y = reference(pool_.query.expand(3, 1, -1), x, x)[0][:, 0]
        torch.testing.assert_close(pool_(x), y + pool_.mlp(pool_.norm(y)))


def test_without_positions_patches_can_be_shuffled_and_with_either_kind_they_cannot():
    images = torch.randn(2, 3, 32, 32, generator=rng())
    order = torch.randperm(16, generator=rng(3))
    patches = F.unfold(images, 8, stride=8)
    shuffled = F.fold(patches[:, :, order], 32, 8, stride=8)
    moved = {}
    for rope in (False, True):
        for absolute in (False, True):
            tower = tower_of(rope=rope, absolute=absolute)
            with torch.no_grad():
                gap = tower(shuffled)[:, 1:] - tower(images)[:, 1:][:, order]
            moved[rope, absolute] = float(gap.abs().max())
    assert moved.pop((False, False)) < 1e-5
    assert min(moved.values()) > 1e-2


def test_switches_change_the_module():
    images = torch.randn(2, 3, 32, 32, generator=rng())
    assert tower_of()(images).shape == (2, 17, 16)
    without = tower_of(cls=False, absolute=False, pool="mean", embed=None)
    tokens = without(images)
    assert tokens.shape == (2, 16, 16)
    assert (without.cls, without.positions) == (None, None)
    torch.testing.assert_close(without.encode(images), tokens.mean(1))
    first = tower_of(pool="cls", embed=None)
    torch.testing.assert_close(first.encode(images), first(images)[:, 0])
    mean = tower_of(pool="mean", embed=None)
    torch.testing.assert_close(mean.encode(images), mean(images)[:, 1:].mean(1))
    assert tower_of(embed=12).encode(images).shape == (2, 12)
    assert tower_of()(images[..., :16]).shape == (2, 9, 16)  # not square


def test_hooks_see_blocks_norm_pool_and_projection():
    tower, seen = tower_of(), {}
    for name in ("blocks.0", "blocks.1", "norm", "pool", "projection"):
        tower.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    embedding = tower.encode(torch.randn(2, 3, 32, 32))
    assert {name: tuple(out.shape) for name, out in seen.items()} == {
        "blocks.0": (2, 17, 16), "blocks.1": (2, 17, 16), "norm": (2, 17, 16), "pool": (2, 16), "projection": (2, 12),
    }  # fmt: skip
    assert torch.equal(seen["projection"], embedding)


def test_images_of_another_shape_are_refused():
    for shape in ((2, 3, 30, 32), (2, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(DataError, match="whole patches of 8 pixels"):
            tower_of()(torch.zeros(shape))


def test_configs_of_other_models_are_refused():
    with pytest.raises(EncoderError, match="model_type 'vision-zoo'"):
        build({"model_type": "vit", "tower": {}})
    with pytest.raises(EncoderError, match="no tower can be built"):
        build({"model_type": "vision-zoo", "tower": {"widht": 3}})
    with pytest.raises(EncoderError, match="multiple of four times the 3 heads"):
        build({"model_type": "vision-zoo", "tower": {"width": 16, "heads": 3}})


# --- words ---


def test_captions_become_numbers_and_long_ones_keep_their_end():
    words = Vocabulary.of(["a red disc, left of a ring", "A red ring"])
    assert words.words[4:7] == ["a", "red", "ring"]
    numbers = words.numbers(["a red ring", "a disc , unheard of", "red"], longest=5)
    assert words.text(numbers[0].tolist()) == "a red ring"
    assert words.text(numbers[1].tolist()) == "a disc ,"
    assert (numbers[:2, -1] == END).all()
    assert numbers[2].tolist()[3:] == [PAD, PAD]
    with pytest.raises(ValueError, match="names no word twice"):
        Vocabulary([*words.words, "red"])


def test_text_is_read_at_its_end_whatever_else_is_in_the_batch():
    torch.manual_seed(0)
    words = Vocabulary.of(["one two three four five"])
    tower = TextTower(TextShape(width=16, depth=2, heads=2, context=12), words, 8).eval()
    alone, beside = tower.encode(["one two"]), tower.encode(["one two", "five four three two one"])
    torch.testing.assert_close(alone[0], beside[0])
    assert not torch.allclose(beside[0], beside[1])
    assert not torch.allclose(tower.encode(["two one"])[0], alone[0])


# --- views ---


def test_mirrored_pictures_have_mirrored_captions():
    batch = batch_of()
    out, captions = view(batch.values, batch.captions, Augmentation(flip=1.0), 32, rng())
    torch.testing.assert_close(out, batch.values.flip(-1), atol=1e-4, rtol=0)
    expected = [" ".join(c.replace(" left of ", " right of ").split()) for c in batch.captions]
    assert captions == expected
    same, captions = view(batch.values, batch.captions, Augmentation(flip=0.0), 32, rng())
    torch.testing.assert_close(same, batch.values, atol=1e-4, rtol=0)
    assert captions == batch.captions
    texts = ["Left of a ring, lit from the right; bright", "RIGHT", "left"]
    turned = mirrored(texts, torch.tensor([True, True, False]))
    assert turned == ["Right of a ring, lit from the left; bright", "LEFT", "left"]


def test_some_pictures_of_a_batch_are_mirrored_each_with_its_caption():
    batch = batch_of(40)
    out, captions = view(batch.values, batch.captions, Augmentation(flip=0.5), 32, rng())
    turned = torch.tensor([a != b for a, b in zip(captions, batch.captions, strict=True)])
    assert 10 < turned.sum() < 30
    expected = torch.where(turned[:, None, None, None], batch.values.flip(-1), batch.values)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_crops_lie_within_the_picture_and_have_the_asked_area():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    images = torch.stack([x, y, torch.zeros_like(x)]).expand(300, -1, -1, -1)
    out, _ = view(images, [""] * 300, Augmentation(crop=(0.2, 0.5), aspect=1.5), 16, rng())
    wide, tall = ((out[:, c].amax((1, 2)) - out[:, c].amin((1, 2))) * 31 / 2 + 1 for c in (0, 1))  # pixels, about
    wide, tall = wide / 32 * 16 / 15.5, tall / 32 * 16 / 15.5
    area = wide * tall
    assert 0.17 < area.min() < 0.25
    assert 0.45 < area.max() < 0.53
    assert 1.2 < (wide / tall).max() < 1.55
    assert (out[:, 0].mean((1, 2)).std() > 0.1) & (out[:, 1].mean((1, 2)).std() > 0.1)  # anywhere


def test_jitter_changes_brightness_and_saturation_alone():
    images = torch.rand(50, 3, 1, 1, generator=rng()).expand(-1, -1, 8, 8) - 0.5  # [0.25, 0.75] of full
    grey_weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for how, same in ((Augmentation(brightness=0.3), "ratio"), (Augmentation(saturation=0.3), "grey")):
        out = view(images, [""] * 50, how, 8, rng())[0]
        a, b = images / 2 + 0.5, out / 2 + 0.5
        factor = (b / a)[:, :, 0, 0]
        if same == "ratio":
            torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
            assert 0.7 <= factor.min() < 0.8
            assert 1.2 < factor.max() <= 1.3
        else:
            torch.testing.assert_close((a * grey_weights).sum(1), (b * grey_weights).sum(1))
            assert factor.std() > 0.02


# --- objectives ---


def test_contrastive_loss_agrees_with_a_plain_computation():
    logits = torch.randn(5, 5, generator=rng())
    z = logits.double().numpy()
    rows = np.log(np.exp(z).sum(1)) - np.diag(z)
    columns = np.log(np.exp(z).sum(0)) - np.diag(z)
    loss, found = matching(logits)
    assert float(loss) == pytest.approx((rows.mean() + columns.mean()) / 2, rel=1e-5)
    assert float(found) == pytest.approx(np.mean(z.argmax(1) == np.arange(5)))


def test_scale_is_limited():
    run = run_of("contrastive")
    run.objective.log_scale.data.fill_(9.0)
    run.objective.after_step(run.tower, 0.5)
    assert float(run.objective.log_scale.detach().exp()) == pytest.approx(100)


def test_mask_regularisation_is_apart_from_the_contrastive_loss():
    """Seen tokens are targets without gradient; captions get the same gradient with it and without it."""
    grads = []
    for share in (0.5, 0.0):
        run = run_of("contrastive", mask_share=share)
        loss = run.objective.loss(run.tower, batch_of(), rng(4))
        loss.total.backward()
        assert ("masked" in loss.parts) == (share > 0)
        grads.append([p.grad.clone() for p in run.objective.text.parameters()])
        if share:
            assert run.objective.filler.grad.abs().max() > 0
    assert run.objective.filler is None
    torch.testing.assert_close(*grads)
    run = run_of("contrastive", mask_share=1.0)
    batch = batch_of()
    tokens = run.tower(batch.values).detach().requires_grad_()
    run.objective.masked(run.tower, batch.values, tokens, rng()).backward()
    assert tokens.grad is None
    assert run.tower.blocks[0].qkv.weight.grad.abs().max() > 0


def test_hidden_patches_are_not_seen():
    tower, filler = tower_of(), torch.randn(16, generator=rng())
    images = torch.randn(3, 3, 32, 32, generator=rng(1))
    hidden = hide(3, 16, 0.4, rng(2))
    assert (hidden.sum(1) == 6).all()
    mask = hidden.view(3, 1, 4, 4).float()
    pixels = F.interpolate(mask, scale_factor=8)
    other = images + 5 * pixels
    with torch.no_grad():
        torch.testing.assert_close(
            tower(images, hidden=hidden, filler=filler), tower(other, hidden=hidden, filler=filler)
        )
        assert not torch.allclose(tower(images), tower(other))


def test_patches_after_the_prefix_do_not_know_what_follows():
    """Of a picture whose last row changes, tokens before it stay; those of the prefix stay whatever comes after."""
    tower = tower_of(cls=False, pool="mean")
    images = torch.randn(2, 3, 32, 32, generator=rng())
    other = images.clone()
    other[:, :, 24:] += 3  # the last 4 of 16 patches
    allowed = prefix_mask(torch.tensor([2, 9]), 16)[:, None]
    with torch.no_grad():
        a, b = tower(images, allowed=allowed), tower(other, allowed=allowed)
        torch.testing.assert_close(a[:, :12], b[:, :12])
        assert not torch.allclose(a[:, 12:], b[:, 12:])
        early = images.clone()
        early[1, :, 16:24, :8] += 3  # patch 8, the last of the second picture's prefix
        assert not torch.allclose(tower(early, allowed=allowed)[1, 0], a[1, 0])
        early = images.clone()
        early[0, :, 16:24, :8] += 3  # far behind the first picture's prefix
        torch.testing.assert_close(tower(early, allowed=allowed)[0, :8], a[0, :8])


def test_decoder_guesses_from_what_came_before():
    run = run_of("autoregressive", tower={"cls": False, "pool": "mean", "embed": None})
    seen = torch.randn(2, 16, 16, generator=rng())
    numbers = run.vocabulary.numbers(["red left of blue", "blue left of red"], 12)
    later = seen.clone()
    later[:, 10:] += 1
    with torch.no_grad():
        (p, w), (q, v) = (run.objective.decode(x, numbers, torch.tensor([3, 3])) for x in (seen, later))
        torch.testing.assert_close(p[:, :10], q[:, :10])
        assert not torch.allclose(w, v)  # words know the whole picture
        other = numbers.clone()
        other[:, 3:] = PAD
        torch.testing.assert_close(run.objective.decode(seen, other, torch.tensor([3, 3]))[1][:, :3], w[:, :3])


def test_targets_of_patches_are_normalised_pixels_in_raster_order():
    images = torch.randn(2, 3, 16, 24, generator=rng())
    target = normalised(images, 8)
    assert target.shape == (2, 6, 192)
    patch = images[1, :, 8:, 8:16].reshape(-1)  # second row, second column
    expected = (patch - patch.mean()) / (patch.var() + 1e-3).sqrt()
    torch.testing.assert_close(target[1, 4], expected)


def test_teacher_follows_and_is_not_trained():
    run = run_of("self-distillation", tower={"pool": "cls", "embed": None}, momentum=0.9)
    assert not any(p.requires_grad for p in run.objective.teacher.parameters())
    before = run.objective.teacher.patches.weight.clone()
    run.tower.patches.weight.data += 1
    run.objective.after_step(run.tower, 0.5)  # half way: 1 - 0.1 / 2
    torch.testing.assert_close(run.objective.teacher.patches.weight, before + 0.05)
    loss = run.objective.loss(run.tower, batch_of(), rng())
    loss.total.backward()
    assert all(p.grad is None for p in run.objective.teacher.parameters())
    assert all(p.grad is not None for p in run.objective.head.parameters())


def test_centre_is_a_slow_mean_of_what_the_teacher_says():
    run = run_of("self-distillation", tower={"pool": "cls", "embed": None}, patches=0.0, centre_momentum=0.75)
    said = []
    run.objective.teacher_head.register_forward_hook(lambda m, i, out: said.append(out))
    run.objective.loss(run.tower, batch_of(), rng())
    torch.testing.assert_close(run.objective.centre[0], 0.25 * said[0].mean(0))
    assert not run.objective.centre[1].any()
    run.objective.eval()
    centre = run.objective.centre.clone()
    run.objective.loss(run.tower, batch_of(), rng())
    assert torch.equal(run.objective.centre, centre)  # looks at held-out pictures leave it


def test_hidden_patches_are_taught_at_their_own_places():
    """A student that equals its teacher and has nothing hidden from it says what it says; with hidden ones it errs."""
    run = run_of("self-distillation", tower={"pool": "cls", "embed": None}, teacher_temperature=0.1)
    parts = run.objective.loss(run.tower, batch_of(), rng()).parts
    assert parts["patches"] > 0
    run = run_of("self-distillation", tower={"pool": "cls", "embed": None}, patches=0.0)
    assert "patches" not in run.objective.loss(run.tower, batch_of(), rng()).parts


# --- the optimiser ---


def test_lamb_agrees_with_the_published_formula():
    """Algorithm 2 of arXiv 1904.00962 with bias correction, written out; vectors do not decay and step as in Adam."""
    torch.manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(4))
    spec = spec_for("contrastive", optimiser="lamb", rate=0.02, decay=0.1)
    lamb = optimiser([matrix, vector], spec)
    w = [p.detach().double().numpy().copy() for p in (matrix, vector)]
    m, v = [np.zeros_like(x) for x in w], [np.zeros_like(x) for x in w]
    for step in range(1, 5):
        grads = [torch.randn(p.shape, generator=rng(10 * step + i)) for i, p in enumerate((matrix, vector))]
        matrix.grad, vector.grad = grads
        lamb.step()
        for i, (grad, decay) in enumerate(zip(grads, (0.1, 0.0), strict=True)):
            g = grad.double().numpy()
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.95 * v[i] + 0.05 * g**2
            r = (m[i] / (1 - 0.9**step)) / (np.sqrt(v[i] / (1 - 0.95**step)) + 1e-6) + decay * w[i]
            trust = np.linalg.norm(w[i]) / np.linalg.norm(r) if decay else 1.0
            w[i] = w[i] - (0.02 if decay else 0.002) * trust * r
    for p, expected in zip((matrix, vector), w, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    assert isinstance(optimiser([matrix], spec_for("contrastive")), torch.optim.AdamW)


# --- runs ---


def test_each_picture_is_seen_once_before_any_is_seen_again():
    seen = np.concatenate([rows_at(step, 8, 20, seed=0) for step in range(5)])
    assert sorted(seen[:20]) == list(range(20)) == sorted(seen[20:])
    assert not np.array_equal(seen[:20], seen[20:])
    assert np.array_equal(rows_at(3, 8, 20, seed=0), seen[24:32])
    assert not np.array_equal(rows_at(0, 8, 20, seed=1), seen[:8])


def test_small_pictures_come_first():
    stages = [{"size": 16, "share": 0.5}, {"size": 24, "share": 0.25}, {"size": 32, "share": 0.25}]
    spec = spec_for("contrastive", images=64, resolutions=stages)  # 8 steps
    assert [spec.size_at(step) for step in range(8)] == [16] * 4 + [24] * 2 + [32] * 2
    run = run_of("contrastive", images=64, resolutions=stages)
    sizes = []
    run.tower.register_forward_pre_hook(lambda m, args: sizes.append(args[0].shape[-1]))
    for _ in range(8):
        run.advance()
    assert sorted(set(sizes)) == [16, 24, 32]


SETTINGS = {
    "contrastive": {"optimiser": "lamb", "rate": 0.02},
    "autoregressive": {"tower": {"cls": False, "pool": "mean", "embed": None}, "rate": 1e-2, "words": 0.1},
    "self-distillation": {"tower": {"pool": "cls", "embed": None}, "rate": 2e-3, "momentum": 0.9},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_learned(recipe, tmp_path):
    run = run_of(recipe, **SETTINGS[recipe], images=60 * 24, batch=24)
    before = run.look()
    about = fit(run, tmp_path, stage=silent)
    after = about["held_out"][-1]
    assert after["own"] < 0.85 * after["trivial"]
    assert after["own"] / after["trivial"] < 0.9 * before["own"] / before["trivial"]
    assert after["rank_means"] > 2
    if recipe == "contrastive":  # twelve captions for sixteen pictures: the first found is often another's
        assert after["captions_found"] > 4 * after["chance"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_run_goes_on_to_the_same_losses_and_weights(recipe, tmp_path):
    settings = SETTINGS[recipe] | {"log_every": 4}
    fit(run_of(recipe, **settings), tmp_path / "whole", stage=silent)
    about = fit(run_of(recipe, **settings), tmp_path / "parts", stage=silent, until=6)  # within a row of the table
    assert not about["finished"]
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    about = fit(run_of(recipe, **settings), tmp_path / "parts", stage=silent)
    assert (about["finished"], about["steps"], about["images"]) == (True, 12, 96)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    for file in sorted((tmp_path / "whole").glob("*.safetensors")):
        whole, parts = load_file(file), load_file(tmp_path / "parts" / file.name)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert {t.dtype for t in load_file(tmp_path / "whole" / "model.safetensors").values()} == {torch.float16}


def test_saved_towers_are_those_that_were_trained(tmp_path):
    run = run_of("contrastive", images=16)
    fit(run, tmp_path, stage=silent)
    config = json.loads((tmp_path / "config.json").read_text())
    tower = build(config)
    tower.load_state_dict({name: t.float() for name, t in load_file(tmp_path / "model.safetensors").items()})
    batch = batch_of()
    text, scale = load_text(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(tower.eval().encode(batch.values), run.tower.eval().encode(batch.values))
        torch.testing.assert_close(text.encode(batch.captions), run.objective.text.encode(batch.captions))
    assert scale == pytest.approx(float(run.objective.log_scale.detach().exp()))
    (tmp_path / "text.safetensors").write_bytes(b"half a file")
    with pytest.raises(StorageError, match="cannot be read"):
        load_text(tmp_path)
    (tmp_path / "text.safetensors").unlink()
    with pytest.raises(EncoderError, match="holds no text tower"):
        load_text(tmp_path)


def test_folder_of_another_run_is_refused_unless_fresh(tmp_path):
    fit(run_of("contrastive", images=16), tmp_path, stage=silent)
    other = run_of("autoregressive", **SETTINGS["autoregressive"])
    with pytest.raises(SpecError, match="another folder with --out"):
        fit(other, tmp_path, stage=silent)
    assert (tmp_path / "text.safetensors").exists()
    fit(other, tmp_path, stage=silent, until=1, fresh=True)
    assert not list(tmp_path.glob("*.safetensors"))
    assert other.step == 1


def test_changed_pictures_are_noticed(tmp_path):
    fit(run_of("contrastive"), tmp_path, stage=silent, until=1)
    other = pool(64)
    changed = Pool(other.images, other.captions, "another world")
    with pytest.raises(SpecError, match="saw other pictures"):
        fit(Run(spec_for("contrastive"), "cpu", (changed, other)), tmp_path, stage=silent)


def test_configs_share_pictures_and_trunk():
    specs = [spec_of(read_settings(CONFIGS / f"{name}-mini.yaml")) for name in ("pe", "aim", "dino")]
    first = specs[0]
    for spec in specs:
        assert (spec.world, spec.seed) == (first.world, first.seed)
        for part in ("size", "patch", "width", "depth", "heads", "ratio", "rope", "absolute"):
            assert getattr(spec.tower, part) == getattr(first.tower, part)
        assert spec.images % spec.batch == 0  # hence exactly as many are seen
    assert {spec.recipe for spec in specs} == {f"vision/{name}" for name in RECIPES}


# --- through tsprobe ---


@pytest.fixture
def installed(monkeypatch):
    point = EntryPoint("vision", "vision.pretraining:load_recipe", recipes.GROUP)
    monkeypatch.setattr(recipes, "entry_points", lambda group: [point])


def sets(*settings):
    return [part for text in settings for part in ("--set", text)]


def test_command_line_finds_the_recipe_and_trains(installed, tmp_path, capsys):
    small = sets(
        "tower.depth=1", "tower.width=16", "tower.heads=1", "tower.embed=8", "text={width: 16, depth: 1, heads: 2}",
        f"world={{pool: 12, held_out: 4, folder: {tmp_path / 'pool'}}}", "images=8", "batch=4",
    )  # fmt: skip
    tsprobe("pretrain", CONFIGS / "pe-mini.yaml", "--out", tmp_path / "out", "--device", "cpu", *small)
    printed = capsys.readouterr().out
    assert "8 images" in printed
    assert f"encoder: vision:{tmp_path / 'out'}" in printed
    words = json.loads((tmp_path / "out" / "config.json").read_text())["vocabulary"]
    assert {"left", "right"} & set(words)
    drawn = sorted((tmp_path / "pool").rglob("images.npy"))
    stamps = [file.stat().st_mtime_ns for file in drawn]
    assert [len(np.load(file)) for file in drawn] in ([4, 12], [12, 4])
    tsprobe("pretrain", CONFIGS / "pe-mini.yaml", "--out", tmp_path / "two", "--device", "cpu", *small)
    assert [file.stat().st_mtime_ns for file in drawn] == stamps  # scenes are drawn once
    assert table(tmp_path / "two") == table(tmp_path / "out")


def test_recipes_are_listed(installed, capsys):
    tsprobe("list", "recipes")
    printed = capsys.readouterr().out
    assert all(f"vision/{name}" in printed for name in RECIPES)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recipe=vision/contrastiv", "unknown recipe 'vision/contrastiv'; did you mean 'vision/contrastive'"),
        ("recipe=visio/contrastive", "unknown recipe 'visio/contrastive'"),
        ("mask_shar=0", "unknown setting 'mask_shar'; did you mean"),
        ("decoder_depth=2", "unknown setting 'decoder_depth'"),
        ("tower.widht=3", "unknown setting 'widht'; did you mean 'width'"),
        ("tower.width=30", "width 30 must be a multiple of four times the 4 heads"),
        ("tower={cls: false, pool: cls}", "pool: cls needs the token"),
        ("tower.embed=null", "tower.embed is needed"),
        ("resolutions=[{size: 60, share: 1.0}]", "60 pixels are not two or more whole patches of 8"),
        ("resolutions=[{size: 64, share: 0.5}]", "shares of the resolutions must add up to 1"),
        ("augmentation.crop=[0.5, 1.2]", "crop is a range of shares"),
        ("batch=40000", "a batch of 40000 needs a pool of as many scenes"),
    ],
)
def test_mistake_in_a_config_is_one_clear_line(installed, setting, message, capsys, tmp_path):
    tsprobe("pretrain", CONFIGS / "pe-mini.yaml", "--out", tmp_path / "out", *sets(setting), expect=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_recipe_without_a_package_is_one_clear_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(recipes, "entry_points", lambda group: [])
    tsprobe("pretrain", CONFIGS / "pe-mini.yaml", "--out", tmp_path / "out", expect=2)
    assert "no package here provides recipes" in capsys.readouterr().err


def test_recipe_claimed_twice_is_refused(monkeypatch):
    points = [EntryPoint("vision", f"{name}:load", recipes.GROUP) for name in ("one", "two")]
    monkeypatch.setattr(recipes, "entry_points", lambda group: points)
    with pytest.raises(SpecError, match="two packages provide the recipes vision/"):
        recipes.load_run({"recipe": "vision/contrastive"}, "cpu")


def test_chance_follows_from_seed_step_and_stream():
    draws = [
        torch.rand(4, generator=generator(*key)) for key in ((0, 1, 1), (0, 1, 1), (0, 2, 1), (1, 1, 1), (0, 1, 2))
    ]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(d.tolist()) for d in draws}) == 4
    assert isinstance(batch_of(), Batch)
