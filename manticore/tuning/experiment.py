"""A comparison of methods as resumable stages: learning rates, seeds, test, goals.

Every training is a trial of its own, so that trials run side by side and a killed run goes on.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manticore.config import to_plain
from manticore.config.adapter_recipe import HIGHER_IS_BETTER, AdaptRecipe, MethodConfig
from manticore.runs import RunFolder
from manticore.training import Trial, run_trials
from manticore.training.rates import check_converged, choose_rates, finite_or_worst
from manticore.tuning.evaluate import measure
from manticore.tuning.trial import prepared, train_method, trained_model, trial_recipe


@dataclasses.dataclass
class TuningExperiment:
    """One recipe at work in one run folder."""

    recipe: AdaptRecipe
    folder: RunFolder
    base: Path
    seeds: Sequence[int] = (0,)
    processes: int = 1
    progress: bool = True

    def choose_rates(self) -> dict[str, dict[str, Any]]:
        """Train every method at every learning rate with the first seed; keep the best rate."""
        by_id, by = {method.id: method for method in self.recipe.methods}, self.recipe.rates.by
        return choose_rates(
            {method.id: self._rates(method) for method in self.recipe.methods},
            lambda wanted: self.train_all([(by_id[m], lr, self.seeds[0]) for m, lr in wanted]),
            lambda result: badness(result["validation"], by),
            self.recipe.rates.extensions,
            lambda result: float(result["validation"][by]),
        )

    def rows(self) -> list[dict[str, Any]]:
        """All trainings, tested: one row for each method, over the seeds."""
        chosen = self.choose_rates()
        others = [
            (m, chosen[m.id]["lr"], seed) for m in self.recipe.methods for seed in self.seeds[1:]
        ]
        trained = [chosen[m.id] for m in self.recipe.methods] + self.train_all(others)
        check_converged(trained)
        rows = []
        for method in self.recipe.methods:
            results = [result for result in trained if result["id"] == method.id]
            tests = [self._tested(result) for result in results]
            rows.append(table_row(method, results, tests, chosen[method.id]))
        return rows

    def untouched(self) -> dict[str, float]:
        """Test measures of the model before any training; a classifier has none that mean much."""
        from manticore.tuning.models import tuned_model

        if self.folder.is_done("untouched"):
            return self.folder.record("untouched")
        tokenizer, data = prepared(self.recipe, self.base)
        full = MethodConfig(id="untouched", label="untouched", method="full")
        model = tuned_model(self.recipe, full, self.base, data, self.seeds[0])
        found = measure(model, data, "test", self.recipe.evaluate, tokenizer)
        self.folder.finish("untouched", found)
        return found

    def train_all(
        self, wanted: Sequence[tuple[MethodConfig, float, int]], steps: int | None = None
    ) -> list[dict[str, Any]]:
        """Train what has no record yet: methods, learning rates, seeds.

        Args:
            steps: of every training; None: the recipe's.
        """
        trials = [
            Trial(settings=self.trial(m, lr, seed, steps), name=f"{m.id} at {lr:g}, seed {seed}")
            for m, lr, seed in wanted
        ]
        if not trials:
            return []
        records = run_trials(
            trials,
            train_method,
            processes=self.processes,
            folder=self.folder.path / "trials",
            progress=self.progress,
        )
        return [record["result"] for record in records]

    def trial(
        self, method: MethodConfig, lr: float, seed: int, steps: int | None = None
    ) -> dict[str, Any]:
        """The settings that decide one training."""
        return {
            "recipe": to_plain(trial_recipe(self.recipe)),
            "method": to_plain(method),
            "lr": lr,
            "seed": seed,
            "steps": steps,
            "base": str(self.base.resolve()),
            "run": str(self.folder.path.resolve()),
        }

    def _tested(self, result: Mapping[str, Any]) -> dict[str, float]:
        """Test measures of a finished training, kept as a stage."""
        stage = f"test/{result['id']}-lr{result['lr']:g}-seed{result['seed']}"
        if self.folder.is_done(stage):
            return self.folder.record(stage)
        tokenizer, data = prepared(self.recipe, self.base)
        model = trained_model(self.recipe, dict(result), self.base, self.folder.path)
        found = measure(model, data, "test", self.recipe.evaluate, tokenizer)
        self.folder.finish(stage, found)
        return found

    def _rates(self, method: MethodConfig) -> list[float]:
        if method.lr is not None:
            return [method.lr]
        return list(self.recipe.rates.rates) or [self.recipe.train.lr]


def badness(measures: Mapping[str, Any], metric: str) -> float:
    """The number to minimise; what is not a number is worse than any other."""
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    return finite_or_worst(sign * float(measures[metric]))


def table_row(
    method: MethodConfig,
    results: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of every measure, and the cost."""
    measures = {key: [float(test[key]) for test in tests] for key in tests[0]}
    costs = {}
    for key in ("memory_bytes", "state_bytes", "saved_bytes", "step_seconds", "seconds"):
        values = [float(result[key]) for result in results if key in result]
        costs[key] = statistics.median(values) if values else None
    return {
        "id": method.id,
        "label": method.label or method.id,
        "method": method.method,
        "settings": dict(method.settings),
        "targets": list(method.targets),
        "lr": results[0]["lr"],
        "tried": dict(chosen["tried"]),
        "diverged_at": dict(chosen["diverged_at"]),
        "seeds": [result["seed"] for result in results],
        "parameters": results[0]["parameters"],
        "tokens": results[0]["tokens"],
        "mean": {key: statistics.fmean(values) for key, values in measures.items()},
        "sd": {
            key: statistics.stdev(values) if len(values) > 1 else None
            for key, values in measures.items()
        },
        "by_seed": measures,
        **costs,
    }


def judge(
    rows: Sequence[Mapping[str, Any]], goals: Sequence[Any], metric: str
) -> list[dict[str, Any]]:
    """Whether each goal holds: a row reaches another's mean, less one standard deviation of it.

    With one seed there is no deviation, and only the mean itself counts.
    """
    by_id = {row["id"]: row for row in rows}
    verdicts = []
    for goal in goals:
        row, other = by_id[goal.row], by_id[goal.against]
        sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
        slack = other["sd"][metric] or 0.0
        gap = sign * (row["mean"][metric] - other["mean"][metric])
        share = row["parameters"] / other["parameters"]
        verdicts.append(
            {
                "row": goal.row,
                "against": goal.against,
                "metric": metric,
                "gap": gap,
                "slack": slack,
                "parameter_share": share,
                "met": gap <= slack,
                "sentence": _sentence(row, other, metric, gap, slack, share),
            }
        )
    return verdicts


def _sentence(
    row: Mapping[str, Any],
    other: Mapping[str, Any],
    metric: str,
    gap: float,
    slack: float,
    share: float,
) -> str:
    verb = "reaches" if gap <= slack else "does not reach"
    within = " within one standard deviation" if len(other["seeds"]) > 1 else ""
    spread = f" ± {slack:.4f}" if within else ", one seed"
    return (
        f"{row['label']} with {100 * share:.0f} % of the parameters {verb} {other['label']}"
        f"{within}: {metric} {row['mean'][metric]:.4f} against {other['mean'][metric]:.4f}{spread}."
    )
