"""MoRe on a model that torchao quantized to 8 bits: as on a plain one with the same weights."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, TorchAoConfig

from manticore import MoReConfig

pytest.importorskip("torchao")

IDS = torch.tensor([[5, 3, 9, 2], [1, 8, 7, 30]])
TARGETS = ["q_proj", "down_proj"]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[nn.Module, nn.Module]:
    """The quantized model as transformers loads it, and a plain one with what it stands for."""
    from torchao.quantization import Int8WeightOnlyConfig

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        plain = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=40))
    plain.save_pretrained(tmp_path)
    config = TorchAoConfig(Int8WeightOnlyConfig())
    quantized = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    for name, module in quantized.named_modules():
        if isinstance(module, nn.Linear) and hasattr(module.weight, "dequantize"):
            with torch.no_grad():
                plain.get_submodule(name).weight.copy_(module.weight.dequantize())
    return quantized.eval(), plain.eval()


def adapted(model: nn.Module) -> peft.PeftModel:
    config = MoReConfig(target_modules=TARGETS, nblocks=4, block_rank=2, init_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return peft.get_peft_model(model, config)


def test_outputs_and_gradients_are_those_of_a_plain_model_with_the_same_weights(pair) -> None:
    quantized, plain = (adapted(model) for model in pair)
    losses = [model(IDS).logits.square().mean() for model in (quantized, plain)]
    # The integer kernel and the plain one add up in another order.
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-4)
    for loss in losses:
        loss.backward()
    found, wanted = (
        {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        for model in (quantized, plain)
    )
    assert set(found) == set(wanted)
    assert len(found) == 2 * len(TARGETS)
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name], atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_merging_rounds_to_eight_bits_and_unmerging_gives_the_very_weights_back(pair) -> None:
    quantized, plain = (adapted(model) for model in pair)
    before, wanted = pair[0](IDS).logits, plain(IDS).logits
    with quantized.disable_adapter():
        base = quantized(IDS).logits
    quantized.merge_adapter()
    merged = quantized(IDS).logits
    rounding, change = (merged - wanted).abs().max(), (base - wanted).abs().max()
    # A step of eight bits is 1/127 of a row's largest weight.
    assert rounding < 0.05 * change, (float(rounding), float(change))
    quantized.unmerge_adapter()
    assert torch.equal(quantized(IDS).logits, before)
