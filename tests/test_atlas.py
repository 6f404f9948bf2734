"""The atlas on tables whose answer is known: intervals, picks that never see the test set, and rules of the answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import planted_encoder, planted_task

import tsprobe as tp
from tsprobe.atlas import answers, costs, figures, published
from tsprobe.atlas.draws import Estimate, Grid, interval
from tsprobe.atlas.hidden import check_choice
from tsprobe.atlas.labels import few_label_layers
from tsprobe.atlas.layers import BLIND, LAYERS, layer_table, of_task
from tsprobe.atlas.league import carried_over, fewest_labels, league
from tsprobe.atlas.pickers import LeakError, check_blind, correlations, few, pick_all, picked, regrets, signs
from tsprobe.atlas.spec import AtlasSpec, read_atlas_spec
from tsprobe.errors import SpecError
from tsprobe.study import make_spec
from tsprobe.study.progress import silent

ENCODERS = ("a", "b", "c", "d")
TASKS = tuple(f"{family}/{i}" for family in ("classification", "dense") for i in range(4))
PLACES = np.linspace(0, 1, 6)
SPEC = AtlasSpec.model_validate(
    {"studies": {"s": {"encoders": ["fracast"], "tasks": ["ucr/GunPoint"]}}, "resamples": 400, "labels": [5, 50]}
)


def made_layers(seed: int = 0, *, modality: str = "series") -> pd.DataFrame:
    """Each task has a best layer before the last; inner folds score as the test set does, but for some noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for encoder in ENCODERS:
        for task in TASKS:
            score = 0.9 - (PLACES - rng.choice([0.4, 0.6], p=[0.3, 0.7]) - 0.2) ** 2
            for i, place in enumerate(PLACES):
                rows.append(
                    {"study": "s", "modality": modality, "encoder": encoder, "role": "studied", "objective": encoder,
                     "task": task, "base": task, "variant": "0", "family": task.split("/")[0], "metric": "accuracy",
                     "pooling": "mean", "probe": "ridge", "layer": f"block.{i}", "place": place, "trunk": True,
                     "final": i == len(PLACES) - 1, "inner": score[i] + rng.normal(0, 0.005), "score": score[i],
                     "chance": 0.5}
                )  # fmt: skip
    return pd.DataFrame(rows)[list(LAYERS)]


def made_diagnostics(layers: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """`lidar` falls as the score rises, `rankme` is noise."""
    rng = np.random.default_rng(seed)
    keys = layers[["study", "encoder", "task", "layer"]]
    good = keys.assign(diagnostic="lidar", value=-layers["score"] + rng.normal(0, 0.001, len(layers)))
    return pd.concat([good, keys.assign(diagnostic="rankme", value=rng.normal(size=len(layers)))], ignore_index=True)


def no_labels() -> pd.DataFrame:
    return pd.DataFrame(columns=["encoder", "task", "labels", "draw", "layer", "study"])


# Intervals


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for i in range(200):
        values = rng.normal(1.0, 1.0, (1, 6, 1))
        found = Grid(values, ("a",) * 6).estimate(300, i, 0.1)
        hits += found.low <= 1.0 <= found.high
    assert 0.83 <= hits / 200 <= 0.97  # a plain percentile interval of six tasks covers under 0.8 (tried: 0.79)


def test_fewer_than_three_tasks_have_no_interval_and_a_family_of_one_task_is_not_certain() -> None:
    assert not Grid(np.array([[[0.1], [0.3]]]), ("a", "a")).estimate(200, 0, 0.05).known
    found = Grid(np.array([[[0.1], [0.3], [0.5], [0.7]]]), ("a", "b", "c", "d")).estimate(200, 0, 0.05)
    assert found.high - found.low > 0.2


def test_tasks_are_drawn_within_their_family_seeds_within_their_task_and_encoders_too() -> None:
    apart = np.array([[[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]]])
    assert np.ptp(Grid(apart, ("a",) * 3 + ("b",) * 3).resampled(200, 0)) == 0
    assert np.ptp(Grid(apart, ("a",) * 6).resampled(200, 0)) > 0
    seeds = np.tile([0.0, 1.0], (1, 3, 1))
    assert np.ptp(Grid(seeds, ("a",) * 3).resampled(200, 0)) > 0
    alone = np.stack([seeds, np.full_like(seeds, np.nan)], axis=-1)[..., [1, 0]].reshape(1, 3, 4)
    assert np.array_equal(
        np.unique(Grid(alone, ("a",) * 3).resampled(200, 0).round(6)),
        np.unique(Grid(seeds, ("a",) * 3).resampled(200, 0).round(6)),
    )
    encoders = np.stack([np.zeros((3, 1)), np.ones((3, 1))])
    assert np.ptp(Grid(encoders, ("a",) * 3).resampled(200, 0)) == 1


def test_groups_that_read_the_same_tasks_are_resampled_in_pairs() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        [{"encoder": e, "family": "f", "base": str(i), "variant": "0", "gap": rng.normal() if e == "a" else 0.0}
         for e in "ab" for i in range(8)]
    )  # fmt: skip
    table.loc[table.encoder == "b", "gap"] = table.loc[table.encoder == "a", "gap"].to_numpy() + 1
    a, b = (Grid.of(table[table.encoder == e], "gap", tasks=table).resampled(200, 0) for e in "ab")
    assert np.allclose(b - a, 1)


def test_seeds_of_generated_series_are_variants_of_one_task() -> None:
    assert of_task("process/k2?n_train=9&seed=1") == {"base": "process/k2?n_train=9", "variant": "1"}
    assert of_task("process/k2?seed=2&n_train=9") == {"base": "process/k2?n_train=9", "variant": "2"}
    assert of_task("process/k2?seed=1") == {"base": "process/k2", "variant": "1"}
    assert of_task("ucr/GunPoint?shots=5&seed=1")["variant"] == "0"  # another draw of labels, not of series


# Picks and regrets


def test_the_sign_of_a_diagnostic_is_that_of_the_other_encoders() -> None:
    layers = made_layers()
    diagnostics = made_diagnostics(layers)
    turned = diagnostics.copy()
    turned.loc[(turned.encoder == "a") & (turned.diagnostic == "lidar"), "value"] *= -1
    found = signs(correlations(layers, turned))
    assert {found["series", "lidar", e] for e in ENCODERS} == {-1.0}  # for a too, where it is the wrong one
    alone = layers[layers.encoder == "a"]
    assert signs(correlations(alone, diagnostics)) == {}


def test_regret_is_the_share_of_the_readable_score_that_a_pick_loses() -> None:
    layers = made_layers()
    lost = regrets(layers, picked(layers, made_diagnostics(layers), no_labels()))
    one = layers[(layers.encoder == "a") & (layers.task == TASKS[0])]
    row = lost[(lost.encoder == "a") & (lost.task == TASKS[0])].set_index("picker")
    assert row.loc["last", "regret"] == pytest.approx((one.score.max() - one.score.iloc[-1]) / (one.score.max() - 0.5))
    assert row.loc["any layer", "lost"] == pytest.approx(one.score.max() - one.score.mean())
    assert row.loc["middle", "score"] in one[(one.place - 0.5).abs() < 0.11].score.to_numpy()
    unreadable = regrets(layers.assign(chance=1.0), picked(layers, made_diagnostics(layers), no_labels()))
    assert unreadable.regret.isna().all()
    barely = regrets(
        layers.assign(score=0.5 + 0.02 * layers.score), picked(layers, made_diagnostics(layers), no_labels())
    )
    assert barely.regret.isna().all()  # at most 0.02 of the 0.5 from chance to 1
    errors = layers.assign(metric="neg_mase", score=layers.score - 1, chance=-0.5)  # chance to 0 is 0.5 as well
    assert regrets(errors, picked(errors, made_diagnostics(layers), no_labels())).regret.max() == pytest.approx(
        lost.regret.max()
    )
    assert (lost.regret >= 0).all()


def test_whoever_picks_is_given_no_test_score() -> None:
    seen = []

    def spy(blind, diagnostics, sign, labels):
        seen.extend(blind.columns)
        return pick_all(blind, diagnostics, sign, labels)

    layers = made_layers()
    picked(layers, made_diagnostics(layers), no_labels(), spy)
    assert set(seen) == set(BLIND)
    assert not {"score", "chance"} & set(seen)


def test_a_pick_that_sees_the_test_set_is_caught() -> None:
    layers = made_layers()
    diagnostics = made_diagnostics(layers)
    check_blind(layers, diagnostics, no_labels())

    def leaking(table, diagnostics, labels):
        return picked(table.assign(inner=table["score"]), diagnostics, labels)

    with pytest.raises(LeakError, match="'all labels' changes with the test scores"):
        check_blind(layers, diagnostics, no_labels(), leaking)

    def sign_by_test(table, diagnostics, labels):
        seen = correlations(table, diagnostics)
        blind = table[list(BLIND)]
        return pick_all(blind, diagnostics, signs(seen.assign(inner=seen["spearman"])), labels)

    with pytest.raises(LeakError, match="changes with the test scores"):
        check_blind(layers, diagnostics, no_labels(), sign_by_test)


def test_shuffled_test_labels_leave_no_gap_though_the_best_test_score_has_one() -> None:
    layers = made_layers()
    noise = layers.assign(score=0.5 + np.random.default_rng(1).normal(0, 0.05, len(layers)))

    def gap(of: pd.DataFrame, pick) -> tuple[float, float]:
        lost = regrets(of, pick(of, made_diagnostics(of), no_labels())).pivot_table(
            index=["encoder", "task"], columns="picker", values="score"
        )
        gaps = lost["all labels"] - lost["last"]
        return float(gaps.mean()), float(gaps.std() / len(gaps) ** 0.5)

    def leaking(table, diagnostics, labels):
        return picked(table.assign(inner=table["score"]), diagnostics, labels)

    assert gap(layers, picked)[0] > 0.02
    mean, error = gap(noise, picked)
    assert abs(mean) < 2 * error
    spurious, error = gap(noise, leaking)
    assert spurious > 5 * error


def test_a_verdict_whose_layer_inner_folds_do_not_choose_is_caught(tmp_path: Path) -> None:
    study = tp.probe(
        planted_encoder(2), planted_task(n=40), out=tmp_path, controls=("chance",), diagnostics="none", resamples=200,
        tracking={"enabled": False},
    )  # fmt: skip
    for node in study.tree.leaves:
        check_choice(node.to_dataset(), node.attrs)
    node = next(node for node in study.tree.leaves if node.attrs["encoder"] == "planted")
    with pytest.raises(LeakError, match="has seen something else"):
        check_choice(node.to_dataset(), {**node.attrs, "chosen_layer": "block.4"})
    layers = layer_table("s", "series", tmp_path)
    assert list(layers.encoder.drop_duplicates()) == list(study.verdicts.encoder)
    assert list(layers[layers.encoder == "planted"].layer) == ["embedding", *(f"block.{i}" for i in range(5))]
    assert list(layers[layers.final & (layers.encoder == "planted")].layer) == ["block.4"]
    assert (layers.chance == layers[layers.encoder == "baseline/chance"].score.iloc[0]).all()


def test_few_labels_choose_by_the_training_series_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, task = planted_encoder(2), planted_task(n=60)
    spec = make_spec(
        {"encoders": ["planted"], "tasks": [task.name], "controls": [], "features": "kept", "diagnostics": "none",
         "resamples": 200, "tracking": {"enabled": False}}
    )  # fmt: skip
    tp.study.run_study(spec, tmp_path, encoders={"planted": encoder}, tasks={task.name: task})
    from tsprobe.atlas import labels

    plan = labels.plan_entries
    monkeypatch.setattr(labels, "plan_entries", lambda spec, _: plan(spec, {"planted": encoder}))

    def chosen(of):
        monkeypatch.setattr(labels, "load_task", lambda name: of)
        few_label_layers(spec, tmp_path, (5, 50), 6, 0, silent)
        return pd.read_csv(tmp_path / "labels.csv")

    found = chosen(task)
    assert set(found.columns) == {"encoder", "task", "labels", "draw", "layer"}
    assert len(found) == 12
    upto = {"embedding", "block.0", "block.1", "block.2"}
    assert (found[found.labels == 50].layer.isin(upto)).all()  # later blocks have forgotten the label
    task.y_test[:] = 1 - task.y_test
    assert chosen(task).equals(found)
    task.y_train[:] = np.random.default_rng(0).permutation(task.y_train)
    assert not chosen(task).equals(found)


# The league


def test_a_diagnostic_that_knows_is_recommended_and_noise_is_not() -> None:
    layers = made_layers()
    diagnostics = made_diagnostics(layers)
    labels = pd.DataFrame(
        [{"study": "s", "encoder": e, "task": t, "labels": n, "draw": 0,
          "layer": "block.4" if n == 50 else "block.0"} for e in ENCODERS for t in TASKS for n in (5, 50)]
    )  # fmt: skip
    correlated = correlations(layers, diagnostics)
    lost = regrets(layers, picked(layers, diagnostics, labels))
    table = league(lost, correlated, SPEC).set_index("picker")
    assert table.loc["lidar", "verdict"] == "better than last and middle"
    assert table.loc["lidar", "sign"] == -1
    assert table.loc["rankme", "verdict"] not in ("better than last and middle", "better than last")
    assert table.loc["lidar", "regret"] < 0.02 < table.loc["lidar (highest)", "regret"]
    assert table.loc["lidar", "spearman_high"] < 0
    assert fewest_labels(table.reset_index(), "series", SPEC) == 50
    said = answers.of_diagnostics(table.reset_index(), carried_over(correlated, lost, SPEC), ["series"], SPEC)
    assert "lidar picked better layers than the last and the middle one" in said.headline
    noise = diagnostics[diagnostics.diagnostic == "rankme"]
    lost = regrets(layers, picked(layers, noise, labels[labels.labels == 5]))
    table = league(lost, correlations(layers, noise), SPEC)
    said = answers.of_diagnostics(table, carried_over(correlated, lost, SPEC), ["series"], SPEC)
    assert "none is shown to pick better layers" in said.headline
    assert "rankme" in figures.league_figure(table, "series")
    assert few(5) in set(table.picker)


def test_signs_carry_over_to_the_other_modality_or_are_turned_round() -> None:
    names = ("lidar", "rankme", "two_nn", "dime", "infonce", "alignment")

    def table(modality: str, way: float) -> pd.DataFrame:
        rng = np.random.default_rng(1)
        return pd.DataFrame(
            [{"modality": modality, "encoder": e, "family": "f", "base": t, "variant": "0", "diagnostic": d,
              "spearman": way * (i - 2.5) / 3 + rng.normal(0, 0.05)}
             for i, d in enumerate(names) for e in ENCODERS for t in TASKS]
        )  # fmt: skip

    none = pd.DataFrame(columns=["modality", "picker", "encoder", "family", "base", "variant", "regret"])
    for way in (1.0, -1.0):
        row = carried_over(pd.concat([table("series", 1.0), table("pictures", way)]), none, SPEC).iloc[0]
        assert row["correlation"] == pytest.approx(way, abs=0.1)
        assert row["correlation_low"] * way > 0.5


# Published results, and what alignments cost


def test_agreement_with_published_results_follows_from_the_interval() -> None:
    depth, order = published.CLAIMS[0], published.CLAIMS[2]
    assert depth.low == 0.83
    cases = {(0.75, 0.9): "agrees", (0.2, 0.5): "disagrees", (0.4, 0.9): "undecided", (math.nan, math.nan): "undecided"}
    for (low, high), verdict in cases.items():
        assert published.agreement(depth, Estimate(0.5, low, high)) == verdict
    for (low, high), verdict in {(0.1, 0.3): "agrees", (-0.3, -0.1): "disagrees", (-0.1, 0.1): "undecided"}.items():
        assert published.agreement(order, Estimate(0.0, low, high)) == verdict


def made_tradeoff(changes: dict[str, tuple[float, float]], kept: tuple[float, float]) -> pd.DataFrame:
    rows = [
        {"family": f, "change": sum(c) / 2, "change_low": c[0], "change_high": c[1], "lifted": f == "dense",
         "direction": costs.direction(Estimate(0.0, *c)), "kept": math.nan, "kept_low": math.nan,
         "kept_high": math.nan, "tasks": 3} for f, c in changes.items()
    ]  # fmt: skip
    rows.append({**rows[0], "family": costs.ALL, "lifted": False, "kept": sum(kept) / 2, "kept_low": kept[0],
                 "kept_high": kept[1], "tasks": 6})  # fmt: skip
    shared = {"alignment": "x", "encoder": "e", "recipe": "joint", "control": "", "seeds": 1, "retention": 1.0}
    return pd.DataFrame([shared | row for row in rows])[list(costs.TRADEOFF)]


@pytest.mark.parametrize(
    ("changes", "kept", "verdict", "said"),
    [
        ({"dense": (0.1, 0.2), "language": (-0.3, -0.1)}, (-0.01, 0.1), "privileges", "one family at the cost"),
        ({"dense": (-0.1, 0.2), "language": (-0.3, -0.1)}, (-0.01, 0.1), "loses", "No alignment here"),
        ({"dense": (0.1, 0.2), "language": (-0.1, 0.1)}, (-0.01, 0.1), "keeps", "about: x did in dense and language,"),
        ({"dense": (0.1, 0.2), "language": (-0.1, 0.1)}, (-0.3, -0.1), "loses", "No alignment here"),
        ({"dense": (0.1, 0.2), "language": (-0.1, 0.1)}, (-0.1, 0.1), "undecided", "Undecided"),
    ],
)
def test_the_verdict_on_an_alignment_follows_from_intervals(changes, kept, verdict, said) -> None:
    table = made_tradeoff(changes, kept)
    assert costs.privilege(table, SPEC)["verdict"] == verdict
    answer = answers.of_alignments(table, SPEC, ["x"])
    assert said in answer.headline
    assert "dense" in figures.tradeoff_figure(table)
    assert "nothing was hidden" in answers.of_alignments(table[:0], SPEC, ["x"]).headline


@pytest.mark.parametrize(
    ("low", "high", "more", "said"),
    [
        (0.01, 0.03, 0.01, "hidden, more than without training"),
        (0.01, 0.03, -0.01, "hidden, not shown to be more than without training"),
        (-0.01, 0.03, 0.01, "undecided"),
        (-0.03, -0.01, 0.01, "not hidden"),
        (math.nan, math.nan, math.nan, "undecided"),
    ],
)
def test_the_pattern_of_an_objective_follows_from_intervals(low, high, more, said) -> None:
    assert answers.pattern({"gap_low": low, "gap_high": high, "less_untrained_low": more}) == said


def test_an_interval_of_a_few_clusters_is_wider() -> None:
    samples = np.concatenate([[0.0], np.random.default_rng(0).normal(size=4000)])
    few_, many = (interval(samples, n, 0.1) for n in (3, 100))
    assert few_.high - few_.low > 1.3 * (many.high - many.low)
    assert not interval(samples, 0, 0.1).known


# The spec


def test_a_part_overrides_the_settings_of_its_file_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("encoder: fracast\nrecipe: dense\nstudy: {tasks: [ucr/GunPoint], probes: [knn]}\n")
    (tmp_path / "atlas.yaml").write_text(
        "studies: {s: {encoders: [fracast], tasks: [ucr/GunPoint]}}\n"
        f"alignments: {{a: {{config: {tmp_path}/a.yaml, steps: 7, study: {{tasks: [dense/state]}}}}}}\n"
    )
    spec = read_atlas_spec(tmp_path / "atlas.yaml", ("draws=2",))
    assert spec.alignments["a"].steps == 7
    assert spec.alignments["a"].study.tasks == ("dense/state",)
    assert spec.alignments["a"].study.probes == ("knn",)
    assert (spec.studies["s"].modality, spec.draws, spec.parts) == ("series", 2, ("s", "a"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("studies: {s: {encoders: [fracast], tasks: [a/b], sedes: [0]}}", "s: unknown setting 'sedes'; did you mean"),
        ("studies: {s: {encoders: [fracast], tasks: [a/b]}}\nlabels: [2]", "4 at least"),
        ("studies: {s: {config: nowhere.yaml}}", "no such config: nowhere.yaml"),
        ("studies: {s: 3}", "s must hold settings"),
        ("studies: {a/b: {encoders: [fracast], tasks: [a/b]}}", "is to name a folder"),
        (
            "studies: {s: {encoders: [fracast], tasks: [a/b]}}\n"
            "alignments: {s: {encoder: fracast, recipe: dense, study: {tasks: [a/b]}}}",
            "names a study and an alignment",
        ),
        ("alignments: {}", "'studies' is required"),
    ],
)
def test_a_mistake_in_the_spec_is_named_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "atlas.yaml").write_text(text)
    with pytest.raises(SpecError, match=said) as caught:
        read_atlas_spec(tmp_path / "atlas.yaml")
    assert "\n" not in str(caught.value)


def test_the_configs_that_are_shipped_are_atlases() -> None:
    full, small = (read_atlas_spec(Path("configs") / name) for name in ("atlas.yaml", "atlas_small.yaml"))
    assert {part.modality for part in full.studies.values()} == {"series", "pictures"}
    assert {a.recipe for a in full.alignments.values()} == {"dense", "labels", "state", "joint", "language"}
    assert all(part.spec.diagnostics.names for part in full.studies.values())
    assert len(small.alignments) == 1
