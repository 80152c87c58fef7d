"""What PEFT's users do with adapters, on every kind of module: kinds x operations.

PEFT's own suite has such a matrix, but does not come with its wheel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from manticore import MoReConfig

WIDTHS = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


@dataclass
class Kind:
    """A model, its input, and what an adapter may target."""

    build: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    settings: dict[str, Any]
    tolerance: float = 1e-5  # float32 sums in another order


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 6))


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(30, 12, padding_idx=0), nn.Flatten(), nn.Linear(48, 5))


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=48, vocab_size=40, **WIDTHS)
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=40))


def t5() -> nn.Module:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**sizes, vocab_size=40, decoder_start_token_id=0))


def quantized(cls: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        bitsandbytes = pytest.importorskip("bitsandbytes")
        plain = nn.Linear(64, 96)
        layer = getattr(bitsandbytes.nn, cls)(
            64, 96, **({"has_fp16_weights": False} if "8" in cls else {})
        )
        layer.load_state_dict(plain.state_dict())
        return nn.Sequential(layer.to("cpu"), nn.Tanh())

    return build


IDS = torch.tensor([[5, 3, 9, 2], [1, 8, 7, 30], [4, 4, 39, 6]])
FLOATS = {"input": torch.randn(3, 10, generator=torch.Generator().manual_seed(0))}
WIDE = {"input": torch.randn(3, 64, generator=torch.Generator().manual_seed(0))}
KINDS = {
    "linear": Kind(mlp, FLOATS, {"target_modules": ["0", "2"], "nblocks": 4, "block_rank": 3}),
    "linear-regex": Kind(mlp, FLOATS, {"target_modules": "0", "layout": "contiguous"}),
    "linear-one-block": Kind(mlp, FLOATS, {"target_modules": ["2"], "nblocks": 1}),
    "embedding": Kind(embedding, {"input": IDS % 30}, {"target_modules": ["0"], "nblocks": 3}),
    "embedding-and-linear": Kind(embedding, {"input": IDS % 30}, {"target_modules": ["0", "2"]}),
    "llama": Kind(llama, {"input_ids": IDS}, {}),
    "llama-all-linear": Kind(llama, {"input_ids": IDS}, {"target_modules": "all-linear"}),
    "llama-embedding": Kind(
        llama, {"input_ids": IDS}, {"target_modules": ["embed_tokens", "k_proj"]}
    ),
    "gpt2-conv1d": Kind(gpt2, {"input_ids": IDS}, {}),
    "t5": Kind(t5, {"input_ids": IDS, "decoder_input_ids": IDS}, {}),
}
# Merging into 4 or 8 bits rounds the merged weight anew.
QUANTIZED = {
    "bits8": Kind(quantized("Linear8bitLt"), WIDE, {"target_modules": ["0"]}, 0.05),
    "bits4": Kind(quantized("Linear4bit"), WIDE, {"target_modules": ["0"]}, 0.6),
}


@pytest.fixture(params=[*KINDS, *QUANTIZED])
def kind(request) -> Kind:
    return {**KINDS, **QUANTIZED}[request.param]


def base(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    return kind.build().eval()


def config(kind: Kind, **changes) -> MoReConfig:
    return MoReConfig(**{**kind.settings, "init_weights": False, **changes})


def adapted(kind: Kind, **changes) -> Any:
    model = base(kind)
    torch.manual_seed(1)
    return peft.get_peft_model(model, config(kind, **changes)).eval()


def run(model: nn.Module, kind: Kind, **more: Any) -> Tensor:
    inputs = dict(kind.inputs)
    with torch.no_grad():  # attention rounds differently where gradients are wanted
        output = model(*inputs.values(), **more) if "input" in inputs else model(**inputs, **more)
    return getattr(output, "logits", output)


def same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that is not an adapter, by name in the base model."""
    state = {name.replace("base_layer.", ""): v for name, v in model.state_dict().items()}
    state = {name.removeprefix("base_model.model."): v for name, v in state.items()}
    return {
        name: v.clone() for name, v in state.items() if "more_" not in name and torch.is_tensor(v)
    }


def test_a_fresh_adapter_changes_nothing_bit_for_bit(kind):
    assert same(run(adapted(kind, init_weights=True), kind), run(base(kind), kind))


def test_a_random_adapter_changes_the_output_and_disabling_takes_it_back(kind):
    model, plain = adapted(kind), run(base(kind), kind)
    assert not torch.allclose(run(model, kind), plain)
    with model.disable_adapter():
        assert same(run(model, kind), plain)
    assert not torch.allclose(run(model, kind), plain)


def test_training_moves_both_factors_and_no_base_weight(kind):
    model = adapted(kind)
    before = weights(model)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert start
    assert all(".more_" in name for name in start)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        output = model(*kind.inputs.values()) if "input" in kind.inputs else model(**kind.inputs)
        getattr(output, "logits", output).square().mean().backward()
        optimizer.step()
    assert all(not same(p, start[n]) for n, p in model.named_parameters() if n in start)
    after = weights(model)
    assert all(same(after[name], value) for name, value in before.items())


def test_merged_equals_unmerged_and_unmerging_is_exact(kind):
    model = adapted(kind)
    plain, wanted, before = run(base(kind), kind), run(model, kind), weights(model)
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        merged = run(model, kind)
        assert not torch.allclose(merged, plain)
        torch.testing.assert_close(merged, wanted, atol=kind.tolerance, rtol=kind.tolerance)
        model.unmerge_adapter()
        after = weights(model)
        assert all(same(after[name], value) for name, value in before.items())
        assert same(run(model, kind), wanted)


def test_disabling_while_merged_gives_the_base_model_exactly(kind):
    model = adapted(kind)
    model.merge_adapter()
    with model.disable_adapter():
        assert same(run(model, kind), run(base(kind), kind))


@pytest.mark.parametrize("name", QUANTIZED)
def test_merging_into_quantized_weights_says_that_it_rounds(name):
    with pytest.warns(UserWarning, match="rounds them anew"):
        adapted(QUANTIZED[name]).merge_adapter()


def test_merge_and_unload_leaves_a_plain_model_that_computes_the_same(kind):
    model = adapted(kind)
    wanted = run(model, kind)
    plain = model.merge_and_unload(safe_merge=True)
    assert not any("more_" in name for name, _ in plain.named_modules())
    torch.testing.assert_close(run(plain, kind), wanted, atol=kind.tolerance, rtol=kind.tolerance)


def test_unload_gives_the_base_model_back(kind):
    assert same(run(adapted(kind).unload(), kind), run(base(kind), kind))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_loads_to_the_same_outputs(kind, tmp_path, low_cpu_mem_usage):
    if low_cpu_mem_usage and kind is QUANTIZED["bits8"]:
        pytest.skip("PEFT moves the new layer of an 8-bit model, which needs its values")
    model = adapted(kind)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        base(kind), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert same(run(again, kind), run(model, kind))
    assert isinstance(again.peft_config["default"], MoReConfig)
    # PEFT saves a whole embedding that is a target, unless told not to.
    keys = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    assert {key.rpartition(".")[2] for key in keys} == {"more_A", "more_B"}


def test_several_adapters_are_switched_added_up_and_deleted(kind):
    model, plain = adapted(kind), run(base(kind), kind)
    first = run(model, kind)
    torch.manual_seed(2)
    model.add_adapter("other", config(kind, block_rank=2))
    assert same(run(model, kind), first)
    model.set_adapter("other")
    second = run(model, kind)
    assert not torch.allclose(first, second)
    model.base_model.set_adapter(["default", "other"])
    both = run(model, kind)
    assert not torch.allclose(both, first)
    assert not torch.allclose(both, second)
    model.base_model.merge_adapter(["default", "other"])
    torch.testing.assert_close(run(model, kind), both, atol=kind.tolerance, rtol=kind.tolerance)
    model.base_model.unmerge_adapter()
    model.base_model.set_adapter("default")
    model.delete_adapter("other")
    assert same(run(model, kind), first)
    with model.disable_adapter():
        assert same(run(model, kind), plain)


def test_every_row_of_a_batch_gets_its_own_adapter(kind):
    model, rows = adapted(kind), [run(base(kind), kind)]
    rows.append(run(model, kind))
    torch.manual_seed(2)
    model.add_adapter("other", config(kind, block_rank=2))
    model.set_adapter("other")
    rows.append(run(model, kind))
    names = ["__base__", "default", "other"]
    mixed = run(model, kind, adapter_names=names)
    for row, wanted in enumerate(rows):
        # Rows are multiplied in smaller batches, which rounds differently.
        torch.testing.assert_close(mixed[row], wanted[row], atol=1e-5, rtol=1e-4)


def test_the_scale_of_adapters_is_changed_for_a_while(kind):
    model, plain = adapted(kind), run(base(kind), kind)
    wanted = run(model, kind)
    with peft.helpers.rescale_adapter_scale(model, 0.0):
        assert same(run(model, kind), plain)
    with peft.helpers.rescale_adapter_scale(model, 0.5):
        half = run(model, kind)
    assert not torch.allclose(half, plain)
    assert not torch.allclose(half, wanted)
    assert same(run(model, kind), wanted)


def test_a_model_with_adapters_can_be_copied_while_merged(kind):
    model = adapted(kind)
    wanted = run(model, kind)
    model.merge_adapter()
    again = copy.deepcopy(model)
    again.unmerge_adapter()
    assert same(run(again, kind), wanted)


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_models_keep_adapters_in_float32_and_their_own_dtype(name):
    kind = KINDS[name]
    floats = {k: v.bfloat16() if v.is_floating_point() else v for k, v in kind.inputs.items()}
    half = Kind(lambda: kind.build().to(torch.bfloat16), floats, kind.settings)
    model = adapted(half)
    assert {p.dtype for n, p in model.named_parameters() if "more_" in n} == {torch.float32}
    wanted = run(model, half)
    assert wanted.dtype == torch.bfloat16
    model.merge_adapter()
    # The merged weight is rounded to 8 bits of mantissa.
    torch.testing.assert_close(run(model, half), wanted, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", ["linear", "linear-one-block", "embedding", "gpt2-conv1d"])
def test_compiling_in_one_graph_changes_nothing(name):
    kind = KINDS[name]
    model = adapted(kind)
    compiled = torch.compile(model, backend="eager", fullgraph=name.startswith("linear"))
    torch.testing.assert_close(run(compiled, kind), run(model, kind), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2-conv1d", "t5", "llama-embedding"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    kind, found = KINDS[name], []
    for checkpointing in (False, True):
        model = adapted(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        torch.manual_seed(3)  # T5 has dropout
        model(**kind.inputs).logits.square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(found[1], found[0])
