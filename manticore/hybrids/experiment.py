"""The main job as resumable stages: projectors, search, fine-tuning of all rows, test.

A stage that is finished is read back from the run folder. Trainings are trials of their own
(`train_row`), so they run side by side and each resumes by itself.
"""

from __future__ import annotations

import dataclasses
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from manticore.config import to_plain
from manticore.config.recipes import CompareConfig, HybridRecipe
from manticore.hybrids.assembly import load_tokenizers
from manticore.hybrids.bilevel_step import SearchSettings
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.pruning import sparsify
from manticore.hybrids.rows import Row, learning_rates, plan_rows, training_flops
from manticore.hybrids.search import search
from manticore.hybrids.trials import assembled, load_start, prepared, train_row
from manticore.runs import RunFolder, atomic_folder
from manticore.seeds import derive_seed
from manticore.text.prepared import PreparedData
from manticore.training import Trial, run_trials
from manticore.training.rates import choose_rates, finite_or_worst

EXTENSIONS = 3  # how often a grid of learning rates may grow


@dataclasses.dataclass
class Experiment:
    """One hybrid recipe at work in one run folder."""

    recipe: HybridRecipe
    folder: RunFolder
    base: Path
    processes: int = 1
    progress: bool = True

    @cached_property
    def tokenizers(self) -> tuple[Any, list[Any] | None]:
        """The hybrid's tokenizer, and the components' own if they differ."""
        return load_tokenizers(self.recipe, self.base)

    @cached_property
    def data(self) -> PreparedData:
        """Packed text of all splits."""
        return prepared(self.recipe, self.base)

    @property
    def start(self) -> Path:
        """Folder of the hybrid before search and fine-tuning."""
        return self.folder.path / "start"

    def projectors(self) -> dict[str, Any]:
        """Phase A: put the hybrid together and fit its projectors."""
        if self.folder.is_done("projectors"):
            return self.folder.record("projectors")
        began = time.perf_counter()
        hybrid, record = assembled(
            self.recipe,
            self.base,
            self.folder.path,
            log=self._log_projectors,
            on_start=lambda done: self.folder.truncate_metrics("projectors", done),
            progress=self.progress,
        )
        tokenizer, _ = self.tokenizers
        with atomic_folder(self.start) as target:
            hybrid.save_pretrained(target)
            tokenizer.save_pretrained(target)
        record["seconds"] = time.perf_counter() - began
        self.folder.finish("projectors", record)
        return record

    def _log_projectors(self, line: dict[str, Any]) -> None:
        self.folder.log({**line, "stage": "projectors", "row": "hybrid"})

    def search(self) -> dict[str, Any]:
        """Phase B: find the mixture on the architecture split; the weights are thrown away."""
        if self.folder.is_done("search"):
            return self.folder.record("search")
        hybrid = load_start(self.start)
        if self.recipe.search.method == "none":
            rows = hybrid.backbone.rows.as_lists()
            record = {**rows, "ledger": {}, "flops": 0.0, "trajectory": []}
        else:
            record = self._run_search(hybrid)
        record["finished"] = finish_mixture(record, self.recipe.search)
        self.folder.finish("search", record)
        return record

    def _run_search(self, hybrid: ManticoreForCausalLM) -> dict[str, Any]:
        recipe, seed = self.recipe, derive_seed(self.recipe.seed, "search")
        batch_size = recipe.finetune.batch_size
        result = search(
            hybrid,
            self.data.batches("train", batch_size, derive_seed(seed, "train")).batch_at,
            self.data.batches("architecture", batch_size, derive_seed(seed, "valid")).batch_at,
            recipe.search.method,
            search_settings(recipe),
            folder=self.folder.path / "search",
            log=lambda line: self.folder.log({**line, "stage": "search", "row": "hybrid"}),
            on_start=lambda done: self.folder.truncate_metrics("search", done),
            progress=self.progress,
        )
        tokens = recipe.search.steps * batch_size * recipe.data.seq_len
        # A mixture step runs forward and the activations' half of the backward pass: 4/6 of a
        # training step on as many tokens.
        per_token = training_flops(hybrid.config, recipe.data.seq_len)
        share = (1.0 if recipe.search.train_weights else 0.0) + 2 / 3
        return {**result.to_dict(), "flops": per_token * tokens * share}

    def rows(self) -> list[Row]:
        """The trainings that the recipe asks for, once the search is done."""
        spent = self.search()["flops"] + self.projectors()["flops"]
        config = ManticoreForCausalLM.config_class.from_pretrained(self.start)
        return plan_rows(self.recipe, self.search()["finished"], config, spent)

    def finetune(self) -> dict[str, dict[str, Any]]:
        """Phase C: train every row; returns the trial of each at its best rate, by row id."""
        if self.folder.is_done("finetune"):
            return self.folder.record("finetune")
        by_id = {row.id: row for row in self.rows()}
        chosen = choose_rates(
            {row.id: learning_rates(row, self.recipe) for row in by_id.values()},
            lambda wanted: self._train([(by_id[row_id], lr) for row_id, lr in wanted]),
            lambda result: finite_or_worst(result["loss"]["mean"]),
            EXTENSIONS,
            lambda result: result["loss"]["mean"],
        )
        self._keep_logs(chosen)
        self.folder.finish("finetune", chosen)
        return chosen

    def _train(self, wanted: list[tuple[Row, float]]) -> list[dict[str, Any]]:
        trials = [
            Trial(settings=self._trial(row, lr), name=f"{row.id} at {lr:g}") for row, lr in wanted
        ]
        records = run_trials(
            trials,
            train_row,
            processes=self.processes,
            folder=self.folder.path / "trials",
            progress=self.progress,
        )
        return [record["result"] for record in records]

    def _trial(self, row: Row, lr: float) -> dict[str, Any]:
        return {
            # Which other rows there are does not decide this one.
            "recipe": to_plain(dataclasses.replace(self.recipe, compare=CompareConfig())),
            "row": {**row.to_dict(), "lr": lr},
            "base": str(self.base.resolve()),
            "run": str(self.folder.path.resolve()),
        }

    def _keep_logs(self, chosen: dict[str, dict[str, Any]]) -> None:
        self.folder.truncate_metrics("finetune", -1)
        for row_id, result in chosen.items():
            for line in RunFolder(self.folder.path / result["folder"]).metrics():
                self.folder.log({**line, "stage": "finetune", "row": row_id})


def finish_mixture(found: dict[str, Any], settings: Any) -> dict[str, Any]:
    """The mixture that fine-tuning uses: as found, without small weights, or one-hot."""
    if settings.finish == "soft":
        return {key: found[key] for key in ("mixture", "embed", "head")}
    finished = {}
    for key in ("mixture", "embed", "head"):
        rows = None if found[key] is None else torch.tensor(found[key])
        one_hot = settings.finish == "one-hot"
        finished[key] = (
            None if rows is None else sparsify(rows, settings.threshold, one_hot).tolist()
        )
    return finished


def search_settings(recipe: HybridRecipe) -> SearchSettings:
    """The search's settings from the recipe."""
    section = recipe.search
    names = "steps lr mixture_lr mixture_clip warmup_steps train_weights"
    return SearchSettings(
        **{name: getattr(section, name) for name in names.split()},
        weight_decay=recipe.finetune.weight_decay,
        clip=recipe.finetune.clip,
        checkpoint_every=recipe.finetune.checkpoint_every,
        seed=derive_seed(recipe.seed, "search"),
    )
