"""Alignment: its losses, what the student may see, resuming, and an encoder whose answer was hidden on purpose."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from alignable import planted, spec, task

import tsprobe as tp
from tsprobe.alignment import losses, run_alignment
from tsprobe.alignment.lift import _lift
from tsprobe.alignment.recipes import Scaling
from tsprobe.alignment.series import Unlabelled, membership
from tsprobe.alignment.student import Student, blocks_hidden, hide
from tsprobe.alignment.train import Tuning, tune
from tsprobe.capture import Reading, extract
from tsprobe.data.panel import as_panel
from tsprobe.encoders import aligned, load_encoder
from tsprobe.errors import EncoderError, SpecError
from tsprobe.study.progress import silent
from tsprobe.types import TokenMap

TUNED = aligned.Tuned("zoo/jepa", "dense", "nothing")


def test_agreement_is_minus_one_where_student_and_teacher_agree_and_grows_when_they_part() -> None:
    x = torch.randn(2, 5, 3)
    real = torch.ones(2, 5, dtype=torch.bool)
    assert losses.core(x, 2 * x, real) == pytest.approx(-1)
    assert losses.core(x, -x, real) == pytest.approx(1)
    real[:, 3:] = False
    other = x.clone()
    other[:, 3:] = torch.nan  # padding says nothing
    assert losses.core(x, torch.where(real[..., None], other, 7.0), real) == pytest.approx(-1)


def test_locality_is_the_formula_of_the_paper() -> None:
    s, m = torch.randn(1, 4, 3, dtype=torch.float64), torch.rand(1, 4, 2, dtype=torch.float64)
    total = 0.0
    for i in range(3):
        for j in range(3):
            a = float(torch.cosine_similarity(s[0, i], s[0, j], dim=0))
            b = float(torch.cosine_similarity(m[0, i], m[0, j], dim=0))
            total += (a - math.exp(20 * (b - 1))) ** 2 / 9
    real = torch.tensor([[True, True, True, False]])
    assert float(losses.locality(s, m, real)) == pytest.approx(total)


def test_gradients_agree_with_finite_differences() -> None:
    s, t = (torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    real = torch.tensor([[True] * 4, [True, True, False, True]])
    belongs = torch.rand(2, 4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: losses.core(x, t.detach(), real), (s,))
    assert torch.autograd.gradcheck(lambda x: losses.locality(x, belongs, real), (s,))
    target = torch.randn(8, 3, dtype=torch.float64)
    target[0, 1] = torch.nan
    assert torch.autograd.gradcheck(lambda x: losses.masked_regression(x.flatten(0, 1), target), (s,))
    labels = torch.tensor([0, 1, 0, 1, 2, 2, 0, 3])
    assert torch.autograd.gradcheck(lambda x: losses.supervised_contrastive(x.flatten(0, 1), labels, 0.5), (s,))


def test_supervised_contrast_is_the_formula_written_out() -> None:
    x, y, t = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1), [0, 0, 1, 1, 1, 2], 0.3
    terms = []
    for i in range(6):
        rest = [a for a in range(6) if a != i]
        bottom = sum(math.exp(float(x[i] @ x[a]) / t) for a in rest)
        friends = [p for p in rest if y[p] == y[i]]
        if friends:
            terms.append(-np.mean([math.log(math.exp(float(x[i] @ x[p]) / t) / bottom) for p in friends]))
    assert float(losses.supervised_contrastive(x, torch.tensor(y), t)) == pytest.approx(float(np.mean(terms)))


@pytest.mark.parametrize("name", ["zoo/forecasting", "fracast"])
def test_inserting_scales_changes_no_bit_of_any_layer(name: str) -> None:
    encoder = load_encoder(name)
    panel = as_panel(np.random.default_rng(0).standard_normal((3, 1, 96)).astype(np.float32))
    before = extract(encoder, panel, Reading(("mean", "std")))
    scaled = aligned.retuned(encoder, "scaled", TUNED)
    scales = aligned.insert_scales(scaled)
    after = extract(scaled, panel, Reading(("mean", "std")))
    assert all((before.arrays[layer] == after.arrays[layer]).all() for layer in before.layers)
    with torch.no_grad():
        scales[0].mul_(0.5)
    changed = extract(scaled, panel, Reading(("mean", "std")))
    assert (changed.arrays["embedding"] == before.arrays["embedding"]).all()
    assert not np.allclose(changed.arrays["block.0"], before.arrays["block.0"])
    untouched = extract(encoder, panel, Reading(("mean", "std")))
    assert (untouched.arrays["block.0"] == before.arrays["block.0"]).all()  # the copy has weights of its own


def test_a_saved_encoder_is_the_one_that_was_tuned(tmp_path: Path) -> None:
    encoder = load_encoder("zoo/jepa")
    tuned = aligned.retuned(encoder, "tuned", TUNED)
    for i, scale in enumerate(aligned.insert_scales(tuned)):
        scale.data.add_(0.01 * (i + 1))
    tuned.module.backbone.norm.weight.data.mul_(1.5)
    tuned.save(tmp_path / "encoder")
    with pytest.raises(EncoderError, match="zoo/jepa was not tuned"):
        encoder.save(tmp_path / "other")
    loaded = load_encoder(f"aligned:{tmp_path / 'encoder'}")
    panel = as_panel(np.random.default_rng(0).standard_normal((2, 1, 64)).astype(np.float32))
    a, b = (extract(e, panel, Reading(("mean",))) for e in (tuned, loaded))
    assert all((a.arrays[layer] == b.arrays[layer]).all() for layer in a.layers)
    assert loaded.facts.objective == "jepa + dense"
    assert "nothing" in loaded.facts.pretrained_on
    assert loaded.fingerprint() == tuned.fingerprint() != encoder.fingerprint()


def test_hidden_tokens_are_whole_blocks_of_real_ones_and_never_all() -> None:
    real = torch.ones(4, 40, dtype=torch.bool)
    real[1, 20:] = False
    hidden = blocks_hidden(real, 0.75, 2, torch.Generator().manual_seed(0))
    assert hidden[0].sum() == 30
    assert hidden[1].sum() == 16  # eight of ten blocks: 7.5 is rounded to even
    assert not hidden[1, 20:].any()
    assert (hidden.view(4, 20, 2)[..., 0] == hidden.view(4, 20, 2)[..., 1]).all()
    assert not blocks_hidden(real, 0.99, 2, torch.Generator().manual_seed(0)).all(1).any()
    with pytest.raises(EncoderError, match="a series of 3 tokens is too short to hide blocks of 2"):
        blocks_hidden(real[:, :3], 0.75, 2, torch.Generator())


def test_what_is_hidden_cannot_be_seen() -> None:
    x = torch.randn(1, 6, 3)
    real, hidden = torch.ones(1, 6, dtype=torch.bool), torch.tensor([[False, True, True, False, False, False]])
    y = x.clone()
    y[:, 1:3] += 5
    assert torch.equal(hide(x, real, hidden), hide(y, real, hidden))
    assert torch.equal(hide(x, real, hidden)[:, 3:], x[:, 3:])


def test_share_of_a_token_in_each_segment() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    start, stop = torch.tensor([[0, 2, 4, 0]]), torch.tensor([[2, 4, 8, 0]])
    tokens = TokenMap(stop > start, start, stop)
    expected = torch.tensor([[[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 0]]])
    assert torch.allclose(membership(segments, tokens, rows=1), expected)


def test_the_same_lesson_whenever_it_is_asked_for() -> None:
    lessons = Unlabelled(load_encoder("zoo/jepa"), ("kernel_synth",), 128, 0, segments=True)
    for number in (0, 1):
        a, _, b = lessons.lesson(number, 4), lessons.lesson(7, 4), lessons.lesson(number, 4)
        assert torch.equal(a.batch.values, b.batch.values)
    assert lessons.lesson(0, 4).segments is None
    segments = lessons.lesson(1, 4).segments
    assert segments is not None
    assert (segments.diff(dim=1) >= 0).all()


def test_constant_channels_are_not_blown_up() -> None:
    x = torch.randn(50, 3)
    x[:, 1] = 4.0
    assert Scaling.of(x)(x[None])[0, :, 1].abs().max() == 0
    assert Scaling.of(x, student=True).deviation[1] == pytest.approx(float(x[:, [0, 2]].std(0, correction=0).mean()))


def test_the_planted_answer_comes_back_and_a_wrong_teacher_does_not_bring_it(tmp_path: Path) -> None:
    asked = task()
    outcome = run_alignment(
        spec(teacher="block.1", locality=0.0, steps=150), tmp_path, stage=silent, encoder=planted(),
        tasks={asked.name: asked},
    )  # fmt: skip
    (row,) = outcome.lift.to_dict("records")
    assert row["final_before"] < 0.1
    assert row["hidden_before"] > 0.99
    assert row["lift"] > 0.8
    assert row["lift_low"] > 0.7


def test_a_wrong_teacher_brings_nothing(tmp_path: Path) -> None:
    """The teacher is the scrambled layer itself."""
    asked = task()
    wrong = run_alignment(
        spec(teacher="block.2", locality=0.0), tmp_path, stage=silent, encoder=planted(), tasks={asked.name: asked}
    )
    (row,) = wrong.lift.to_dict("records")
    assert row["lift"] < 0.3


def test_the_teacher_is_found_and_an_exposed_encoder_is_left_alone(tmp_path: Path) -> None:
    asked = task()
    hidden = run_alignment(spec(steps=2), tmp_path / "a", stage=silent, encoder=planted(), tasks={asked.name: asked})
    assert hidden.message == ""
    assert hidden.teachers[0] in ("embedding", "block.0", "block.1")
    exposed = planted()
    exposed.module.blocks[2].down.weight.data.zero_()
    left = run_alignment(spec(), tmp_path / "b", stage=silent, encoder=exposed, tasks={asked.name: asked})
    assert left.encoder is None
    assert "no repair needed" in left.message
    assert (tmp_path / "b" / "before" / "verdicts.csv").exists()
    assert not (tmp_path / "b" / "checkpoint.pt").exists()


def test_a_run_that_was_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    asked = spec(steps=6)

    def tuning() -> Tuning:
        return Tuning(asked, planted(), ("block.1",), [])

    whole = tune(tuning(), tmp_path / "a", stage=silent, name="a")
    assert tune(tuning(), tmp_path / "b", stage=silent, name="b", until=3) is None
    resumed = tune(tuning(), tmp_path / "b", stage=silent, name="b")
    assert whole is not None
    assert resumed is not None
    assert whole.fingerprint() == resumed.fingerprint() != planted().fingerprint()
    assert (tmp_path / "a" / "losses.csv").read_text() == (tmp_path / "b" / "losses.csv").read_text()
    with pytest.raises(SpecError, match="holds a run with other settings"):
        tune(Tuning(spec(steps=7), planted(), ("block.1",), []), tmp_path / "b", stage=silent, name="b")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    tuning = Tuning(spec(steps=6), planted(), ("block.1",), [])
    tune(tuning, tmp_path, stage=silent, name="a", until=2)
    tuning.student.encoder.module.embed.bias.data.fill_(torch.nan)
    with pytest.raises(EncoderError, match=r"the loss of batch 2 is not finite .*core block\.1 nan"):
        tuning.advance()
    again = Tuning(spec(steps=6), planted(), ("block.1",), [])
    found = tune(again, tmp_path, stage=silent, name="a")
    assert found is not None
    assert all(p.isfinite().all() for p in found.module.parameters())


def test_bad_requests_say_what_would_be_right(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'dense'"):
        spec(recipe="dens")
    with pytest.raises(ValueError, match="name tasks in labelled="):
        spec(recipe="labels")
    asked = task()
    run = {"stage": silent, "encoder": planted(), "tasks": {asked.name: asked}}
    with pytest.raises(SpecError, match=r"teacher 'block.9' is no layer of planted"):
        run_alignment(spec(teacher="block.9"), tmp_path, **run)
    twice = run | {"tasks": dict.fromkeys((asked.name, f"{asked.name}?m=2"), asked)}
    with pytest.raises(SpecError, match="are one task"):
        run_alignment(spec(study={"tasks": list(twice["tasks"])}), tmp_path, **twice)
    encoder = load_encoder("zoo/contrastive")
    with pytest.raises(EncoderError, match="layer projector has 1 tokens and norm"):
        Tuning(spec(), encoder, ("projector",), []).advance()


def test_a_student_that_hides_sees_less_and_one_that_does_not_is_the_encoder() -> None:
    encoder = load_encoder("zoo/reconstruction")
    student = Student(encoder, TUNED, mask=0.5, mask_block=2, stochastic_depth=0.2, layer_scale=True)
    lesson = Unlabelled(encoder, ("kernel_synth",), 128, 0, segments=False).lesson(0, 4)
    inputs = encoder.prepare(lesson.batch)
    with torch.no_grad():
        plain = student.tokens(inputs, tuning=False)
        tuned = student.tokens(inputs, tuning=True, seed=1)
        same = student.tokens(inputs, tuning=True, seed=1)
        other = student.tokens(inputs, tuning=True, seed=2)
        assert torch.equal(encoder.run(inputs) if encoder.final == "output" else plain, plain)
    assert torch.equal(tuned, same)
    assert not torch.allclose(plain, tuned)
    assert not torch.allclose(tuned, other)


def test_lift_is_the_share_of_the_gap() -> None:
    first, hidden, then = torch.tensor([0.5, 0.4, 0.6]), torch.tensor([0.9, 0.8, 1.0]), torch.tensor([0.8, 0.7, 0.9])
    found = _lift([first, hidden, then], same=False)
    assert found["lift"] == pytest.approx(0.75)
    assert found["lift_low"] == pytest.approx(0.75)
    assert math.isnan(_lift([first, first, then], same=True)["lift"])
    unsure = torch.tensor([0.9, 0.3, 1.0])  # in one of the resamples there is no gap
    assert math.isnan(_lift([first, unsure, then], same=False)["lift"])


@pytest.mark.parametrize("recipe", ["joint", "labels", "state"])
def test_the_other_recipes_learn_what_they_are_given(recipe: str) -> None:
    encoder = load_encoder("zoo/contrastive")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 1, 64)).astype(np.float32)
    size = rng.uniform(0, 3, 60)
    x += (np.sin(np.arange(64) / 3) * size[:, None, None]).astype(np.float32)
    y = (size > 1.5).astype(int)
    half = np.where(np.arange(60) % 2, size, np.nan)
    given = {
        "joint": [],
        "labels": [tp.Classification("waves", (x, y), (x, y))],
        "state": [tp.Regression("waves", (x, half), (x, size))],
    }[recipe]
    asked = spec(encoder="zoo/contrastive", recipe=recipe, labelled=["waves"] if given else [], steps=12, rate=1e-3)
    tuning = Tuning(asked, encoder, ("block.2", "block.8") if recipe == "joint" else (), given)
    tuning.look()
    for _ in range(12):
        tuning.advance()
    tuning.look()
    first, last = tuning.rows[0], tuning.rows[-1]
    names = {"joint": {"core block.2", "core block.8"}}.get(recipe, {"waves"})
    assert set(last) == {"step", "held_out"} | names
    assert sum(last[name] for name in names) < 0.95 * sum(first[name] for name in names)


def test_align_from_python_gives_the_tuned_encoder_or_the_one_that_needs_nothing(tmp_path: Path) -> None:
    settings = {
        "steps": 3,
        "batch": 8,
        "length": 64,
        "controls": (),
        "free": (),
        "teacher": "block.1",
        "probes": ("ridge",),
    }
    asked = task()
    tuned = tp.align(planted(), "dense", asked, out=tmp_path / "a", **settings)
    assert tuned.name == "planted+dense"
    assert {"encoder", "before", "after", "lift.csv", "report.html", "spec.yaml", "provenance.json"} <= {
        path.name for path in (tmp_path / "a").iterdir()
    }
    assert "planted" in (tmp_path / "a" / "report.html").read_text()
    exposed = planted()
    exposed.module.blocks[2].down.weight.data.zero_()
    with pytest.warns(UserWarning, match="no repair needed"):
        assert tp.align(exposed, "dense", asked, **{**settings, "teacher": "auto"}) is exposed
