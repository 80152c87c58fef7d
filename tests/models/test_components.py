"""Any range of layers, run on its own, does what it does inside the whole model.

The truth is always the stock Hugging Face model, run on whole, single, unpadded sequences.
"""

import copy
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, PersimmonConfig, PreTrainedModel

from manticore.models.component_cache import cache_layers
from manticore.models.component_lengths import check_length, has_position_table, max_positions
from manticore.models.component_logits import component_logits
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.pretrained import (
    embed_tokens,
    enter,
    run_layers,
    split_causal_lm,
)
from manticore.models.stage_cache import StageCache
from manticore.models.supported import UnsupportedFamilyError, check_supported
from tests.models.recurrent_families import UNCACHED_FAMILIES
from tests.models.tiny import ALL_TINY, FAMILY_NAMES, MAX_POSITIONS, tiny, tiny_config, token_ids

every_model = pytest.mark.parametrize(("family", "variant"), ALL_TINY)
CACHED_TINY = [case for case in ALL_TINY if case[0] not in UNCACHED_FAMILIES]


class CachedRun:
    """A component run in stages with a cache, the way a hybrid does it."""

    def __init__(self, model: PreTrainedModel, cuts: list[int]) -> None:
        self.model, self.cuts = model, cuts
        self.layers, self.seen = cache_layers(model.config), 0

    def feed(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        stages = [StageCache(self.layers[lo:hi], lo, self.seen) for lo, hi in pairwise(self.cuts)]
        logits = run_in_stages(self.model, ids, self.cuts, mask, positions, stages)
        self.seen += ids.shape[1]
        return logits


def run_in_stages(
    model: PreTrainedModel,
    ids: Tensor,
    cuts: list[int],
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    stages: list[StageCache] | None = None,
) -> Tensor:
    base, head = split_causal_lm(model)
    if positions is None:
        positions = torch.arange(ids.shape[1])[None]
    hidden = enter(base, embed_tokens(base, ids), positions)
    for index, (lo, hi) in enumerate(pairwise(cuts)):
        hidden = run_layers(
            base,
            hidden,
            lo,
            hi,
            attention_mask=mask,
            position_ids=positions,
            cache=stages[index] if stages else None,
        )
    return component_logits(model.config, head, hidden)


def all_partitions(depth: int) -> list[list[int]]:
    inner = range(1, depth)
    return [[0, *cuts, depth] for count in range(depth) for cuts in combinations(inner, count)]


def uneven(depth: int) -> list[int]:
    return [0, 1, depth]


def pad(rows: list[Tensor], side: str, value: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions (batch, longest) of sequences padded on one side."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[index, where], mask[index, where] = row, 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def maximal(difference: Tensor) -> float:
    return difference.abs().max().item()


@every_model
@torch.no_grad()
def test_every_partition_gives_the_logits_of_the_whole_model(family: str, variant: int) -> None:
    model = tiny(family, variant=variant)
    ids = token_ids(model, 2, 17)
    expected = model(ids).logits
    assert expected.std() > 0.5  # large enough that 1e-5 is a sharp test
    for cuts in all_partitions(model.config.num_hidden_layers):
        assert maximal(run_in_stages(model, ids, cuts) - expected) < 1e-5, cuts


@every_model
@pytest.mark.parametrize("length", [1, MAX_POSITIONS - 1])
@torch.no_grad()
def test_awkward_lengths_give_the_logits_of_the_whole_model(
    family: str, variant: int, length: int
) -> None:
    model = tiny(family, seed=1, variant=variant)
    ids = token_ids(model, 1, length)
    cuts = list(range(model.config.num_hidden_layers + 1))
    assert maximal(run_in_stages(model, ids, cuts) - model(ids).logits) < 1e-5


@pytest.mark.parametrize(("family", "variant"), CACHED_TINY)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batches_equal_single_sequences(family: str, variant: int, side: str) -> None:
    model = tiny(family, variant=variant)
    rows = [token_ids(model, 1, length, seed=length)[0] for length in (3, 11, 8, 1)]
    ids, mask, positions = pad(rows, side, model.config.pad_token_id)
    logits = run_in_stages(model, ids, uneven(model.config.num_hidden_layers), mask, positions)
    for row, got, kept in zip(rows, logits, mask.bool(), strict=True):
        # Padding moves the borders of chunks. Delta rules solve a system in each, and differ by up
        # to 2e-5 for it (Kimi Linear, Qwen3-Next); all others stay below 1e-5.
        assert maximal(got[kept] - model(row[None]).logits[0]) < 4e-5


# Mamba's own mixers continue a cache one token at a time, the bound ones in one go.
continued = pytest.mark.parametrize(
    ("family", "variant", "bound"),
    [(*case, False) for case in CACHED_TINY] + [("mamba", variant, True) for variant in range(3)],
)


# The chunked and the stepwise delta rule round differently, in the whole model as well, and the
# gates of these random weights amplify it: 1e-5 to 2e-4 from run to run.
CACHED = dict.fromkeys(("qwen3_next", "olmo_hybrid", "kimi_linear"), 1e-3)


@continued
@pytest.mark.parametrize("pieces", [[9, 1, 1, 1, 1], [1] * 13, [5, 8], [1, 2, 7, 3]])
@torch.no_grad()
def test_a_sequence_fed_in_pieces_equals_the_full_forward(
    family: str, variant: int, bound: bool, pieces: list[int]
) -> None:
    model = tiny(family, variant=variant)
    ids = token_ids(model, 2, 13)
    expected = model(ids).logits
    if bound:
        bind_fast_paths(model)
    for cuts in ([0, model.config.num_hidden_layers], uneven(model.config.num_hidden_layers)):
        run, outputs, start = CachedRun(model, cuts), [], 0
        for piece in pieces:
            positions = torch.arange(start, start + piece)[None]
            outputs.append(run.feed(ids[:, start : start + piece], None, positions))
            start += piece
        assert maximal(torch.cat(outputs, 1) - expected) < CACHED.get(family, 1e-4)


@continued
@pytest.mark.parametrize("pieces", [[8, 1, 1, 1], [4, 7]])
@torch.no_grad()
def test_left_padded_sequences_fed_in_pieces_equal_single_ones(
    family: str, variant: int, bound: bool, pieces: list[int]
) -> None:
    model = tiny(family, variant=variant)
    if family == "jamba" and not bound and pieces[1] > 1:
        return  # refused: see the test below
    rows = [token_ids(model, 1, length, seed=length)[0] for length in (11, 5, 9)]
    expected = [model(row[None]).logits[0] for row in rows]
    if bound:
        bind_fast_paths(model)
    ids, mask, positions = pad(rows, "left", model.config.pad_token_id)
    run, outputs, start = CachedRun(model, uneven(model.config.num_hidden_layers)), [], 0
    for piece in pieces:
        end = start + piece
        outputs.append(run.feed(ids[:, start:end], mask[:, :end], positions[:, start:end]))
        start = end
    for wanted, got, kept in zip(expected, torch.cat(outputs, 1), mask.bool(), strict=True):
        assert maximal(got[kept] - wanted) < CACHED.get(family, 1e-4)


def test_padding_inside_what_a_stock_jamba_continues_is_refused() -> None:
    model = tiny("jamba")
    run = CachedRun(model, uneven(4))
    ids, mask, positions = pad([token_ids(model, 1, n)[0] for n in (9, 3)], "left", 0)
    with torch.no_grad():
        run.feed(ids[:, :4], mask[:, :4], positions[:, :4])
        with pytest.raises(ValueError, match="bind_fast_paths"):
            run.feed(ids[:, 4:], mask, positions[:, 4:])


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    (logits * weights).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_model
def test_gradients_equal_those_of_the_whole_model(family: str, variant: int) -> None:
    model = tiny(family, variant=variant).train()
    ids = token_ids(model, 2, 9)
    expected = gradients(model, model(ids).logits)
    assert len(expected) == len(list(model.parameters()))
    for cuts in (
        uneven(model.config.num_hidden_layers),
        list(range(model.config.num_hidden_layers + 1)),
    ):
        got = gradients(model, run_in_stages(model, ids, cuts))
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().clamp(min=1e-3)
            assert maximal(got[name] - gradient) < 1e-5 * scale, name


@every_model
@torch.no_grad()
def test_each_layer_is_used_exactly_once_and_in_order(family: str, variant: int) -> None:
    model = tiny(family, variant=variant)
    base, _ = split_causal_lm(model)
    row, used = check_supported(model.config), []
    for index, layer in enumerate(getattr(base, row.layers)):
        layer.register_forward_hook(lambda *_, index=index: used.append(index))
    norm = getattr(base, row.final_norm)
    if norm is not None:
        norm.register_forward_hook(lambda *_: used.append("norm"))
    depth = model.config.num_hidden_layers
    for cuts in all_partitions(depth):
        used.clear()
        run_in_stages(model, token_ids(model, 1, 5), cuts)
        assert used == [*range(depth), *(["norm"] if norm is not None else [])], cuts


@every_model
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(
    family: str, variant: int
) -> None:
    model = tiny(family, variant=variant).train()
    ids, cuts = token_ids(model, 2, 9), uneven(model.config.num_hidden_layers)
    expected = gradients(model, run_in_stages(model, ids, cuts))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    base, _ = split_causal_lm(model)
    layer: nn.Module = getattr(base, check_supported(model.config).layers)[0]
    calls: list[nn.Module] = []
    for child in layer.children():
        child.register_forward_pre_hook(lambda child, _: calls.append(child))
    got = gradients(model, run_in_stages(model, ids, cuts))
    # Once forward, once again for the backward pass, which stops when it has all it needs.
    assert calls.count(calls[0]) == 2
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


@pytest.mark.parametrize("family", [f for f in FAMILY_NAMES if f not in UNCACHED_FAMILIES])
def test_a_cache_with_gradient_checkpointing_is_refused(family: str) -> None:
    model = tiny(family).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    run = CachedRun(model, uneven(4))
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        run.feed(token_ids(model, 1, 5), None, torch.arange(5)[None])


@pytest.mark.parametrize(
    ("family", "dropout"),
    [
        ("gpt_neox", "emb_dropout"),
        ("gpt2", "drop"),
        ("gpt_neo", "drop"),
        ("gpt_bigcode", "drop"),
        ("gptj", "drop"),
        ("codegen", "drop"),
    ],
)
@torch.no_grad()
def test_embedding_dropout_acts_at_the_entry_and_nowhere_else(family: str, dropout: str) -> None:
    model = tiny(family).train()
    base, _ = split_causal_lm(model)
    getattr(base, dropout).p = 0.5
    hidden, positions = torch.randn(2, 9, model.config.hidden_size), torch.arange(9)[None]
    dropped = enter(base, hidden, positions) == 0
    assert 0.3 < dropped.float().mean() < 0.7
    arguments = {"attention_mask": None, "position_ids": positions}
    first = run_layers(base, hidden, 0, 2, **arguments)
    assert torch.equal(first, run_layers(base, hidden, 0, 2, **arguments))
    getattr(base, dropout).eval()
    assert torch.equal(first, run_layers(base, hidden, 0, 2, **arguments))


@torch.no_grad()
def test_a_rate_of_embedding_dropout_acts_at_the_entry_and_nowhere_else() -> None:
    model = tiny("starcoder2", embedding_dropout=0.5).train()
    base, _ = split_causal_lm(model)
    hidden, positions = torch.randn(2, 9, model.config.hidden_size), torch.arange(9)[None]
    assert 0.3 < (enter(base, hidden, positions) == 0).float().mean() < 0.7
    arguments = {"attention_mask": None, "position_ids": positions}
    first = run_layers(base, hidden, 0, 2, **arguments)
    assert torch.equal(first, run_layers(base, hidden, 0, 2, **arguments))
    model.eval()
    assert torch.equal(enter(base, hidden, positions), hidden)
    assert torch.equal(first, run_layers(base, hidden, 0, 2, **arguments))


@every_model
@torch.no_grad()
def test_bfloat16_stays_bfloat16_between_stages(family: str, variant: int) -> None:
    model = tiny(family, variant=variant).bfloat16()
    ids, base = token_ids(model, 2, 9), split_causal_lm(model)[0]
    positions = torch.arange(9)[None]
    hidden = enter(base, embed_tokens(base, ids), positions)
    hidden = run_layers(base, hidden, 0, 1, attention_mask=None, position_ids=positions)
    assert hidden.dtype == torch.bfloat16
    expected = model(ids).logits
    got = run_in_stages(model, ids, uneven(model.config.num_hidden_layers))
    assert got.dtype == expected.dtype
    # Mamba's float32 residual stream is rounded once at the cut: some 2^-8 of the logits' scale.
    assert (got - expected).float().abs().mean() < 0.03 * expected.float().std()


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2"])
@torch.no_grad()
def test_another_attention_kernel_is_seen_at_the_next_call(family: str) -> None:
    model = tiny(family, variant=2)
    ids, cuts = token_ids(model, 2, 9), [0, 2, 5]
    before = run_in_stages(model, ids, cuts)
    model.set_attn_implementation("eager")
    ran, original = [], nn.functional.softmax  # only the eager kernel calls it

    def counted(*arguments: object, **options: object) -> Tensor:
        ran.append(1)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "softmax", counted)
        after = run_in_stages(model, ids, cuts)
    assert len(ran) == 5
    assert maximal(after - model(ids).logits) < 1e-5
    assert maximal(after - before) < 1e-4


LORA_TARGETS = {
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neo": ["q_proj", "c_fc"],
    "mamba": ["in_proj", "x_proj"],
    "manticore_mixers": ["q", "output"],
    **{
        family: ["q_proj", "down_proj"]
        for family in (
            *("mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2"),
            *("smollm3", "ernie4_5", "seed_oss", "helium", "granite", "olmo3", "exaone4"),
        )
    },
    "phi": ["q_proj", "fc1"],
    "phi3": ["qkv_proj", "down_proj"],
    "falcon": ["query_key_value", "dense_h_to_4h"],
    "mamba2": ["in_proj"],
    "falcon_mamba": ["in_proj", "x_proj"],
    **{
        family: ["in_proj", "q_proj"]
        for family in ("jamba", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h", "lfm2")
    },
    "qwen3_next": ["in_proj_qkvz", "q_proj"],
    "opt": ["q_proj", "fc1"],
    **{family: ["q_proj", "down_proj"] for family in ("apertus", "arcee", "glm", "glm4")},
    # Their experts are stacked parameters, which take adapters by another setting.
    **{family: ["q_proj", "o_proj"] for family in ("mixtral", "qwen3_moe", "olmoe", "granitemoe")},
    "gptj": ["q_proj", "fc_in"],
    "codegen": ["qkv_proj", "fc_in"],
    "starcoder2": ["q_proj", "c_fc"],
    "gpt_bigcode": ["c_attn", "c_fc"],
    "stablelm": ["q_proj", "down_proj"],
    "cohere": ["q_proj", "down_proj"],
    "cohere2": ["q_proj", "down_proj"],
    "rwkv": ["key", "receptance"],
    "olmo_hybrid": ["q_proj", "down_proj"],
    "kimi_linear": ["q_proj", "down_proj"],
}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_adapters_injected_into_the_layers_are_seen_and_trained(family: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny(family, variant=1)
    ids, cuts = token_ids(model, 2, 9), uneven(model.config.num_hidden_layers)
    plain = run_in_stages(model, ids, cuts)
    inject_adapter_in_model(
        LoraConfig(target_modules=LORA_TARGETS[family], r=2, init_lora_weights=False), model
    )
    adapted = run_in_stages(model, ids, cuts)
    assert maximal(adapted - plain) > 1e-3
    assert maximal(adapted - model(ids).logits) < 1e-5
    got = gradients(model, adapted)
    assert any("lora" in name for name in got)
    assert all(got[n].abs().sum() > 0 for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@torch.no_grad()
def test_hooks_on_the_base_model_do_not_run_the_whole_of_it(family: str) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    model = tiny(family)
    ids, cuts = token_ids(model, 2, 9), uneven(4)
    expected = model(ids).logits
    add_hook_to_module(split_causal_lm(model)[0], ModelHook())
    assert maximal(run_in_stages(model, ids, cuts) - expected) < 1e-5


@pytest.mark.parametrize("family", FAMILY_NAMES)
@torch.no_grad()
def test_views_leave_no_trace_on_the_model(family: str) -> None:
    model = tiny(family)
    base, _ = split_causal_lm(model)
    ids = token_ids(model, 2, 9)
    model.config.output_hidden_states = model.config.output_router_logits = True
    names = [name for name, _ in model.named_modules()]
    attributes, fields = set(base.__dict__), copy.deepcopy(model.config.to_dict())
    expected = run_in_stages(model, ids, uneven(4))
    assert [name for name, _ in model.named_modules()] == names
    assert (set(base.__dict__), model.config.to_dict()) == (attributes, fields)
    assert not any(module._forward_hooks for module in model.modules())
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(run_in_stages(twin, ids, uneven(4)), expected)


@torch.no_grad()
def test_an_empty_range_returns_what_it_is_given() -> None:
    model = tiny("llama")
    hidden = torch.randn(1, 3, 32)
    arguments = {"attention_mask": None, "position_ids": torch.arange(3)[None]}
    for border in (0, 2, 4):
        assert run_layers(model.base_model, hidden, border, border, **arguments) is hidden


@pytest.mark.parametrize(("lo", "hi"), [(-1, 2), (3, 2), (0, 5)])
def test_a_range_outside_the_model_is_refused(lo: int, hi: int) -> None:
    base = tiny("llama").base_model
    with pytest.raises(ValueError, match="component with 4 layers"):
        run_layers(
            base, torch.zeros(1, 1, 32), lo, hi, attention_mask=None, position_ids=torch.zeros(1, 1)
        )


def test_a_cache_of_other_layers_is_refused() -> None:
    model = tiny("llama")
    cache = StageCache(cache_layers(model.config)[1:3], 1, 0)
    with pytest.raises(ValueError, match="The cache covers layers 1 to 3"):
        run_layers(
            model.base_model,
            torch.zeros(1, 1, 32),
            0,
            2,
            attention_mask=None,
            position_ids=torch.zeros(1, 1),
            cache=cache,
        )


@pytest.mark.parametrize("family", ["gpt2", "gpt_bigcode", "gpt_neo", "opt"])
def test_a_sequence_longer_than_the_position_table_names_both_lengths(family: str) -> None:
    config = tiny_config(family)
    assert has_position_table(config)
    assert max_positions(config) == MAX_POSITIONS
    check_length(config, MAX_POSITIONS)
    with pytest.raises(ValueError, match=f"{MAX_POSITIONS + 1} tokens.* {MAX_POSITIONS} positions"):
        check_length(config, MAX_POSITIONS + 1)


@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_a_sequence_longer_than_the_layers_tables_of_angles_is_refused(family: str) -> None:
    config = tiny_config(family)
    assert not has_position_table(config)
    check_length(config, MAX_POSITIONS)
    with pytest.raises(ValueError, match=f"a table of {MAX_POSITIONS} positions"):
        check_length(config, MAX_POSITIONS + 1)


@pytest.mark.parametrize(
    ("family", "limit"), [("gpt_neox", MAX_POSITIONS), ("llama", MAX_POSITIONS), ("mamba", None)]
)
def test_models_without_a_table_accept_any_length(family: str, limit: int | None) -> None:
    config = tiny_config(family)
    assert not has_position_table(config)
    assert max_positions(config) == limit
    check_length(config, 100_000)


def test_a_family_without_a_row_is_named_with_those_that_have_one() -> None:
    known = r"'persimmon'.*Known: .*gpt_neox.*mamba.*Choose"
    with pytest.raises(UnsupportedFamilyError, match=known):
        check_supported(PersimmonConfig())


def test_a_family_that_is_refused_for_a_reason_is_told_it() -> None:
    with pytest.raises(UnsupportedFamilyError, match=r"'bloom'.*a norm stands between.*Falcon-RW"):
        check_supported(BloomConfig())


def test_a_decoder_with_cross_attention_is_refused() -> None:
    with pytest.raises(UnsupportedFamilyError, match="add_cross_attention"):
        check_supported(tiny_config("gpt2", add_cross_attention=True))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="no language model head"):
        split_causal_lm(tiny("llama").base_model)
