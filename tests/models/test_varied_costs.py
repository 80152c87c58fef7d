"""Costs of layers that differ: filled caches, torch's counter and small sums by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from manticore.models.costs import cache_bytes, component_cost, decode_flops
from manticore.models.layer_shapes import layer_shapes
from tests.models.expert_families import EXPERT_FAMILIES
from tests.models.recurrent_families import RECURRENT_FAMILIES
from tests.models.tiny import VARIANTS, tiny, tiny_config, token_ids

every_varied = pytest.mark.parametrize(
    ("family", "variant"),
    [(name, index) for name in (*RECURRENT_FAMILIES, *EXPERT_FAMILIES) for index in VARIANTS],
)


@every_varied
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_cache_bytes_equal_those_of_the_filled_cache(family, variant, dtype):
    model = tiny(family, variant=variant).to(dtype)
    cache = DynamicCache(config=model.config)
    name = "cache_params" if family in ("mamba2", "falcon_mamba") else "past_key_values"
    model(token_ids(model, 1, 9), use_cache=True, **{name: cache})
    held = {"kv": 0, "state": 0}
    for layer in cache.layers:
        for kind, tensors in (
            ("kv", [getattr(layer, "keys", None), getattr(layer, "values", None)]),
            ("state", [*_values(layer, "conv_states"), *_values(layer, "recurrent_states")]),
        ):
            held[kind] += sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
    wanted = cache_bytes(model.config, 9, dtype)
    assert {"kv": wanted.kv, "state": wanted.state} == held


def _values(layer, name):
    held = getattr(layer, name, None) or []
    return held.values() if isinstance(held, dict) else held


@every_varied
@torch.no_grad()
def test_matrix_products_equal_torchs_count(family, variant):
    model = tiny(family, variant=variant)
    if any(parameter.dim() == 3 and "conv" not in n for n, parameter in model.named_parameters()):
        model.set_experts_implementation("eager")  # torch counts no grouped product
    ids, length = token_ids(model, 1, 16), 16
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    # Chunks and attention are products of batches of matrices; projections are plain ones.
    counts = counter.get_flop_counts()["Global"]
    plain = sum(n for op, n in counts.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert plain == pytest.approx(length * component_cost(model.config, length).forward.matmul)


def test_a_recurrence_is_counted_by_its_state():
    mamba2 = layer_shapes(tiny_config("mamba2"))[0]  # 4 heads of 16 channels, 8 states each
    assert mamba2.state == 4 * 16 * 8
    assert mamba2.scan == (5 * 512 + 5 * 64, 2 * (5 * 512 + 5 * 64))
    delta = layer_shapes(tiny_config("qwen3_next"))[0]  # 4 heads, keys and values of 8
    assert delta.state == 4 * 8 * 8
    assert delta.scan == (7 * 256, 14 * 256)
    assert layer_shapes(tiny_config("qwen3_next"))[3].scan == (0, 0)


def test_a_token_of_a_recurrent_model_costs_the_same_at_every_context():
    config = tiny_config("mamba2")
    assert decode_flops(config, 10) == decode_flops(config, 10_000)
    assert decode_flops(tiny_config("jamba"), 10) != decode_flops(tiny_config("jamba"), 10_000)
