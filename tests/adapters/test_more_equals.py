"""MoRe against independent truth: the formula, PEFT's LoRA and GraLoRA, published counts."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from manticore import MoReConfig
from manticore.adapters.monarch import MonarchShape, row_order
from manticore.adapters.more import (
    convert_to_lora,
    from_dense,
    from_gralora,
    from_lora,
    save_as_lora,
    to_gralora,
)
from tests.adapters.dense import dense_delta


class TwoLayers(nn.Module):
    def __init__(self, n: int = 12, width: int = 20, m: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up, self.down = nn.Linear(n, width), nn.Linear(width, m)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def adapted(config, **sizes):
    """A model with an adapter whose two factors are both random."""
    model = peft.get_peft_model(TwoLayers(**sizes), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def inputs(n: int = 12):
    return torch.randn(5, n, generator=torch.Generator().manual_seed(2), requires_grad=True)


def gradients(output, model, x):
    loss = (output * torch.arange(output.numel()).view_as(output)).sum()
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, [x, *wanted.values()])
    return dict(zip(["x", *wanted], found, strict=True))


@pytest.mark.parametrize("layout", ["strided", "contiguous"])
@pytest.mark.parametrize(("nblocks", "rank"), [(1, 3), (4, 2), (4, 4), (3, 5), (7, 3)])
def test_layers_equal_the_dense_formula_in_float32_with_all_gradients(nblocks, rank, layout):
    settings = {"nblocks": nblocks, "block_rank": rank, "layout": layout}
    model = adapted(MoReConfig(**settings, target_modules=["up", "down"]))
    x, base = inputs(), TwoLayers()
    y = model(x)
    up, down = model.base_model.model.up, model.base_model.model.down
    factors = [
        p for layer in (up, down) for p in (layer.more_A["default"], layer.more_B["default"])
    ]
    change = [
        dense_delta(*factors[:2], 12, 20, layout), dense_delta(*factors[2:], 20, 8, layout)
    ]  # fmt: skip
    hidden = torch.tanh(x @ (base.up.weight + change[0]).T + base.up.bias)
    wanted = hidden @ (base.down.weight + change[1]).T + base.down.bias
    torch.testing.assert_close(y, wanted, atol=1e-6, rtol=1e-5)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    ours = torch.autograd.grad((y * weights).sum(), [x, *factors])
    theirs = torch.autograd.grad((wanted * weights).sum(), [x, *factors])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(up.get_delta_weight("default"), change[0], atol=1e-6, rtol=1e-5)


def test_one_block_is_lora_with_alpha_equal_to_the_rank():
    ours = adapted(MoReConfig(nblocks=1, block_rank=3, target_modules=["up", "down"]))
    lora = peft.get_peft_model(
        TwoLayers(), peft.LoraConfig(r=3, lora_alpha=3, target_modules=["up", "down"])
    )
    for name in ("up", "down"):
        mine, theirs = getattr(ours.base_model, name), getattr(lora.base_model, name)
        theirs.lora_A["default"].weight.data = mine.more_A["default"].data[0].clone()
        theirs.lora_B["default"].weight.data = mine.more_B["default"].data[0].clone()
    x = inputs()
    torch.testing.assert_close(ours(x), lora(x), atol=1e-6, rtol=1e-6)
    found, wanted = gradients(ours(x), ours, x), gradients(lora(x), lora, x)
    for mine, theirs in zip(found.values(), wanted.values(), strict=True):
        torch.testing.assert_close(mine.view_as(theirs), theirs, atol=1e-6, rtol=1e-5)


def test_one_block_starts_as_lora_starts():
    torch.manual_seed(0)
    ours = peft.get_peft_model(TwoLayers(64, 4096), MoReConfig(nblocks=1, target_modules=["down"]))
    torch.manual_seed(0)
    lora = peft.get_peft_model(TwoLayers(64, 4096), peft.LoraConfig(r=4, target_modules=["down"]))
    mine = ours.base_model.down.more_A["default"]
    theirs = lora.base_model.down.lora_A["default"].weight
    bound = 4096**-0.5
    assert mine.abs().max() <= bound
    assert theirs.abs().max() <= bound
    torch.testing.assert_close(mine.std(), theirs.std(), rtol=0.03, atol=0)  # 16,384 draws
    assert not ours.base_model.down.more_B["default"].any()


def test_contiguous_more_is_gralora_and_back():
    config = MoReConfig(nblocks=4, block_rank=8, layout="contiguous", target_modules=["up", "down"])
    ours, x = adapted(config), inputs()
    gralora_config, weights = to_gralora(ours)
    gralora = peft.get_peft_model(TwoLayers(), gralora_config).eval()
    assert not peft.set_peft_model_state_dict(gralora, weights).unexpected_keys
    torch.testing.assert_close(gralora(x), ours(x), atol=1e-6, rtol=1e-5)
    gralora.base_model.peft_config["default"].alpha = 16
    back_config, back = from_gralora(gralora_config, peft.get_peft_model_state_dict(gralora))
    assert (back_config.nblocks, back_config.block_rank) == (4, 8)
    again = peft.get_peft_model(TwoLayers(), back_config).eval()
    back = {k: v / 2 if k.endswith("more_B") else v for k, v in back.items()}  # undo alpha 16
    peft.set_peft_model_state_dict(again, back)
    torch.testing.assert_close(again(x), ours(x), atol=1e-6, rtol=1e-5)


def test_strided_more_is_gralora_with_its_rows_in_the_documented_order():
    ours = adapted(MoReConfig(nblocks=4, block_rank=4, target_modules=["up"]))
    with pytest.raises(ValueError, match="only up to the order of output rows"):
        to_gralora(ours)
    config, weights = to_gralora(ours, permuted_rows=True)
    gralora = peft.get_peft_model(TwoLayers(), config)
    peft.set_peft_model_state_dict(gralora, weights)
    theirs = gralora.base_model.up.get_delta_weight("default")
    order = row_order(MonarchShape(in_features=12, out_features=20, nblocks=4, block_rank=4))
    torch.testing.assert_close(ours.base_model.up.get_delta_weight("default"), theirs[order])


@pytest.mark.parametrize("change", [{"block_rank": 6}, {"nblocks": 3}, {"rank_pattern": {"up": 8}}])
def test_what_gralora_cannot_hold_is_refused(change):
    settings = {"nblocks": 4, "block_rank": 4, "layout": "contiguous", **change}
    with pytest.raises(ValueError, match="convert_to_lora has no such condition"):
        to_gralora(adapted(MoReConfig(**settings, target_modules=["up", "down"])))


@pytest.mark.parametrize(
    "change",
    [{}, {"nblocks": 7, "block_rank": 3}, {"rank_pattern": {"up": 1}}, {"layout": "contiguous"}],
)
def test_a_converted_lora_adapter_gives_the_same_outputs(change, tmp_path):
    ours, x = adapted(MoReConfig(**{"target_modules": ["up", "down"], **change})), inputs()
    save_as_lora(tmp_path, ours)
    lora = peft.PeftModel.from_pretrained(TwoLayers(), tmp_path).eval()
    torch.testing.assert_close(lora(x), ours(x), atol=1e-6, rtol=1e-5)
    assert lora.peft_config["default"].peft_type == "LORA"


def test_pefts_own_conversion_is_exact_at_the_full_rank():
    ours, x = adapted(MoReConfig(nblocks=2, block_rank=4, target_modules=["up", "down"])), inputs()
    config, weights = peft.convert_to_lora(ours, rank=8)
    lora = peft.get_peft_model(TwoLayers(), config).eval()
    peft.set_peft_model_state_dict(lora, weights)
    torch.testing.assert_close(lora(x), ours(x), atol=1e-5, rtol=1e-4)  # SVD in float32


@pytest.mark.parametrize("nblocks", [1, 3, 4])
def test_a_lora_adapter_becomes_more_of_any_number_of_blocks(nblocks):
    config = peft.LoraConfig(
        r=2, lora_alpha=6, rank_pattern={"up": 3}, target_modules=["up", "down"]
    )
    lora, x = adapted(config), inputs()
    made, weights = from_lora(config, peft.get_peft_model_state_dict(lora), nblocks)
    ours = peft.get_peft_model(TwoLayers(), made).eval()
    assert not peft.set_peft_model_state_dict(ours, weights).unexpected_keys
    torch.testing.assert_close(ours(x), lora(x), atol=1e-6, rtol=1e-5)


def test_dense_changes_are_approximated_and_the_loss_is_reported():
    ours = adapted(MoReConfig(nblocks=2, block_rank=4, target_modules=["up", "down"]))
    other = adapted(MoReConfig(nblocks=2, block_rank=4, target_modules=["up", "down"]))
    wanted = {name: getattr(ours.base_model, name).get_delta_weight("default") for name in ["up"]}
    wanted["down"] = torch.randn(8, 20, generator=torch.Generator().manual_seed(3))
    lost = from_dense(other, wanted)
    assert lost["up"] < 1e-10
    left = other.base_model.down.get_delta_weight("default").detach() - wanted["down"]
    assert 0.05 < lost["down"] < 1
    assert lost["down"] == pytest.approx(float(left.square().sum() / wanted["down"].square().sum()))
    with pytest.raises(ValueError, match=r"No adapter 'default' on left\. Known: up, down"):
        from_dense(other, {"left": torch.zeros(1)})


# Parameters of one layer kind times layers; the counts are those of the paper's models.
ROBERTA_QKV = [(1024, 1024)] * 3 * 24
LLAMA_QKV = [(4096, 4096)] * 3 * 32
LLAMA_FIVE = LLAMA_QKV + [(4096, 11008), (11008, 4096)] * 32
LLAMA_ALL = LLAMA_QKV + [(4096, 4096), (4096, 11008), (4096, 11008), (11008, 4096)] * 32
COUNTS = [
    (ROBERTA_QKV, {(4, 1): 147_456, (4, 2): 294_912, (4, 4): 589_824, (4, 8): 1_179_648,
                   (4, 16): 2_359_296, (8, 4): 589_824}),
    (LLAMA_QKV, {(4, 1): 786_432, (4, 2): 1_572_864, (4, 4): 3_145_728, (4, 8): 6_291_456,
                 (4, 16): 12_582_912, (8, 4): 3_145_728}),
    (LLAMA_FIVE, {(4, 1): 1_753_088, (4, 2): 3_506_176, (4, 4): 7_012_352, (4, 8): 14_024_704,
                  (4, 16): 28_049_408, (8, 4): 7_012_352}),
    (LLAMA_ALL, {(4, 1): 2_498_560, (4, 2): 4_997_120, (4, 4): 9_994_240, (4, 8): 19_988_480,
                 (4, 16): 39_976_960, (8, 4): 9_994_240}),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "counts"), COUNTS)
def test_parameter_counts_are_the_published_ones(layers, counts):
    for (nblocks, rank), wanted in counts.items():
        total = sum(
            MonarchShape(
                in_features=n, out_features=m, nblocks=nblocks, block_rank=rank
            ).num_parameters
            for n, m in layers
        )
        assert total == wanted


def test_a_roberta_large_on_no_device_counts_as_published():
    from transformers import RobertaConfig, RobertaModel

    with torch.device("meta"):
        base = RobertaModel(
            RobertaConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                num_attention_heads=16, vocab_size=50265, max_position_embeddings=514,
            )
        )  # fmt: skip
        config = MoReConfig(target_modules=["query", "key", "value"])
        model = peft.get_peft_model(base, config)
    assert model.get_nb_trainable_parameters()[0] == 589_824


def test_convert_to_lora_says_when_there_is_nothing_to_convert():
    with pytest.raises(ValueError, match="no MoRe adapter named 'other'"):
        convert_to_lora(adapted(MoReConfig(target_modules=["up"])), "other")
