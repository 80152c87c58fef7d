"""From a recipe to a hybrid, and what each phase changes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manticore.config import load_recipe, to_plain
from manticore.config.recipes import HybridRecipe
from manticore.hybrids import assembly
from manticore.hybrids.assembly import dirichlet_rows, train_projectors
from manticore.hybrids.experiment import Experiment
from manticore.hybrids.trials import load_start, row_model, train_row, trained_row
from manticore.runs import RunFolder
from manticore.seeds import torch_generator
from tests.faults.jobs import write_job


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    """A tiny job after projectors and search."""
    folder = tmp_path_factory.mktemp("job")
    recipe = load_recipe(HybridRecipe, write_job(folder))
    opened = RunFolder(folder / "run").open(to_plain(recipe))
    made = Experiment(recipe, opened, folder, progress=False)
    made.projectors()
    made.search()
    return made


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def names_of(model: Any, parameters: list[Tensor]) -> set[str]:
    wanted = {id(p) for p in parameters}
    return {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in wanted}


def projector_training(experiment: Experiment, model: Any, folder: Path | None = None) -> int:
    settings, data = experiment.recipe.projectors, experiment.data
    return train_projectors(
        model, settings, data, batch_size=4, seed=5, folder=folder, checkpoint_every=2,
        progress=False,
    )  # fmt: skip


def test_dirichlet_rows_are_flat_on_the_simplex():
    drawn = dirichlet_rows((20_000, 3), torch_generator(0, "test"))
    assert (drawn.sum(dim=-1) - 1).abs().max() <= 1e-6
    assert drawn.min() > 0
    # The flat Dirichlet of three: mean 1/3, variance 1/18; 20,000 draws err by about 0.002.
    torch.testing.assert_close(drawn.mean(dim=0), torch.full((3,), 1 / 3), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.var(dim=0), torch.full((3,), 1 / 18), atol=0.005, rtol=0)


def test_projector_training_changes_projectors_only(experiment: Experiment):
    model = load_start(experiment.start)
    before = state(model)
    tokens = projector_training(experiment, model)
    expected = names_of(model, model.projector_parameters())
    assert changed(before, state(model)) == {name for name in expected if "loyalty" not in name}
    assert tokens == experiment.recipe.projectors.steps * 4 * experiment.recipe.data.seq_len


def test_projector_training_sees_drawn_mixtures_and_puts_the_own_one_back(
    experiment: Experiment, monkeypatch
):
    model, seen = load_start(experiment.start), []
    real = assembly.causal_loss

    def spying(hybrid: Any, batch: dict[str, Any]) -> Tensor:
        seen.append(hybrid.mixture.detach().clone())
        return real(hybrid, batch)

    monkeypatch.setattr(assembly, "causal_loss", spying)
    own = model.mixture.clone()
    projector_training(experiment, model)
    assert torch.equal(model.mixture, own)
    assert len({tuple(rows.flatten().tolist()) for rows in seen}) == len(seen) == 6
    assert all(not torch.allclose(rows, own) for rows in seen)


@pytest.mark.parametrize("stop", [3, 5])
def test_a_killed_projector_training_goes_on(
    experiment: Experiment, tmp_path: Path, monkeypatch, stop: int
):
    """The mixture is drawn anew in every step, and yet a checkpoint must fit the next start."""
    whole, resumed = load_start(experiment.start), load_start(experiment.start)
    projector_training(experiment, whole)
    real = assembly.torch_generator

    def dying(seed: int, name: str, step: int) -> torch.Generator:
        if step == stop:
            raise InterruptedError
        return real(seed, name, step)

    monkeypatch.setattr(assembly, "torch_generator", dying)
    with pytest.raises(InterruptedError):
        projector_training(experiment, load_start(experiment.start), tmp_path)
    monkeypatch.setattr(assembly, "torch_generator", real)
    projector_training(experiment, resumed, tmp_path)
    assert not changed(state(whole), state(resumed))


def test_fine_tuning_starts_from_the_weights_before_the_search(experiment: Experiment):
    """Rewind: bitwise those of phase A, at the mixture that the search found."""
    settings, path = experiment.recipe, experiment.folder.path
    hybrid_row = experiment.rows()[0].to_dict()
    found = experiment.search()["finished"]
    model = row_model(settings, hybrid_row, experiment.base, path)
    mixture = names_of(model, model.mixture_parameters())
    assert changed(state(load_start(experiment.start)), state(model)) == mixture
    torch.testing.assert_close(model.mixture.tolist(), found["mixture"], atol=2e-6, rtol=0)
    assert found["mixture"] != [[0.5, 0.5], [0.5, 0.5]]
    assert not any(p.requires_grad for p in model.mixture_parameters())


def test_fine_tuning_changes_everything_but_the_mixture(experiment: Experiment):
    row = experiment.rows()[0]
    settings = experiment._trial(row, row.lr)
    before = row_model(experiment.recipe, settings["row"], experiment.base, experiment.folder.path)
    result = train_row(settings)
    after = trained_row(experiment.recipe, result, experiment.base, experiment.folder.path)
    fixed = names_of(before, before.mixture_parameters())
    everything = {name for name in state(before) if "loyalty" not in name}
    assert changed(state(before), state(after)) == everything - fixed
    assert result["tokens"] == row.steps * 4 * experiment.recipe.data.seq_len


def test_a_component_alone_starts_as_it_was_pretrained(experiment: Experiment):
    row = next(row for row in experiment.rows() if row.id == "component-1").to_dict()
    model = row_model(experiment.recipe, row, experiment.base, experiment.folder.path)
    stock = assembly.load_components(experiment.recipe, experiment.base)[1]
    assert not changed(state(stock), state(model))


def test_a_variant_is_built_from_scratch_in_a_folder_of_its_rate(experiment: Experiment):
    """Trials of one variant at several rates may run side by side."""
    row = experiment.rows()[0].to_dict()
    overrides = ("hybrid.mixing=shared", "projectors.start=random", "projectors.steps=2")
    folders = []
    for lr in (0.1, 0.2):
        changed_row = {**row, "id": "wide", "lr": lr, "overrides": overrides, "mixture": None}
        path = experiment.folder.path
        model = row_model(experiment.recipe, changed_row, experiment.base, path)
        assert model.config.mixing == "shared"
        folders.append(path / f"rows/wide-lr{lr:g}" / "projector-training")
    assert all(folder.is_dir() for folder in folders)
