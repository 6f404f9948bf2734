"""The zoo's backbone against a forward pass written out, and its adapter: layers, refusals, and what is shipped."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tsprobe
from tsprobe.encoders import load_encoder
from tsprobe.encoders.backbone import Backbone, Shape
from tsprobe.encoders.zoo import aligned_names, names
from tsprobe.encoders.zoo_model import RECIPES, ZooModel, normalise
from tsprobe.errors import EncoderError, UnknownNameError
from tsprobe.pretraining import PretrainSpec, pretrain
from tsprobe.study.progress import silent
from tsprobe.testing import check_encoder
from tsprobe.types import Batch

SMALL = {"patch": 4, "context": 64, "width": 16, "depth": 3, "heads": 2, "hidden": 24}
CORPUS = {"sources": ["ornstein_uhlenbeck"], "shortest": 16, "longest": 64}
CONFIGS = Path(__file__).parents[1] / "configs" / "pretrain"
SHIPPED = Path(tsprobe.__file__).parent / "zoo"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A finished run of a few steps for every objective."""
    root = tmp_path_factory.mktemp("runs")
    for objective in RECIPES:
        spec = PretrainSpec(objective=objective, backbone=Shape(**SMALL), corpus=CORPUS, steps=3, batch=8)
        pretrain(spec, root / objective, "cpu", stage=silent)
    return root


def patches_of(n=3, t=7, size=4, hidden=()):
    rng = torch.Generator().manual_seed(1)
    values = torch.randn(n, t, size, generator=rng)
    observed = torch.ones(n, t, size, dtype=torch.bool)
    for row, patch in hidden:
        observed[row, patch] = False
    return values * observed, observed


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("norm", "activation"), [("rms", "swiglu"), ("layer", "gelu")])
def test_backbone_is_the_transformer_that_its_docstring_describes(causal, norm, activation):
    """One token at a time, in float64: rotation as complex numbers, attention as a loop over what may be attended."""
    torch.manual_seed(0)
    net = Backbone(Shape(**SMALL, norm=norm, activation=activation), causal=causal).double()
    for parameter in net.parameters():  # norms away from one, so that a norm left out is seen
        parameter.data += 0.1 * torch.randn_like(parameter)
    values, observed = patches_of(hidden=[(0, 2), (1, 0), (1, 6)])
    expected = torch.stack([written_out(net, v, o, causal) for v, o in zip(values.double(), observed, strict=True)])
    torch.testing.assert_close(net(values.double(), observed), expected, atol=1e-6, rtol=1e-6)  # float32 rotations


def written_out(net, values, observed, causal):
    x = net.embed(torch.cat([values, observed.double()], -1))
    seen = observed.any(-1)
    for block in net.blocks:
        h = plain_norm(block.norm1, x)
        heads = []
        q, k, v = (h @ part.T for part in block.qkv.weight.chunk(3))
        for part in range(block.heads):
            size = x.shape[-1] // block.heads
            cut = slice(part * size, (part + 1) * size)
            a, b = turned(q[:, cut]), turned(k[:, cut])
            rows = []
            for i in range(len(x)):
                allowed = [j for j in range(len(x)) if (seen[j] or j == i) and (j <= i or not causal)]
                score = torch.stack([(a[i] * b[j].conj()).real.sum() for j in allowed]) / math.sqrt(size)
                rows.append(score.softmax(0) @ v[allowed, cut])
            heads.append(torch.stack(rows))
        x = x + torch.cat(heads, -1) @ block.out.weight.T
        h = plain_norm(block.norm2, x) @ block.up.weight.T
        if block.gated:
            gate, value = h.chunk(2, -1)
            h = gate * gate.sigmoid() * value
        else:
            h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        x = x + h @ block.down.weight.T
    return plain_norm(net.norm, x)


def turned(x):
    """Pairs (i, i + size / 2) as complex numbers, turned by position times 10000^(-2 i / size)."""
    half = x.shape[-1] // 2
    rate = 10_000.0 ** (-2 * torch.arange(half).double() / x.shape[-1])
    return torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * torch.arange(len(x))[:, None] * rate)


def plain_norm(norm, x):
    if isinstance(norm, torch.nn.RMSNorm):
        return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def test_patches_that_are_left_out_are_patches_that_were_not_observed():
    """Looking at some patches only gives the tokens that they have where the others are unobserved."""
    torch.manual_seed(0)
    net = Backbone(Shape(**SMALL), causal=False)
    hidden = [(row, patch) for row in range(3) for patch in (row, row + 3)]
    values, observed = patches_of(hidden=hidden)
    keep = observed.any(-1).nonzero()[:, 1].view(3, -1)
    whole = net(values, observed)
    part = net(*patches_of(), keep)
    torch.testing.assert_close(part, whole.gather(1, keep[..., None].expand(-1, -1, 16)), atol=1e-5, rtol=1e-5)


def test_normalise_forgets_level_and_scale_but_not_sign():
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[1, 5:20] = False
    expected = torch.where(seen, x, torch.nan)
    mean = expected.nanmean(-1, keepdim=True)
    spread = (expected - mean).square().nanmean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(normalise(x, seen), ((expected - mean) / spread).asinh().nan_to_num(0))
    torch.testing.assert_close(normalise(3e4 * x + 1e4, seen), normalise(x, seen), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(normalise(-x, seen), -normalise(x, seen))
    assert not normalise(torch.full((1, 9), 0.1), torch.ones(1, 9, dtype=torch.bool)).any()
    assert normalise(torch.tensor([[1e6, 1e6 + 1, 1e6, 1e6 + 1]]), torch.ones(1, 4, dtype=torch.bool)).abs().min() > 0.8


@pytest.mark.parametrize("objective", RECIPES)
@pytest.mark.parametrize("length", [None, 4, 64, 31])
def test_adapter_keeps_its_promises(folders, objective, length):
    check_encoder(load_encoder(f"zoo:{folders / objective}"), length=length, channels=2)


@pytest.mark.parametrize("objective", RECIPES)
def test_layers_past_the_trunk_give_what_the_objective_trained(folders, objective):
    encoder = load_encoder(f"zoo:{folders / objective}")
    layers = encoder.layers
    trunk = ["embedding", "block.0", "block.1", "block.2", "norm"]
    assert [layer.name for layer in layers] == [*trunk, RECIPES[objective].layer]
    assert (encoder.final, layers[-2].depth, layers[-1].depth) == ("norm", 1.0, None)
    assert encoder.facts.objective == objective
    values = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0))
    inputs = encoder.prepare(Batch(values, torch.ones(2, 1, 24, dtype=torch.bool), torch.tensor([24, 24])))
    tokens = inputs.tokens_of(layers[-1].name)
    assert tokens.mask.shape == encoder.run(inputs).shape[:2]
    if objective == "contrastive":  # one vector for the whole series
        assert tokens.start.tolist() == [[0], [0]]
        assert tokens.stop.tolist() == [[24], [24]]


def test_each_token_is_given_the_steps_that_its_map_says(folders):
    encoder = load_encoder(f"zoo:{folders / 'reconstruction'}")
    lengths = [30, 24, 9]
    values = torch.randn(3, 1, 30, generator=torch.Generator().manual_seed(0))
    inside = torch.arange(30) < torch.tensor(lengths)[:, None, None]
    inputs = encoder.prepare(Batch(values * inside, inside, torch.tensor(lengths)))
    tokens = inputs.tokens_of("norm")
    for row, length in enumerate(lengths):
        scaled = normalise(values[row, :, :length], torch.ones(1, length, dtype=torch.bool))[0]
        covered = []
        for index in tokens.mask[row].nonzero()[:, 0].tolist():
            steps = range(int(tokens.start[row, index]), int(tokens.stop[row, index]))
            assert inputs.kwargs["observed"][row, index].tolist() == [False] * (4 - len(steps)) + [True] * len(steps)
            torch.testing.assert_close(inputs.kwargs["values"][row, index, 4 - len(steps) :], scaled[list(steps)])
            covered += steps
        assert covered == list(range(length))


def test_control_is_the_architecture_at_seed_0():
    control = load_encoder("zoo/untrained")
    torch.manual_seed(0)
    expected = ZooModel(Shape()).state_dict()
    assert all(torch.equal(expected[k], v) for k, v in control.module.state_dict().items())
    assert control.facts.objective == "untrained"
    check_encoder(control, untrained=False)  # it is its own untrained twin


def spoil(folder, tmp_path, change):
    copy = tmp_path / "spoiled"
    shutil.copytree(folder, copy)
    weights, config = load_file(copy / "model.safetensors"), json.loads((copy / "config.json").read_text())
    change(weights, config)
    save_file(weights, copy / "model.safetensors")
    (copy / "config.json").write_text(json.dumps(config))
    return f"zoo:{copy}"


def rename(weights, config):
    weights["head.other"] = weights.pop("head.layer.bias")


def as_jepa(weights, config):
    config["objective"] = "jepa"


def no_such_objective(weights, config):
    config["objective"] = "guessing"


def odd_width(weights, config):
    config["shape"]["width"] = 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "missing head.layer.bias; unexpected head.other"),
        (as_jepa, "missing head.hidden and 17 more; unexpected head.layer.bias and 1 more"),
        (no_such_objective, "does not describe such a model .KeyError: 'guessing'"),
        (odd_width, "width 15 must be a multiple of twice the 2 heads"),
    ],
)
def test_wrong_checkpoint_is_refused_with_names(folders, tmp_path, change, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(spoil(folders / "reconstruction", tmp_path, change))


def test_unknown_name_and_folder():
    with pytest.raises(UnknownNameError, match="'zoo/untraind'; did you mean 'zoo/untrained'"):
        load_encoder("zoo/untraind")
    with pytest.raises(EncoderError, match=r"there is no folder \./nowhere"):
        load_encoder("zoo:./nowhere")


def test_what_is_shipped_has_a_recipe_and_is_small():
    assert set(names()) == set(RECIPES)
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < 30e6


@pytest.mark.parametrize("objective", names())
def test_shipped_encoder_is_what_its_papers_say(objective):
    folder = SHIPPED / objective
    about = json.loads((folder / "run.json").read_text())
    spec = yaml.safe_load((CONFIGS / f"{objective}.yaml").read_text())
    assert about["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert about["finished"]
    assert {k: about["spec"][k] for k in spec} == spec
    assert about["steps"] == spec["steps"]
    assert about["series"] == spec["steps"] * spec["batch"]
    last = about["held_out"][-1]
    assert last["own"] < 0.9 * last["trivial"]
    assert last["rank_means"] > 8  # of 128: no collapse
    with (folder / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["step"]) == spec["steps"]
    encoder = load_encoder(f"zoo/{objective}")
    assert next(encoder.module.parameters()).dtype == torch.float32
    assert len(encoder.layers) == 15
    assert encoder.facts.overlaps == ()
    check_encoder(encoder, length=100)


@pytest.mark.parametrize("name", aligned_names())
def test_shipped_alignments_are_loaded_by_name_and_carry_their_tables(name):
    base, _, recipe = name.partition("-")
    encoder, before = load_encoder(f"zoo/{name}"), load_encoder(f"zoo/{base}")
    assert encoder.name == f"zoo/{name}"
    assert encoder.facts.objective == f"{base} + {recipe}"
    assert next(encoder.module.parameters()).dtype == torch.float32
    assert encoder.final == before.final
    assert encoder.fingerprint() != before.fingerprint()
    with (SHIPPED / name / "lift.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["recipe"] for row in rows} == {recipe}
    assert {"", "unregularised", "scalar-mix", "concat"} <= {row["control"] for row in rows}
    check_encoder(encoder, length=100)


def test_both_kinds_of_alignment_are_shipped():
    assert aligned_names() == ["contrastive-dense", "contrastive-joint"]
