"""LoRA reaches the layers of every component; frozen components may be quantized."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from manticore import ManticoreForCausalLM
from tests.hybrids.pairs import build, ids_for, members, random_rows, reloaded
from tests.models.tiny import tiny

# Layers that each family's adapters sit on, all matrix products that a mixer or an MLP has.
TARGETS = {
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "mamba": ["in_proj", "x_proj", "out_proj"],
    "gpt_neo": ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
BOTH = pytest.mark.parametrize("mixing", ["streams", "shared"])
# W x + B A x and (W + B A) x round differently, and twenty layers follow; logits are about 10.
ROUNDING = 1e-4


def hybrid_of(mixing: str, count: int = 4) -> ManticoreForCausalLM:
    hybrid = build(members(count), num_blocks=2, mixing=mixing)
    hybrid.set_mixture(random_rows(2, count))
    return hybrid


def with_adapters(hybrid: ManticoreForCausalLM, targets: Any, **options: Any) -> PeftModel:
    """Adapters that are not zero, so that they show."""
    adapted = get_peft_model(hybrid, LoraConfig(target_modules=targets, r=2, **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(ids_for()).logits


def all_targets() -> list[str]:
    return sorted({name for names in TARGETS.values() for name in names})


@BOTH
def test_every_component_gets_adapters_and_gradients_reach_only_them(mixing: str) -> None:
    hybrid = hybrid_of(mixing)
    adapted = with_adapters(hybrid, all_targets(), task_type="CAUSAL_LM").train()
    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    for k, component in enumerate(hybrid.model.components):
        mine = [name for name in names if f"components.{k}." in name]
        expected = len(TARGETS[component.config.model_type]) * component.config.num_hidden_layers
        assert len(mine) == expected
    adapted(input_ids=ids_for(), labels=ids_for()).loss.backward()
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@BOTH
def test_merged_equals_unmerged_and_a_saved_adapter_loads(mixing: str, tmp_path: Path) -> None:
    hybrid = hybrid_of(mixing)
    untouched = copy.deepcopy(hybrid)
    adapted = with_adapters(hybrid, all_targets())
    expected = logits(adapted)
    assert (expected - logits(untouched)).abs().max() > 0.1
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(untouched, tmp_path)
    assert torch.equal(logits(loaded), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is ManticoreForCausalLM
    torch.testing.assert_close(logits(merged), expected, atol=ROUNDING, rtol=ROUNDING)
    # peft looks at the host's tables only; those of the other components must stay tied.
    again = reloaded(merged, tmp_path / "merged")
    assert torch.equal(logits(again), logits(merged))


def test_conv1d_layers_of_gpt2_take_adapters() -> None:
    hybrid = build([tiny("gpt2"), tiny("llama", seed=1)], num_blocks=2)
    adapted = with_adapters(hybrid, TARGETS["gpt2"], fan_in_fan_out=True)
    expected = logits(adapted)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=ROUNDING, rtol=ROUNDING)


@BOTH
def test_adapters_on_the_maps_between_components_are_not_bypassed(mixing: str) -> None:
    hybrid = hybrid_of(mixing, 2)
    before = logits(hybrid)
    maps = r".*(translators\.boundaries\.\d\.\d_to_\d|projectors\.project_\w+\.\d\.\d)"
    adapted = with_adapters(hybrid, maps)
    after = logits(adapted)
    assert (after - before).abs().max() > 1e-3
    adapted(input_ids=ids_for(), labels=ids_for()).loss.backward()
    for name, parameter in adapted.named_parameters():
        assert ("lora" in name) == (parameter.grad is not None), name
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), after, atol=ROUNDING, rtol=ROUNDING)


def test_adapters_with_all_layers_and_the_mixture_trained_along(tmp_path: Path) -> None:
    hybrid = hybrid_of("streams", 2)
    untouched = copy.deepcopy(hybrid)
    adapted = with_adapters(hybrid, "all-linear", modules_to_save=["rows"])
    rows = [p for n, p in adapted.named_parameters() if "rows.modules_to_save" in n]
    adapted(input_ids=ids_for(), labels=ids_for()).loss.backward()
    assert rows[0].grad.abs().sum() > 0
    with torch.no_grad():
        rows[0].add_(torch.tensor([1.0, -1.0]))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(untouched, tmp_path)
    assert torch.equal(logits(loaded), logits(adapted))


def test_adapted_hybrid_generates_with_its_cache() -> None:
    adapted = with_adapters(hybrid_of("streams", 2), all_targets(), task_type="CAUSAL_LM")
    outs = [
        adapted.generate(
            input_ids=ids_for(), max_new_tokens=6, do_sample=False, use_cache=use_cache
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*outs)


def test_adapters_train_with_gradient_checkpointing() -> None:
    gradients = []
    for checkpointed in (False, True):
        hybrid = hybrid_of("streams", 2)
        adapted = with_adapters(hybrid, all_targets()).train()
        if checkpointed:
            new = hasattr(hybrid, "activation_checkpointing_enable")
            name = "activation" if new else "gradient"
            getattr(hybrid, f"{name}_checkpointing_enable")({"use_reentrant": False})
        adapted(input_ids=ids_for(), labels=ids_for()).loss.backward()
        gradients.append([p.grad for n, p in adapted.named_parameters() if "lora" in n])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("bitsandbytes")
    folders = []
    for family in ("gpt_neox", "mamba"):  # 64: one block of the quantizer
        folder = tmp_path_factory.mktemp(family)
        tiny(family, hidden_size=64).save_pretrained(folder)
        folders.append(str(folder))
    return folders


def quantization(bits: int) -> Any:
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


# Largest error of the logits (which are about 10): measured 0.93 and 0.05 on these weights.
@pytest.mark.parametrize(("bits", "tolerance"), [(4, 2.0), (8, 0.2)])
def test_quantized_components_stay_close_and_train_adapters(
    pair: list[str], bits: int, tolerance: float, tmp_path: Path
) -> None:
    exact = ManticoreForCausalLM.from_components(pair, num_blocks=2)
    small = ManticoreForCausalLM.from_components(
        pair, num_blocks=2, quantization_config=quantization(bits)
    ).train()  # on a CPU, evaluation packs 4-bit weights for good, and they train no more
    kind = {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    found = [n for n, m in small.named_modules() if type(m).__name__ == kind]
    assert {n.split(".")[2] for n in found} == {"0", "1"}
    assert not any("dt_proj" in n or "heads" in n or "translators" in n for n in found)
    assert small.model.rows.blocks.dtype == torch.float32
    assert 0 < (logits(small) - logits(exact)).abs().max() < tolerance
    adapted = get_peft_model(small, LoraConfig(target_modules=["in_proj", "query_key_value"]))
    adapted(input_ids=ids_for(), labels=ids_for()).loss.backward()
    for k in range(2):
        some = [p for n, p in adapted.named_parameters() if f"s.{k}." in n and "lora_B" in n]
        assert all(p.grad.abs().sum() > 0 for p in some)
    with pytest.raises(ValueError, match="Component 0 is quantized"):
        adapted.unload().save_pretrained(tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_hybrid_loaded_quantized_saves_and_loads_again(
    pair: list[str], bits: int, tmp_path: Path
) -> None:
    ManticoreForCausalLM.from_components(pair).save_pretrained(tmp_path / "whole")
    small = ManticoreForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=quantization(bits)
    )
    assert type(small.model.translators.at(0, 0, 1)) is nn.Linear
    small.train().save_pretrained(tmp_path / "small")
    again = ManticoreForCausalLM.from_pretrained(tmp_path / "small").train()
    assert torch.equal(logits(again), logits(small))
