"""What a step costs: counted bytes against hand, and the model left as it was."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from manticore.tuning.cost import step_cost
from manticore.tuning.data import TuningData
from manticore.tuning.models import tuned_model
from tests.tuning.tiny_recipes import plain_recipe, recipe_of, save_model


class Square(nn.Module):
    """Logits that are a product of the embedded tokens, so that what is saved is known."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        hidden = self.table(input_ids)
        return type("Out", (), {"logits": hidden * hidden})


def test_moments_and_saved_tensors_are_counted_once() -> None:
    model = Square()
    ids = torch.tensor([[1, 2, 0, 1]])
    found = step_cost(model, {"input_ids": ids, "labels": ids})
    assert found["state_bytes"] == 12 * 15
    # The embedded tokens, 4 x 3 numbers, are saved once for both factors; tokens and labels are
    # integers of 8 bytes; cross entropy keeps the log-probabilities of 3 places and their weights.
    least = 4 * 3 * 4 + 4 * 8 + 3 * 3 * 4
    assert least <= found["saved_bytes"] <= least + 4 * 8 + 3 * 8 + 64
    assert found["memory_bytes"] == found["saved_bytes"] + found["state_bytes"]
    assert found["step_seconds"] > 0


def test_measuring_changes_neither_weights_nor_gradients_nor_random_numbers(tmp_path: Path) -> None:
    save_model(tmp_path)
    recipe = recipe_of(plain_recipe(tmp_path, tmp_path))
    model = tuned_model(recipe, recipe.methods[2], tmp_path, TuningData(n_train=1), seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.randint(2048, (4, 9), generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    whole = step_cost(model, {"input_ids": ids, "labels": ids})
    half = step_cost(model, {"input_ids": ids, "labels": ids}, pieces=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert 0.4 < half["saved_bytes"] / whole["saved_bytes"] < 0.6
    assert half["state_bytes"] == whole["state_bytes"]
