"""Optuna's own drawings of a study, as plain plotly figures. Names are drawn letter by letter, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tsprobe.report.figures import safe
from tsprobe.sweep.search import SearchSpec

COSTS = {
    "parameters": "parameters up to the last layer that is read", "latency": "milliseconds a series up to that layer",
    "price": "what the family that loses most loses on inner folds",
}  # fmt: skip

Drawing = dict[str, Any]  # title, words, and a figure with `data` and `layout`


def drawings(study: Any, spec: SearchSpec) -> list[Drawing]:
    """History, importances, slices, and with a cost the front; without those that too few trials give no ground for."""
    from optuna import visualization as draw
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    shown = _with_safe_names(study)
    first: dict[str, Any] = {"target": lambda trial: trial.values[0], "target_name": "score"} if spec.cost else {}
    several = len({trial.values[0] for trial in complete}) > 1
    made = [
        _drawing("History", "The score of each trial on inner folds, and the best so far.",
                 lambda: draw.plot_optimization_history(shown, **(first or {"target_name": "score"}))),
    ]  # fmt: skip
    if spec.cost:
        made.append(
            _drawing(
                "Score against cost", f"On the front, no trial is better in both. Cost: {COSTS[spec.cost]}.",
                lambda: draw.plot_pareto_front(shown, target_names=["score", str(spec.cost)]),
            )
        )  # fmt: skip
    if several:
        made.append(
            _drawing(
                "What mattered", "Importance of each parameter for the score (PED-ANOVA), where it was asked for.",
                lambda: draw.plot_param_importances(shown, **(first or {"target_name": "score"})),
            )
        )  # fmt: skip
    made.append(
        _drawing("Each parameter alone", "A dot for each trial; darker came later.",
                 lambda: draw.plot_slice(shown, **(first or {"target_name": "score"})))
    )  # fmt: skip
    return made


def _drawing(title: str, words: str, draw: Callable[[], Any]) -> Drawing:
    figure = json.loads(draw().update_layout(title=None, margin={"t": 20}).to_json())
    figure["layout"].pop("template", None)
    return {"title": title, "words": words, "data": figure["data"], "layout": figure["layout"]}


def _with_safe_names(study: Any) -> Any:
    """A copy in memory whose parameters and choices hold no markup, which plotly would draw as such."""
    import optuna

    copy = optuna.create_study(directions=study.directions)
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        copy.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                params={safe(name): _shown(value) for name, value in trial.params.items()},
                distributions={safe(name): _distribution(it) for name, it in trial.distributions.items()},
                intermediate_values=trial.intermediate_values,
            )
        )
    return copy


def _shown(value: Any) -> Any:
    return safe(value) if isinstance(value, str) else value


def _distribution(distribution: Any) -> Any:
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return CategoricalDistribution([_shown(choice) for choice in distribution.choices])
    return distribution
