"""Costs from the config alone equal what is counted on the real models."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, MambaConfig, PreTrainedModel
from transformers.models.mamba import modeling_mamba

from manticore.mixers.selective_scan import selective_scan_naive
from manticore.models.costs import (
    CacheBytes,
    Cost,
    Flops,
    cache_bytes,
    component_cost,
    decode_flops,
    embedding_cost,
    head_cost,
    layer_cost,
)
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.pretrained import inner_model
from manticore.models.shape_types import SCAN_BACKWARD, SCAN_FORWARD
from manticore.models.supported import check_supported
from manticore.models.varied_shapes import VARIED
from tests.models.tiny import ALL_TINY, tiny, tiny_config, token_ids

every_model = pytest.mark.parametrize(("family", "variant"), ALL_TINY)
# Models built from mixers count by their mixers' formulas, which tests/mixers compares.
# Families whose layers differ have tests of their own.
COUNTED = [case for case in ALL_TINY if case[0] not in ("manticore_mixers", *VARIED)]
counted_by_torch = pytest.mark.parametrize(("family", "variant"), COUNTED)
MATMULS = ("mm", "addmm", "bmm", "baddbmm")


@pytest.fixture(autouse=True)
def scan_without_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Mamba scan by the naive twin, so that torch's counter sees nothing of the scan."""

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **k: Any) -> Any:
        dt = F.softplus(dt + k["delta_bias"][:, None])
        y, state = selective_scan_naive(
            *(t.mT for t in (x, dt)), A, B.mT, C.mT, D=k["D"], z=k["z"].mT
        )
        return (y.mT, state) if k["return_last_state"] else y.mT

    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", scan)


def counted(run: Callable[[], object]) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        run()
    return {str(op).split(".")[-1]: n for op, n in counter.get_flop_counts()["Global"].items()}


def expected_by_torch(flops: Flops) -> int:
    return flops.matmul + flops.attention + flops.convolution


def eager(family: str, variant: int) -> PreTrainedModel:
    """A model whose attention torch can count: not the fused one of a CPU."""
    options = {} if family == "mamba" else {"attn_implementation": "eager"}
    return tiny(family, variant=variant, **options)


@pytest.mark.parametrize(
    ("family", "variant"), [case for case in ALL_TINY if case[0] not in VARIED]
)
def test_parameters_equal_those_of_the_built_model(family: str, variant: int) -> None:
    model = tiny(family, variant=variant)
    cost = component_cost(model.config, 8)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    tables = {id(model.get_input_embeddings().weight): model.get_input_embeddings().weight}
    tables[id(model.get_output_embeddings().weight)] = model.get_output_embeddings().weight
    if check_supported(model.config).has_position_table(model.config):
        positions = getattr(
            inner_model(model.base_model), check_supported(model.config).position_table
        )
        tables[0] = positions.weight
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        tables[1] = model.get_output_embeddings().bias
    assert cost.embedding_parameters == sum(table.numel() for table in tables.values())


@counted_by_torch
@pytest.mark.parametrize("backward", [False, True])
def test_flops_equal_torchs_count(family: str, variant: int, backward: bool) -> None:
    # Long, because the convolution of Hugging Face also computes kernel - 1 positions it drops.
    batch, seq_len = 1, 48
    model = eager(family, variant)
    ids = token_ids(model, batch, seq_len)

    def run() -> None:
        logits = model(ids, use_cache=False).logits
        if backward:
            logits.sum().backward()

    got = sum(n for op, n in counted(run).items() if op in MATMULS)
    cost = component_cost(model.config, seq_len)
    flops = cost.training if backward else cost.forward
    assert got == pytest.approx(batch * seq_len * (flops.matmul + flops.attention), rel=0.01)


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize("backward", [False, True])
def test_convolution_flops_equal_torchs_count(variant: int, backward: bool) -> None:
    # Long: the dropped positions are kernel - 1 of them. One channel at a time: torch counts the
    # weight gradient of a grouped convolution as if every channel met every other.
    seq_len, config = 1_000, tiny_config("mamba", variant)
    conv = modeling_mamba.MambaMixer(config, 0).conv1d
    x = torch.randn(1, 1, seq_len, requires_grad=True)
    weight = conv.weight[:1].detach().requires_grad_()

    def run() -> None:
        y = F.conv1d(x, weight, padding=conv.padding)[..., :seq_len]
        if backward:
            y.sum().backward()

    cost = layer_cost(config, 0, 1, seq_len)
    wanted = seq_len * (cost.training if backward else cost.forward).convolution
    assert conv.groups * sum(counted(run).values()) == pytest.approx(wanted, rel=0.01)


@counted_by_torch
@pytest.mark.parametrize("context", [1, 2, 30])
@torch.no_grad()
def test_decode_flops_equal_torchs_count(family: str, variant: int, context: int) -> None:
    model = eager(family, variant)
    if family == "mamba":
        bind_fast_paths(model)
    ids, cache = token_ids(model, 1, context), DynamicCache(config=model.config)
    cache_name = "cache_params" if family == "mamba" else "past_key_values"
    if context > 1:
        model(ids[:, :-1], use_cache=True, **{cache_name: cache})
    got = counted(lambda: model(ids[:, -1:], use_cache=True, **{cache_name: cache}))
    wanted = decode_flops(model.config, context)
    assert sum(got.values()) == pytest.approx(wanted.matmul + wanted.attention, rel=0.01)


MOVES_ONLY = {
    *("select", "slice", "view", "expand", "t", "transpose", "unsqueeze", "squeeze", "stack"),
    *("detach", "_to_copy", "alias", "new_zeros", "promote_types", "select_backward", "unbind"),
}


class OperationCounter(TorchDispatchMode):
    """Counts elementary operations: one for each number that arithmetic writes or sums up."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in MOVES_ONLY:
            size = args[0].numel() if name == "sum" else out.numel()
            self.operations += 2 * size if name == "addcmul" else size
        return out


def scan_inputs(batch: int, seq_len: int, d: int, n: int) -> dict[str, Tensor]:
    shapes = {
        "x": (batch, seq_len, d),
        "dt": (batch, seq_len, d),
        "A": (d, n),
        "B": (batch, seq_len, n),
        "C": (batch, seq_len, n),
        "D": (d,),
        "z": (batch, seq_len, d),
        "initial_state": (batch, d, n),
    }
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, requires_grad=True)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("batch", "seq_len", "d", "n"), [(1, 5, 3, 4), (2, 7, 6, 16)])
@torch.no_grad()
def test_scan_flops_equal_the_operations_of_the_naive_twin(
    batch: int, seq_len: int, d: int, n: int
) -> None:
    inputs = scan_inputs(batch, seq_len, d, n)
    with OperationCounter() as counter:
        selective_scan_naive(**inputs)
    per_state, per_channel = SCAN_FORWARD
    assert counter.operations == batch * seq_len * d * (per_state * n + per_channel)


@pytest.mark.parametrize(("batch", "d", "n"), [(2, 3, 4), (3, 6, 16)])
def test_scan_flops_backward_equal_the_operations_of_the_naive_twin(
    batch: int, d: int, n: int
) -> None:
    # One step in the middle of a sequence: a state comes in, and a gradient from what follows.
    inputs = scan_inputs(batch, 1, d, n)
    y, state = selective_scan_naive(**inputs)
    grads = (torch.ones_like(y), torch.ones_like(state))
    with OperationCounter() as counter:
        torch.autograd.grad((y, state), list(inputs.values()), grads)
    per_state, per_channel = SCAN_BACKWARD
    # The gradient of addcmul multiplies by its own factor, which is 1, twice.
    by_one = batch * d + d
    assert counter.operations - by_one == batch * d * (per_state * n + per_channel)


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_a_mamba_component_has_the_scan_flops_of_its_layers(variant: int) -> None:
    config = tiny_config("mamba", variant)
    channels, states = config.intermediate_size, config.state_size
    forward = config.num_hidden_layers * channels * (7 * states + 5)
    cost = component_cost(config, 100)
    assert cost.forward.scan == forward
    assert cost.training.scan == forward + config.num_hidden_layers * channels * (15 * states + 10)


def cached_tensors(model: PreTrainedModel, cache: DynamicCache) -> Iterator[tuple[str, Tensor]]:
    for layer in cache.layers:
        if hasattr(layer, "conv_states"):
            yield "state", layer.conv_states[0]
            yield "state", layer.recurrent_states[0]
        else:
            yield "kv", layer.keys
            yield "kv", layer.values


@counted_by_torch
@pytest.mark.parametrize("length", [1, 9, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_cache_bytes_equal_those_of_the_filled_cache(
    family: str, variant: int, length: int, dtype: torch.dtype
) -> None:
    model = tiny(family, variant=variant).to(dtype)
    if family == "mamba":
        bind_fast_paths(model)
    cache = DynamicCache(config=model.config)
    name = "cache_params" if family == "mamba" else "past_key_values"
    model(token_ids(model, 1, length), use_cache=True, **{name: cache})
    held = {"state": 0, "kv": 0}
    for kind, tensor in cached_tensors(model, cache):
        held[kind] += tensor.numel() * tensor.itemsize
    assert cache_bytes(model.config, length, dtype) == CacheBytes(**held)


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_cache_bytes_of_mixers_are_those_of_their_states(variant: int, dtype: torch.dtype) -> None:
    model, length = tiny("manticore_mixers", variant=variant).to(dtype), 40
    cache = model(token_ids(model, 1, length), use_cache=True).past_key_values
    tensors = [t for layer in cache.layers for t in layer.state.values()]
    # A mixer may also count its tokens, eight bytes or so for each layer.
    held = sum(t.numel() * t.itemsize for t in tensors if t.is_floating_point())
    # In 16 bits, a mixer may keep the token before in float32, which the formula cannot know.
    tolerance = 0 if dtype == torch.float32 else 0.01
    assert cache_bytes(model.config, length, dtype).total == pytest.approx(held, rel=tolerance)


@every_model
def test_parts_add_up_to_the_whole(family: str, variant: int) -> None:
    config = tiny_config(family, variant)
    depth = config.num_hidden_layers
    for cut in range(depth + 1):
        parts = embedding_cost(config) + head_cost(config)
        parts += layer_cost(config, 0, cut, 20) + layer_cost(config, cut, depth, 20)
        assert parts == component_cost(config, 20)
        assert cache_bytes(config, 20, hi=cut) + cache_bytes(config, 20, lo=cut) == cache_bytes(
            config, 20
        )
    assert layer_cost(config, 1, 1, 20) == Cost()


@pytest.mark.parametrize(("lo", "hi", "seq_len"), [(-1, 2, 8), (3, 2, 8), (0, 99, 8), (0, 1, 0)])
def test_ranges_outside_the_component_are_refused(lo: int, hi: int, seq_len: int) -> None:
    with pytest.raises(ValueError, match="give 0 <= lo <= hi"):
        layer_cost(tiny_config("llama"), lo, hi, seq_len)


def test_a_mamba_370m_costs_what_its_authors_say() -> None:
    config = MambaConfig(hidden_size=1024, num_hidden_layers=48, vocab_size=50280)
    cost = component_cost(config, 2048)
    assert round(cost.parameters / 1e6) == 372  # "Mamba-370M", tied tables
    assert cost.embedding_parameters == 50280 * 1024
    state = 48 * 2048 * (16 + 4) * 4
    assert cache_bytes(config, 32_768).state == cache_bytes(config, 1).state == state
    assert math.isclose(cost.forward.matmul, 2 * cost.parameters, rel_tol=0.01)
