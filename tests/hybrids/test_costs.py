"""The cost of a hybrid, from its config, equals what is counted on the built one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from manticore import ManticoreForCausalLM
from manticore.hybrids.costs import (
    HybridCost,
    cache_bytes_of,
    cost_of,
    hybrid_cache_bytes,
    hybrid_cost,
)
from manticore.mixers.selective_scan import selective_scan_naive
from manticore.models import fast_mamba
from manticore.models.costs import CacheBytes
from tests.hybrids.pairs import build, ids_for, member, members, one_hot, random_rows
from tests.models.tiny import tiny

MATMULS = ("mm", "addmm", "bmm", "baddbmm")
PARTS = ("components", "projectors", "heads", "router")
SEQ_LEN = 40
BOTH = pytest.mark.parametrize("mixing", ["streams", "shared"])


@pytest.fixture(autouse=True)
def scan_without_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Mamba scan elementwise, so that torch's counter sees nothing of the scan."""
    monkeypatch.setattr(fast_mamba, "selective_scan", selective_scan_naive)


def hybrid_of(mixing: str, num_blocks: int, count: int = 3, **options: Any) -> ManticoreForCausalLM:
    components = members(count)
    for component in components:
        if component.config.model_type != "mamba":
            component.set_attn_implementation("eager")  # torch counts no fused one on a CPU
    return build(components, mixing=mixing, num_blocks=num_blocks, **options)


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    found = counter.get_flop_counts()["Global"].items()
    return sum(n for op, n in found if str(op).split(".")[-1] in MATMULS)


def mixtures(num_blocks: int) -> dict[str, dict[str, torch.Tensor]]:
    switching = [0, 2] if num_blocks == 2 else [1]
    half = torch.tensor([[0.5, 0.5, 0.0]] + [[0.0, 0.3, 0.7]] * (num_blocks - 1))
    return {
        "mixed": {"mixture": random_rows(num_blocks, 3)},
        "one-hot": {"mixture": one_hot(num_blocks, 3, 1)},
        "switching": {"mixture": one_hot(num_blocks, 3, switching)},
        "half": {"mixture": half},
        "own rows": {
            "mixture": half,
            "embed": torch.tensor([0.0, 0.0, 1.0]),
            "head": torch.tensor([0.5, 0.5, 0.0]),
        },
    }


@BOTH
@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("kind", list(mixtures(1)))
def test_flops_equal_torchs_count(mixing: str, num_blocks: int, kind: str) -> None:
    hybrid = hybrid_of(mixing, num_blocks)
    rows = mixtures(num_blocks)[kind]
    hybrid.set_mixture(**rows)
    cost = cost_of(hybrid, SEQ_LEN)
    assert cost == hybrid_cost(hybrid.config, seq_len=SEQ_LEN, **rows)
    ids = ids_for(1, SEQ_LEN)
    with torch.no_grad():
        got = counted(lambda: hybrid(ids, use_cache=False))
    expected = SEQ_LEN * (cost.forward.matmul + cost.forward.attention)
    assert got == pytest.approx(expected, rel=0.01)


@BOTH
@pytest.mark.parametrize("kind", ["mixed", "one-hot"])
def test_training_flops_equal_torchs_count(mixing: str, kind: str) -> None:
    hybrid = hybrid_of(mixing, 2).train()
    hybrid.set_mixture(**mixtures(2)[kind])
    ids = ids_for(1, SEQ_LEN)
    got = counted(lambda: hybrid(ids).logits.sum().backward())
    training = cost_of(hybrid, SEQ_LEN).training
    assert got == pytest.approx(SEQ_LEN * (training.matmul + training.attention), rel=0.01)


@pytest.mark.parametrize("context", [1, 30])
@torch.no_grad()
def test_a_cached_token_costs_what_a_token_of_that_length_does(context: int) -> None:
    hybrid = hybrid_of("streams", 2)
    cache = hybrid.model(ids_for(1, context - 1)).past_key_values if context > 1 else None
    got = counted(lambda: hybrid(ids_for(1, 1), past_key_values=cache, use_cache=True))
    forward = hybrid_cost(hybrid.config, seq_len=context).forward
    assert got == pytest.approx(forward.matmul + forward.attention, rel=0.01)


@BOTH
@pytest.mark.parametrize("num_blocks", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stored_parameters_equal_those_of_the_built_hybrid(
    mixing: str, num_blocks: int, count: int
) -> None:
    hybrid = build(
        members(count), mixing=mixing, num_blocks=num_blocks, learn_loyalty=True, stirred=False
    )
    hybrid.set_mixture(hybrid.mixture, embed=[1 / count] * count)
    cost = cost_of(hybrid, 8)
    assert cost.parameters == hybrid.num_parameters()
    by_part = {
        "mixture": hybrid.mixture_parameters(),
        "components": list(hybrid.model.components.parameters()),
        "projectors": list(
            (
                hybrid.model.translators if mixing == "streams" else hybrid.model.projectors
            ).parameters()
        ),
    }
    for part, parameters in by_part.items():
        loyalties = num_blocks + 1 if part == "mixture" and mixing == "streams" else 0
        assert cost.stored[part] == sum(p.numel() for p in parameters) + loyalties, part


def read_parameters(hybrid: ManticoreForCausalLM) -> int:
    """Parameters with a gradient after a backward pass; of tables, whole."""
    hybrid.train()
    hybrid(ids_for(), use_cache=False).logits.square().sum().backward()
    return sum(p.numel() for p in hybrid.parameters() if p.grad is not None)


@BOTH
@pytest.mark.parametrize("kind", list(mixtures(2)))
def test_active_parameters_are_those_that_get_a_gradient(mixing: str, kind: str) -> None:
    hybrid = hybrid_of(mixing, 2)
    hybrid.set_mixture(**mixtures(2)[kind])
    cost = cost_of(hybrid, 8)
    found = read_parameters(hybrid)
    # Where one component is alone its weight is not read, but the rows count as active.
    rows = sum(p.numel() for p in hybrid.mixture_parameters() if p.grad is None)
    assert cost.active_parameters == found + rows


def test_one_hot_costs_what_the_component_does() -> None:
    hybrid = hybrid_of("streams", 2)
    alone = hybrid_cost(hybrid.config, one_hot(2, 3, 1), seq_len=SEQ_LEN)
    lone = ManticoreForCausalLM.from_components([member(1)])
    lone.resize_token_embeddings(hybrid.config.vocab_size)
    expected = cost_of(lone, SEQ_LEN)
    assert alone.forward == expected.forward
    assert alone.training == expected.training
    assert alone.projectors.parameters == alone.router.parameters == 0
    assert alone.projector_flops_share == 0
    assert (
        alone.active_parameters - alone.stored["mixture"]
        == sum(p.numel() for p in lone.parameters()) - lone.mixture.numel()
    )


def test_infinite_loyalty_reads_no_translator() -> None:
    hybrid = hybrid_of("streams", 2, loyalty="inf")
    assert cost_of(hybrid, 8).projectors.parameters == 0
    ids = ids_for(1, SEQ_LEN)
    with torch.no_grad():
        got = counted(lambda: hybrid(ids, use_cache=False))
    forward = cost_of(hybrid, SEQ_LEN).forward
    assert got == pytest.approx(SEQ_LEN * (forward.matmul + forward.attention), rel=0.01)


def test_pruned_hybrid_is_counted_as_it_is() -> None:
    hybrid = hybrid_of("streams", 2)
    hybrid.set_mixture(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    smaller = hybrid.prune(0.1)
    cost = cost_of(smaller, SEQ_LEN)
    assert cost.parameters == smaller.num_parameters()
    assert cost.forward == cost_of(hybrid, SEQ_LEN).forward
    assert cost.active_parameters <= cost.parameters < cost_of(hybrid, SEQ_LEN).parameters


def test_parts_add_up_and_the_share_lies_between_none_and_all() -> None:
    cost: HybridCost = cost_of(hybrid_of("streams", 2), SEQ_LEN)
    parts = [getattr(cost, part) for part in PARTS]
    assert sum(part.forward.total for part in parts) == cost.forward.total
    assert sum(part.training.total for part in parts) == cost.training.total
    widths = hybrid_of("streams", 2).config.widths
    pairs = sum(a * b for i, a in enumerate(widths) for j, b in enumerate(widths) if i != j)
    assert cost.projectors.forward.matmul == 3 * 2 * pairs  # 3 boundaries, 2 FLOPs
    share = cost.projectors.forward.total / cost.forward.total
    assert cost.projector_flops_share == pytest.approx(share)
    assert 0 < share < 1


def held_bytes(hybrid: ManticoreForCausalLM, length: int) -> int:
    """Bytes in the tensors of a real cache after one sequence."""
    with torch.no_grad():
        cache = hybrid.model(ids_for(1, length), use_cache=True).past_key_values
    tensors = []
    for layer in cache.layers:
        for value in vars(layer).values():
            values = list(value.values()) if isinstance(value, dict) else [value]
            tensors += [v for v in values if isinstance(v, torch.Tensor) and v.ndim > 1]
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mixed", "one-hot", "half"])
def test_cache_bytes_equal_those_of_the_real_cache(
    mixing: str, dtype: torch.dtype, kind: str
) -> None:
    hybrid = hybrid_of(mixing, 2)
    rows = mixtures(2)[kind]
    hybrid.set_mixture(**rows)
    hybrid.to(dtype)
    for length in (7, 20):
        cost = cache_bytes_of(hybrid, length)
        assert cost == hybrid_cache_bytes(hybrid.config, length, rows["mixture"], dtype=dtype)
        assert cost.total == held_bytes(hybrid, length)


def test_state_is_flat_and_kv_linear_in_the_length() -> None:
    config = hybrid_of("streams", 2).config
    short, long = (hybrid_cache_bytes(config, length) for length in (1_024, 32_768))
    assert short.state == long.state > 0
    assert long.kv == 32 * short.kv > 0
    mamba_only = hybrid_cache_bytes(config, 32_768, one_hot(2, 3, 1))
    assert mamba_only == CacheBytes(state=short.state)


def test_a_mixture_of_the_wrong_shape_is_refused() -> None:
    config = build([tiny("gpt_neox"), tiny("mamba")], num_blocks=2).config
    with pytest.raises(ValueError, match="this hybrid needs"):
        hybrid_cost(config, [[0.5, 0.5]], seq_len=8)
