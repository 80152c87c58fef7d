"""A ladder of students as resumable stages: learning rates, seeds, test, goals.

Every training is a trial of its own, so that trials run side by side and a killed run goes on.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from manticore.config import to_plain
from manticore.config.recipes import SampleConfig
from manticore.config.transfer_recipe import StudentConfig, TransferRecipe
from manticore.conversion.context_costs import context_costs
from manticore.conversion.goals import judge
from manticore.conversion.student_trials import train_student, trained_student
from manticore.conversion.teacher import Prepared, prepared, teacher_tokenizer
from manticore.evaluation.language import losses_by_kind
from manticore.evaluation.recall import recall_probes
from manticore.evaluation.samples import sample
from manticore.runs import RunFolder
from manticore.seeds import derive_seed
from manticore.training import Trial, run_trials
from manticore.training.rates import check_converged, choose_rates, finite_or_worst


@dataclasses.dataclass
class TransferExperiment:
    """One recipe at work in one run folder."""

    recipe: TransferRecipe
    folder: RunFolder
    base: Path
    seeds: Sequence[int] = (0,)
    processes: int = 1
    progress: bool = True

    def result(self) -> dict[str, Any]:
        """Everything that the report shows; trains what is missing."""
        rows = self.rows()
        teacher = self.teacher()
        shared = self._shared()
        return {
            "name": self.recipe.name,
            "teacher": teacher,
            "rows": rows,
            "goals": judge(rows, self.recipe.goals, teacher["validation"]),
            "costs": context_costs(shared.source, self.recipe.rows),
            "data": shared.data.record,
        }

    def rows(self) -> list[dict[str, Any]]:
        """All trainings, tested: one row for each student, over the seeds."""
        chosen = choose_rates(
            {row.id: self._rates(row) for row in self.recipe.rows},
            lambda wanted: self._train([(row, lr, self.seeds[0]) for row, lr in wanted]),
            lambda result: finite_or_worst(result["validation"]),
            extensions=2,
        )
        others = [
            (row.id, chosen[row.id]["lr"], seed)
            for row in self.recipe.rows
            for seed in self.seeds[1:]
        ]
        trained = [chosen[row.id] for row in self.recipe.rows] + self._train(others)
        check_converged(trained)
        rows = []
        for row in self.recipe.rows:
            own = [result for result in trained if result["id"] == row.id]
            tests = [self._tested(result) for result in own]
            rows.append(table_row(row, own, tests, chosen[row.id]))
        return rows

    def teacher(self) -> dict[str, Any]:
        """The same measures of the teacher."""
        if self.folder.is_done("teacher"):
            return self.folder.record("teacher")
        teacher = self._shared().teacher
        found = self._measures(teacher)
        validation = self._shared().data.packs["validation"]
        found["validation"] = losses_by_kind(teacher, validation)["loss"]["mean"]
        found["parameters"] = sum(p.numel() for p in teacher.parameters())
        self.folder.finish("teacher", found)
        return found

    def samples(self) -> list[dict[str, Any]]:
        """Continuations of the recipe's prompts by the teacher and every row's first seed."""
        settings = self.recipe.samples
        if self.folder.is_done("samples"):
            return self.folder.record("samples")["samples"]
        tokenizer = teacher_tokenizer(self.recipe, self.base)
        seed = derive_seed(self.recipe.seed, "samples") % 2**31
        by_prompt: list[list[dict[str, Any]]] = [[] for _ in settings.prompts]
        for name, writer in self._writers() if settings.prompts else ():
            for prompt, samples in zip(settings.prompts, by_prompt, strict=True):
                written = sample(writer, tokenizer, prompt, settings, seed)
                samples.append({"row": name, **written})
        samples = [one for samples in by_prompt for one in samples]
        self.folder.finish("samples", {"samples": samples})
        return samples

    def _writers(self) -> Iterator[tuple[str, PreTrainedModel]]:
        """The teacher and every row's model of the first seed, one in memory at a time."""
        yield "teacher", self._shared().source
        for row in self.rows():
            one = {**row, "seed": row["seeds"][0]}
            yield row["id"], trained_student(self.recipe, one, self.base, self.folder.path)

    def _train(self, wanted: Sequence[tuple[str, float, int]]) -> list[dict[str, Any]]:
        by_id = {row.id: row for row in self.recipe.rows}
        trials = [
            Trial(settings=self.trial(by_id[row], lr, seed), name=f"{row} at {lr:g}, seed {seed}")
            for row, lr, seed in wanted
        ]
        if not trials:
            return []
        records = run_trials(
            trials,
            train_student,
            processes=self.processes,
            folder=self.folder.path / "trials",
            progress=self.progress,
        )
        return [record["result"] for record in records]

    def trial(self, row: StudentConfig, lr: float, seed: int) -> dict[str, Any]:
        """The settings that decide one training."""
        return {
            "recipe": to_plain(trial_recipe(self.recipe)),
            "row": to_plain(dataclasses.replace(row, label="", lr=None)),
            "lr": lr,
            "seed": seed,
            "base": str(self.base.resolve()),
            "run": str(self.folder.path.resolve()),
        }

    def _tested(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Test measures of a finished training, kept as a stage."""
        stage = f"test/{result['id']}-lr{result['lr']:g}-seed{result['seed']}"
        if self.folder.is_done(stage):
            return self.folder.record(stage)
        model = trained_student(self.recipe, result, self.base, self.folder.path)
        found = self._measures(model)
        self.folder.finish(stage, found)
        return found

    def _measures(self, model: Any) -> dict[str, Any]:
        test = losses_by_kind(model, self._shared().data.packs["test"])
        return {
            "loss": test["loss"]["mean"],
            "bits_per_byte": test["bits_per_byte"]["mean"],
            **recall_probes(model, self._shared().recall_tokens),
        }

    def _shared(self) -> Prepared:
        return prepared(trial_recipe(self.recipe), self.base)

    def _rates(self, row: StudentConfig) -> list[float]:
        if row.lr is not None:
            return [row.lr]
        return list(self.recipe.rates) or [self.recipe.train.lr]


def trial_recipe(recipe: TransferRecipe) -> TransferRecipe:
    """The part of a recipe that decides a training: which other rows there are does not."""
    one = StudentConfig(id="one", label="one", mixer="attention")
    return dataclasses.replace(
        recipe, rows=(one,), goals=(), rates=(), samples=SampleConfig(), seed=0
    )


def table_row(
    row: StudentConfig,
    results: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of every measure, curves and cost."""
    measures = {key: [float(test[key]) for test in tests] for key in tests[0]}
    measures["start"] = [float(result["start"]) for result in results]
    measures["validation"] = [float(result["validation"]) for result in results]
    first = results[0]
    return {
        "id": row.id,
        "label": row.label,
        "mixer": row.mixer,
        "keep": list(row.keep),
        "lr": first["lr"],
        "tried": dict(chosen["tried"]),
        "diverged_at": dict(chosen["diverged_at"]),
        "seeds": [result["seed"] for result in results],
        "mean": {key: statistics.fmean(values) for key, values in measures.items()},
        "sd": {
            key: statistics.stdev(values) if len(values) > 1 else None
            for key, values in measures.items()
        },
        "by_seed": measures,
        "curves": [result["curve"] for result in results],
        "unfrozen_at": [result["unfrozen_at"] for result in results],
        "unfrozen_why": [result["unfrozen_why"] for result in results],
        "folder": first["folder"],
        **{
            key: first[key]
            for key in ("parameters", "share_inherited", "tokens", "flops", "teacher_flops")
        },
    }
