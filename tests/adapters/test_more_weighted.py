"""Weighted sums of adapters: exact by default, the best approximation where a rank is given."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from manticore import MoReConfig
from manticore.adapters.more import MoReLayer

SETTINGS = {"nblocks": 4, "init_weights": False}


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 20), Conv1D(10, 20)).eval()


def two(**second) -> peft.PeftModel:
    """A model with adapter `a` on all modules and `b`, of another rank, on the last two."""
    model = peft.get_peft_model(
        base(), MoReConfig(block_rank=3, target_modules=["0", "1", "2"], **SETTINGS), "a"
    )
    given = {"block_rank": 5, "target_modules": ["1", "2"], **SETTINGS, **second}
    model.add_adapter("b", MoReConfig(**given))
    return model.eval()


def layers(model: nn.Module) -> dict[str, MoReLayer]:
    return {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, MoReLayer)}


def test_a_sum_holds_the_weighted_changes_and_leaves_its_parts_alone():
    model = two(rank_pattern={"2": 2})
    before = {n: v.clone() for n, v in model.state_dict().items() if ".more_" in n}
    lost = model.add_weighted_adapter(["a", "b"], [0.5, -2.0], "sum")
    for name, layer in layers(model).items():
        wanted = 0.5 * layer.get_delta_weight("a")
        if "b" in layer.more_A:
            wanted = wanted - 2.0 * layer.get_delta_weight("b")
        # float32 singular value decompositions of tiles of at most 5 x 5
        torch.testing.assert_close(layer.get_delta_weight("sum"), wanted, atol=1e-5, rtol=1e-5)
        assert lost[name] < 1e-9
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items())
    assert model.active_adapters == ["a"]
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.endswith("sum"))


def test_a_sum_is_exact_where_a_layer_has_fewer_blocks_than_asked_for():
    config = MoReConfig(nblocks=8, block_rank=8, target_modules=["l"], init_weights=False)
    model = peft.get_peft_model(nn.ModuleDict({"l": nn.Linear(20, 24)}), config)
    model.add_adapter("b", config)
    (layer,) = layers(model).values()
    assert layer.shapes["b"].blocks == 7  # 8 blocks of 3 inputs each would be 24 and not 20
    lost = model.add_weighted_adapter(["default", "b"], [1.0, -0.5], "sum")
    assert lost["l"] < 1e-9


def test_a_sum_is_saved_and_loaded_like_any_adapter(tmp_path):
    model = two()
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")
    model.set_adapter("sum")
    ids = torch.arange(6)[None]
    wanted = model(ids)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "sum")
    torch.testing.assert_close(loaded.eval()(ids), wanted, atol=0, rtol=0)


def test_a_smaller_rank_gives_the_best_approximation_and_says_what_is_lost():
    model = two()
    lost = [
        model.add_weighted_adapter(["a", "b"], [1.0, 1.0], f"rank {rank}", block_rank=rank)["1"]
        for rank in (4, 8, 12)
    ]
    assert lost[0] > lost[1] > lost[2]
    assert lost[2] < 1e-9  # one term in each tile of `a`, two in those of `b`


@pytest.mark.parametrize(
    ("second", "arguments", "message"),
    [
        ({}, (["a", "c"], [1.0, 1.0], "sum"), "No adapter c. Known: a, b"),
        ({}, ([], [], "sum"), "No adapter is given"),
        ({}, (["a", "b"], [1.0], "sum"), "2 adapters need as many weights, not 1"),
        ({}, (["a", "b"], [1.0, 1.0], "b"), "There is an adapter 'b' already"),
        ({"nblocks": 2}, (["a", "b"], [1.0, 1.0], "sum"), "'b' has nblocks=2, the first has 4"),
        ({"layout": "contiguous"}, (["a", "b"], [1.0, 1.0], "sum"), "'b' has layout='cont"),
    ],
)
def test_what_does_not_add_up_is_refused_and_nothing_is_added(second, arguments, message):
    model = two(**second)
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*arguments)
    assert set(model.peft_config) == {"a", "b"}
