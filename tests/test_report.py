"""The report: a page that is whole, asks nothing of a network, and stays right under missing values and hostile names.

The page is parsed with html.parser: what is counted is elements and attributes as a browser would see them.
"""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tsprobe.errors import StorageError
from tsprobe.report import plot, render, write_report
from tsprobe.report.families import peaks
from tsprobe.report.figures import PALETTE, look_of, panels, safe, styles, y_range
from tsprobe.report.heat import heat_maps
from tsprobe.report.text import caveats, facts, headline, number, p_value, shorten

TASKS = (
    ("ucr/GunPoint", "classification", "accuracy"),
    ("ucr/ECG200", "classification", "accuracy"),
    ("ucr/CricketX", "classification", "accuracy"),
    ("tser/Covid3Month", "classification", "r2"),
    ("process/phase", "dense", "r2"),
    ("process/amplitude", "dense", "r2"),
    ("gift/ETTh1", "forecasting", "neg_mase"),
    ("language/captions", "language", "recall_at_1"),
)
CHANCE = {"accuracy": 0.5, "r2": 0.0, "neg_mase": math.nan, "recall_at_1": 0.02}
HOSTILE = '</script><img src="http://evil.example/x.png" onerror=alert(1)><b>&amp; {{ 7*7 }} %{x}'


def fake_study(encoders=("fracast", "zoo/jepa"), tasks=TASKS, blocks=9, controls=True, seed=0):
    """Curves that rise to the middle and fall to the output for some tasks, as forecasters' do; blocks + 3 layers."""
    rng = np.random.default_rng(seed)
    middle = [f"block.{i}" for i in range(blocks)]
    layers = ["embedding", *middle, "norm", "output"] if blocks else ["output"]
    last = max(len(layers) - 2, 1)
    depths = [i / last if i <= last else math.nan for i in range(len(layers))]
    roles = {"minirocket": "baseline", "guess": "chance"} if controls else {}
    names = list(encoders)
    if controls:
        roles |= {f"{name}@untrained": "untrained" for name in encoders}
        names = [*encoders, *(f"{name}@untrained" for name in encoders), *roles.keys() - set(encoders)]
        names = list(dict.fromkeys(names))
    curves, verdicts = [], []
    for e, encoder in enumerate(names):
        role = roles.get(encoder, "")
        shown = [("raw", math.nan)] if role in ("baseline", "chance") else list(zip(layers, depths, strict=True))
        final = shown[-2][0] if len(shown) > 1 else shown[-1][0]
        for t, (task, family, metric) in enumerate(tasks):
            chance = CHANCE[metric]
            base = -1.3 if metric == "neg_mase" else chance
            x = np.linspace(0, 1, len(shown))
            fall = 0.3 * ((t + e) % 3 != 0) * (role == "")
            lift = {"": 0.42, "untrained": 0.16, "baseline": 0.27, "chance": 0.0}[role]
            score = base + lift * (np.sqrt(x + 0.1) - fall * np.clip(x - 0.55, 0, 1) * 3) + rng.normal(0, 0.006, len(x))
            half = rng.uniform(0.02, 0.04, len(x))
            what = {"encoder": encoder, "objective": "none" if role else "forecasting", "task": task, "family": family}
            for i, (layer, depth) in enumerate(shown):
                place = {"metric": metric, "layer": layer, "layer_index": i, "depth": depth}
                readout = {"pooling": "mean", "probe": "ridge", "score": score[i]}
                ends = {"low": score[i] - half[i], "high": score[i] + half[i], "chance": chance}
                curves.append({**what, **place, **readout, **ends})
            at_final = [layer for layer, _ in shown].index(final)
            best = int(np.argmax(score))
            gap = score[best] - score[at_final]
            verdict = "hidden" if gap > 0.05 else "exposed" if gap < 0.02 else "undecided"
            verdicts.append({
                **what, "metric": metric, "final_layer": final, "chosen_layer": shown[best][0],
                "chosen_depth": shown[best][1], "final_score": score[at_final], "chosen_score": score[best],
                "gap": gap, "gap_low": gap - 0.03, "gap_high": gap + 0.035, "p_value": 0.2 * math.exp(-80 * gap),
                "p_adjusted": min(1.0, 0.9 * math.exp(-80 * gap)), "verdict": verdict,
            })  # fmt: skip
    return _study(pd.DataFrame(curves), pd.DataFrame(verdicts), roles, tasks, rng)


def _study(frame, verdicts, roles, tasks, rng):
    scores = frame.drop(columns=["low", "high", "chance"]).assign(seed=0, n_train=200, n_test=150)
    inner = frame[~frame["encoder"].isin(["minirocket", "guess"])]
    keep = ["encoder", "objective", "task", "layer", "layer_index", "depth", "pooling"]
    falls = 40 * (1.2 - inner["layer_index"] / 12)
    made = [
        inner[keep].assign(diagnostic=kind, value=falls + 5 * k * rng.random(len(inner)))
        for k, kind in enumerate(["effective_rank", "anisotropy", "lidar"])
    ]
    provenance = {
        "resamples": 2000, "device": "NVIDIA H100",
        "versions": {"tsprobe": "0.1.0", "torch": "2.15.0", "sktime": "1.2.0"},
        "timings": {"capture": 41.29, "probes": {"ridge": 12.5, "logistic": 80.123}, "stats": 3.2},
        "checksums": {task: "9f86d081884c7d65" * 4 for task, _, _ in tasks[:2]},
        "missing_values": {task: 0 for task, _, _ in tasks[:3]},
    }  # fmt: skip
    studied = [name for name in frame["encoder"].unique() if name not in roles]
    spec = {"encoders": studied, "tasks": [t for t, _, _ in tasks], "poolings": ["mean"], "seeds": [0]}
    spec |= {"level": 0.05, "margin": 0.02}
    return SimpleNamespace(
        name="fracast-vs-jepa", spec=spec, provenance=provenance, scores=scores, curves=frame,
        verdicts=verdicts, diagnostics=pd.concat(made, ignore_index=True), controls=roles,
    )  # fmt: skip


class Page(HTMLParser):
    """What a browser would find in the page: elements with attributes, and the text of scripts and headings."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def attributes(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def text(self, tag):
        return " ".join(" ".join(data for name, data in self.texts if name == tag).split())

    @property
    def data(self):
        return json.loads(next(data for tag, data in self.texts if tag == "script" and data.startswith('{"on"')))


@pytest.fixture(scope="module")
def study():
    return fake_study()


@pytest.fixture(scope="module")
def page(study):
    return Page(render(study))


def outside(page):
    """Everything that would make a browser ask a network."""
    loads = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    found = [(tag, a[k]) for tag, a in page.elements for k in loads & a.keys() if not (a[k] or "").startswith("data:")]
    styles = page.text("style") + " ".join(a.get("style") or "" for _, a in page.elements)
    return found + re.findall(r"url\([^)]*\)|@import[^;]*", styles)


def test_page_asks_nothing_of_a_network(page):
    assert outside(page) == []
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_the_check_for_a_network_can_fail():
    for element in ('<img src="http://x/y.png">', '<script src="//x"></script>', "<style>@import 'x';</style>"):
        assert outside(Page(element))


def test_plotly_is_inlined_once_and_every_figure_has_its_data(page):
    assert sum("plotly.js v" in text for tag, text in page.texts if tag == "script") == 1
    ids = [a["data-plot"] for a in page.attributes("div") if "data-plot" in a]
    # panels and one of a mean, heat maps and families of the studied encoders, diagnostics
    assert len(ids) == len(TASKS) + 1 + 2 + 2 + 3
    assert set(ids) == page.data["plots"].keys()


def test_headline_is_the_study_in_plain_words():
    rows = pd.DataFrame({
        "encoder": "fracast", "task": ["ucr/GunPoint", "a", "b", "c"], "metric": "accuracy",
        "gap": [0.1234, 0.05, 0, 0], "chosen_layer": "block.4", "verdict": ["hidden", "hidden", "exposed", "undecided"],
    })  # fmt: skip
    title, more = headline(rows, 0)
    assert title == (
        "fracast hides useful features on 2 of 4 tasks; largest gap: 0.123 accuracy on ucr/GunPoint at block.4."
    )
    assert more == []
    assert "1 of 2 hidden verdicts does not count for much" in headline(rows, 1)[1][0]
    plain, _ = headline(rows.assign(verdict="exposed"), 0)
    assert plain == "fracast shows no hidden features on 4 tasks (4 exposed, 0 undecided)."
    many = pd.concat([rows.assign(encoder=f"e{i}", verdict=v) for i, v in enumerate(["exposed"] * 4 + ["hidden"])])
    assert headline(many.reset_index(drop=True), 0)[0].startswith("1 of 5 encoders hides useful features on at least")
    assert "only controls" in headline(rows.iloc[:0], 0)[0]


def test_headline_names_the_encoder_that_hides_most(study, page):
    studied = study.verdicts[~study.verdicts["encoder"].isin(list(study.controls))]
    counts = studied[studied["verdict"] == "hidden"]["encoder"].value_counts()
    assert page.text("h1").startswith(f"{counts.idxmax()} hides useful features on {counts.max()} of 8 tasks")


def test_a_hidden_verdict_is_qualified_where_a_control_does_as_well(study):
    verdicts = study.verdicts.copy()
    hidden = verdicts[verdicts["verdict"].eq("hidden") & ~verdicts["encoder"].isin(list(study.controls))]
    assert not any(caveats(verdicts, study.controls))
    for position, (control, note) in enumerate({"@untrained": "untrained", "minirocket": "raw-signal"}.items()):
        row = hidden.iloc[position]
        name = row["encoder"] + control if control.startswith("@") else control
        rival = verdicts["encoder"].eq(name) & verdicts["task"].eq(row["task"])
        verdicts.loc[rival, "chosen_score"] = row["chosen_score"] + 0.01
        notes = caveats(verdicts, study.controls)
        assert notes[verdicts.index.get_loc(row.name)].startswith(note)


def test_verdict_table_has_every_row_and_controls_come_last_and_quiet(study, page):
    pairs = zip(page.elements, page.elements[1:], strict=False)
    quiet = [tr.get("class") == "control" for (tag, tr), (_, th) in pairs if tag == "tr" and th.get("class") == "name"]
    controls = study.verdicts["encoder"].isin(list(study.controls))
    assert quiet == sorted(controls)
    chips = [a["class"].split()[1] for a in page.attributes("span") if (a.get("class") or "").startswith("chip")]
    kinds = study.verdicts["verdict"].value_counts()
    assert {k: chips.count(k) - 1 for k in kinds.index} == kinds.to_dict()  # one more of each in the legend


def test_curves_carry_scores_marks_and_styles(study):
    panel = next(p for p in panels(study) if p["task"] == "ucr/GunPoint")
    lines = {t["name"]: t for t in panel["traces"] if "name" in t}
    truth = study.curves[study.curves["task"].eq("ucr/GunPoint") & study.curves["encoder"].eq("fracast")]
    np.testing.assert_allclose(lines["fracast"]["y"], truth["score"], rtol=1e-5)  # six digits are written
    np.testing.assert_allclose(lines["fracast"]["x"][:-1], truth["depth"].iloc[:-1], atol=1e-4)  # four decimals
    assert lines["fracast"]["x"][-1] > 1  # past the trunk
    assert lines["fracast@untrained"]["line"]["dash"] == "dash"
    assert lines["fracast@untrained"]["line"]["color"] == lines["fracast"]["line"]["color"]
    assert lines["fracast"]["line"]["color"] != lines["zoo/jepa"]["line"]["color"]
    verdict = study.verdicts.set_index(["encoder", "task"]).loc[("fracast", "ucr/GunPoint")]
    marks = {t["marker"]["symbol"]: t for t in panel["traces"] if t.get("mode") == "markers" and t["meta"] == 0}
    assert marks["circle-open"]["y"] == [pytest.approx(verdict["final_score"], rel=1e-5)]
    assert marks["star"]["y"] == [pytest.approx(verdict["chosen_score"], rel=1e-5)]
    levels = [t for t in panel["traces"] if t["mode"] == "lines" and "name" not in t and "fill" not in t]
    dotted = [t for t in levels if t["line"]["dash"] == "dot"]
    assert [set(t["y"]) for t in levels if t["meta"] is None] == [{0.5}]
    assert len(dotted) == 1
    assert len(set(dotted[0]["y"])) == 1
    chosen = next(w for w in lines["fracast"]["text"] if "chosen" in w)
    assert verdict["chosen_layer"] in chosen
    assert "mean pooling, ridge" in chosen
    assert number(verdict["chosen_score"]) in chosen


def test_band_closes_around_each_run_of_intervals(study):
    broken = SimpleNamespace(**vars(study))
    broken.curves = study.curves.copy()
    broken.curves.loc[broken.curves["layer"].eq("block.3"), ["score", "low", "high"]] = math.nan
    panel = next(p for p in panels(broken) if p["task"] == "ucr/GunPoint")
    band = next(t for t in panel["traces"] if t.get("fill") == "toself")
    assert band["x"].count(None) == 1
    cut = band["x"].index(None)
    assert band["x"][:cut] == band["x"][:cut][::-1]
    assert cut == 8  # embedding and three blocks, there and back
    curve = next(t for t in panel["traces"] if t.get("name") == "fracast")
    assert curve["y"][4] is None


def test_mean_over_the_tasks_that_all_encoders_were_scored_on(study):
    partial = SimpleNamespace(**vars(study))
    extra = study.curves[(study.curves["task"] == "ucr/GunPoint") & (study.curves["encoder"] == "fracast")]
    partial.curves = pd.concat([study.curves, extra.assign(task="ucr/Only", score=9.0)])
    drawn = [p for p in panels(partial) if p["task"].startswith("mean")]
    assert [(p["task"], p["family"], p["metric"]) for p in drawn] == [("mean of 3 tasks", "classification", "accuracy")]
    curve = next(t for t in drawn[0]["traces"] if t.get("name") == "zoo/jepa")
    rows = study.curves.query("encoder == 'zoo/jepa' and metric == 'accuracy'")
    assert np.allclose(curve["y"], rows.groupby("layer_index")["score"].mean(), rtol=1e-5)


def test_families_run_from_their_worst_to_their_best_layer(study):
    curves = study.curves.copy()
    dense = curves["family"].eq("dense") & curves["encoder"].eq("fracast")
    curves.loc[dense, "score"] = curves.loc[dense, "layer_index"] * 1.0
    constant = dense & curves["task"].eq("process/phase")
    curves.loc[constant, "score"] = 0.5
    drawn = peaks(curves, look_of(study))
    assert [p["encoder"] for p in drawn] == ["fracast", "zoo/jepa"]
    curve = next(t for t in drawn[0]["traces"] if t.get("name") == "dense")
    assert curve["x"][0] == 0
    assert curve["x"][-1] == 1  # the trunk alone
    assert np.allclose(curve["y"], np.linspace(0, 1, len(curve["y"])), atol=1e-4)
    assert "dense at norm" in drawn[0]["best"]
    assert peaks(curves[curves["family"] == "dense"], look_of(study)) == []


def test_a_ruinous_layer_does_not_flatten_the_rest_and_says_so(study):
    ruined = SimpleNamespace(**vars(study))
    ruined.curves = study.curves.copy()
    at = ruined.curves["layer"].eq("block.3") & ruined.curves["encoder"].eq("fracast")
    ruined.curves.loc[at, ["score", "low", "high"]] = [-50.0, -90.0, -20.0]
    panel = next(p for p in panels(ruined) if p["task"] == "process/phase")
    low, high = panel["layout"]["yaxis"]["range"]
    assert -0.2 < low < 0 < 0.35 < high < 0.5
    assert panel["clipped"] == 1
    curve = next(t for t in panel["traces"] if t.get("name") == "fracast")
    assert low < curve["y"][4] < high
    assert "\N{MINUS SIGN}50.0, below the axis" in curve["text"][4]
    assert curve["marker"]["symbol"][4] == "triangle-down"


def test_axis_keeps_what_is_good_and_drops_only_the_ruinous():
    scores = np.array([0.90, 0.92, 0.95, 0.97])
    assert y_range(scores, scores)[0] < 0.90
    assert y_range(scores, scores)[1] > 0.97
    assert y_range(np.append(scores, 0.6), scores)[0] < 0.6  # bad, but not ruinous
    assert y_range(np.append(scores, -50), scores)[0] > 0.5
    assert y_range(scores, np.append(scores, -9e9))[0] > 0.5
    assert y_range(scores, scores, chance=0.88)[0] < 0.88
    assert y_range(scores, scores, chance=0.1)[0] > 0.5  # chance is told in the caption instead
    assert y_range(np.array([math.nan]), scores) == (0.0, 1.0)
    assert np.diff(y_range(np.full(4, 0.5), np.full(4, 0.5))) > 0


def test_heat_map_is_score_less_final_scaled_by_metric(study):
    maps, scale = heat_maps(study)
    assert [m["encoder"] for m in maps] == ["fracast", "zoo/jepa"]
    rows = study.curves[study.curves["encoder"].isin(["fracast", "zoo/jepa"])]
    wide = rows.pivot_table(index=["encoder", "task"], columns="layer_index", values="score", sort=False)
    lead = wide.sub(wide[10], axis=0)  # norm is the eleventh of twelve layers
    full = lead.loc[[("fracast", "language/captions"), ("zoo/jepa", "language/captions")]].to_numpy()
    typical = np.quantile(-full[full < 0], 0.6)
    top = max(full.max(), typical, 0.05)
    assert dict(scale)["recall_at_1"] == number(top)
    expected = np.clip(full[0] / top, -1, 1)
    np.testing.assert_allclose(maps[0]["traces"][0]["z"][-1], expected, atol=6e-4)  # three decimals are written
    assert maps[0]["final"] == ["norm"]
    assert maps[0]["layout"]["shapes"][0]["x0"] == 9.5


def test_heat_map_marks_what_is_missing(study):
    holed = SimpleNamespace(**vars(study))
    holed.curves = study.curves.copy()
    at = holed.curves["encoder"].eq("fracast") & holed.curves["task"].eq("ucr/ECG200")
    holed.curves.loc[at & holed.curves["layer"].eq("norm"), "score"] = math.nan
    cells, missing, _ = heat_maps(holed)[0][0]["traces"]
    assert cells["z"][1] == [None] * 12
    assert missing["y"] == [1] * 12
    assert "final layer has no score" in cells["hovertext"][1][0]
    assert "no score" in cells["hovertext"][1][10]


def test_names_cannot_break_out_of_page_script_or_figure():
    tasks = ((HOSTILE + "t", "classification", "accuracy"), *TASKS[:1])
    study = fake_study((HOSTILE, "b"), tasks)
    study.name, study.spec[HOSTILE], study.provenance[HOSTILE] = HOSTILE, HOSTILE, {HOSTILE: HOSTILE}
    for column in ("layer", "pooling", "probe", "objective", "family", "metric"):
        study.curves[column] = study.curves[column] + HOSTILE
    for column in ("final_layer", "chosen_layer", "objective", "family", "metric"):
        study.verdicts[column] = study.verdicts[column] + HOSTILE
    study.diagnostics["diagnostic"] = HOSTILE
    page, plain = Page(render(study)), Page(render(fake_study(("a", "b"), TASKS[:2])))
    assert outside(page) == []
    assert not page.attributes("img")
    assert len(page.attributes("script")) == len(plain.attributes("script")) == 3
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert HOSTILE in page.text("title")  # whole, and not evaluated by the template
    assert "<" not in next(data for tag, data in page.texts if tag == "script" and data.startswith('{"on"'))
    drawn = json.dumps(page.data)
    assert "http://evil" in drawn
    tags = set(re.findall(r"<[^>]*>", drawn))
    assert tags <= {"<b>", "</b>", "<br>", "<extra></extra>", "<extra>", "</extra>"}
    for trace in (t for p in page.data["plots"].values() for t in p["traces"]):
        assert "%{x}" not in trace.get("hovertemplate", "")


def test_safe_text_is_what_plotly_shows_letter_by_letter():
    from html import unescape

    assert "<" not in safe(HOSTILE)
    assert unescape(safe(HOSTILE)) == HOSTILE
    assert safe("a\nb\tc") == "a b c"


def test_one_task_one_layer_no_controls_no_diagnostics():
    study = fake_study(("only",), TASKS[:1], blocks=0, controls=False)
    study.diagnostics = pd.DataFrame()
    page = Page(render(study))
    assert page.data["plots"].keys() == {"c0", "h0"}
    assert "Diagnostics by depth" not in page.text("h2")
    assert page.text("h1") == "only shows no hidden features on 1 task (1 exposed, 0 undecided)."


def test_an_empty_study_is_still_a_page():
    study = fake_study(tasks=TASKS[:1])
    for table in ("scores", "curves", "verdicts", "diagnostics"):
        setattr(study, table, getattr(study, table).iloc[:0])
    page = Page(render(study))
    assert page.data["plots"] == {}
    assert "no encoder has a verdict" in page.text("h1").lower()


def test_scores_that_are_all_missing_give_a_page():
    study = fake_study(tasks=TASKS[:2])
    study.curves[["score", "low", "high", "chance"]] = math.nan
    numbers = ["final_score", "chosen_score", "gap", "gap_low", "gap_high", "p_value", "p_adjusted"]
    study.verdicts[numbers] = math.nan
    study.verdicts["verdict"] = "undecided"
    study.diagnostics["value"] = math.nan
    page = Page(render(study))
    assert "nan" not in " ".join(text for tag, text in page.texts if tag in ("td", "small", "h1", "li")).lower().split()


def test_a_large_study_shows_some_at_first_and_all_on_demand():
    tasks = tuple((f"src/Task{i}", *TASKS[i % 7][1:]) for i in range(15))
    study = fake_study([f"encoder-{i}" for i in range(12)], tasks, blocks=1)
    page = Page(render(study))
    assert len(page.data["on"]) == 5 + 1  # five encoders and the baseline
    assert len([a for a in page.attributes("button") if "data-group" in a]) == 13
    assert "5 more tasks" in page.text("summary")
    assert "6 more encoders" in page.text("summary")
    assert len(page.data["plots"]) == 15 + 2 + 12 + 12 + 3
    hidden = study.verdicts[study.verdicts["verdict"] == "hidden"]["encoder"].value_counts()
    if len(hidden):
        names = [text for tag, text in page.texts if tag == "strong"]
        assert names[0] in set(hidden[hidden == hidden.max()].index)


def test_headings_labels_and_language_are_there(page):
    assert page.attributes("html")[0]["lang"] == "en"
    assert len(page.attributes("h1")) == 1
    for attrs in page.attributes("div"):
        if "data-plot" in attrs:
            assert attrs["role"] == "img"
            assert attrs["aria-label"]
    assert all("scope" in a for a in page.attributes("th"))


def test_provenance_is_told_in_full(study, page):
    assert "2 encoders, 4 controls, 8 tasks, 1 seed" in page.text("p")
    cells = page.text("td")
    assert "41.3 s" in cells
    assert "2.15.0" in cells
    assert "9f86d081884c7d65" in cells
    assert "probes / ridge" in page.text("th")
    assert "95% range" in page.text("dd")
    assert "tested at the level 0.05" in page.text("dd")
    assert "a gain of 0.02" in page.text("dd")
    assert "ucr/CricketX" in page.text("pre")


def test_facts_are_flat_tables():
    tree = {"device": "cpu", "ok": True, "none": None, "big": 1234567, "timings": {"a": {"b": 0.5}}, "seeds": [0, 1]}
    assert facts(tree) == [
        ("", [("device", "cpu"), ("ok", "yes"), ("none", "–"), ("big", "1,234,567"), ("seeds", "0, 1")]),
        ("timings", [("a / b", "0.500 s")]),
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.8123, "0.812"), (0.9, "0.900"), (-50, "-50.0"), (1234.4, "1,234"), (1e-5, "1.00e-05"), (0, "0")],
)
def test_numbers_have_three_digits(value, shown):
    assert number(value).replace("\N{MINUS SIGN}", "-") == shown


def test_numbers_that_are_not_there():
    assert number(-1.7e-10) == number(0.0) == "0"  # rounding
    assert number(math.nan) == number(None) == "\N{EN DASH}"
    assert number(math.inf) == "∞"
    assert number(0.1, signed=True) == "+0.100"
    assert p_value(0.0004) == "<0.001"
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert len(shorten("x" * 99, 24)) == 24


def test_colours_are_readable_on_white_and_on_the_dark_page():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    dark = luminance("#14161a")
    for colour in PALETTE:
        level = luminance(colour)
        assert 1.05 / (level + 0.05) >= 3  # WCAG 2.2, 1.4.11: graphics
        assert (level + 0.05) / (dark + 0.05) >= 3


def test_styles_repeat_colours_only_with_another_marker():
    look = styles([f"e{i}" for i in range(40)], {})
    assert len({(s.colour, s.symbol) for s in look.values()}) == 40
    twins = styles(["a@untrained", "b", "a"], {"a@untrained": "untrained"})
    assert twins["a@untrained"].group == twins["a"].group
    assert styles(["x@untrained"], {"x@untrained": "untrained"})["x@untrained"].dash == "dash"


def test_plot_is_a_valid_figure_with_a_panel_for_each_task(study):
    figure = plot(study)
    assert len(figure.layout.annotations) == len(TASKS) + 1
    named = [t.name for t in figure.data if t.showlegend]
    assert sorted(named) == sorted(["fracast", "zoo/jepa", "fracast@untrained", "zoo/jepa@untrained"])
    import plotly.graph_objects as go

    for drawn in heat_maps(study)[0]:
        go.Figure(drawn["traces"], drawn["layout"])  # plotly refuses what it does not know


def test_report_is_written_whole_or_not_at_all(study, tmp_path, monkeypatch):
    target = tmp_path / "runs" / "report.html"
    assert write_report(study, target) == target
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    before = target.read_bytes()
    with pytest.raises(StorageError, match="No space left"):
        write_report(fake_study(tasks=TASKS[:1]), target)
    assert target.read_bytes() == before
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_a_folder_in_the_way_is_a_storage_error(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*report\.html"):
        write_report(study, tmp_path / "file" / "report.html")
