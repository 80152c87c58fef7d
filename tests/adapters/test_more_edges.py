"""MoRe adapters where things go wrong: bad input, broken weights, drift, registration."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from manticore import MoReConfig, transfer
from manticore.adapters.more import MoReLayer


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 6))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=32))


def random_adapter(model: nn.Module, **settings):
    settings = {"target_modules": ["0", "2"], "init_weights": False, **settings}
    return peft.get_peft_model(model, MoReConfig(**settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_merge_cycles_with_dropout_leave_the_base_bitwise_unchanged(dtype):
    base = mlp().to(dtype)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = random_adapter(base, more_dropout=0.5).train()
    for _ in range(100):
        model.merge_adapter()
        assert not torch.equal(model.base_model.model[0].weight, before["0.weight"])
        model.unmerge_adapter()
    after = model.unload().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("leave", ["merge_adapter", "merge_and_unload"])
def test_a_broken_adapter_on_the_last_layer_leaves_every_base_weight_untouched(value, leave):
    base = mlp()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = random_adapter(base)
    with torch.no_grad():
        model.base_model.model[2].more_A["default"][0, 0, 0] = value
    with pytest.raises(ValueError, match=r"The adapter default seems to be broken"):
        getattr(model, leave)(safe_merge=True)
    assert not any(m.merged for m in model.modules() if isinstance(m, MoReLayer))
    after = model.unload().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_dropout_acts_on_the_input_of_the_adapter_while_training():
    model = random_adapter(nn.Sequential(nn.Linear(12, 20)), target_modules=["0"], more_dropout=0.5)
    layer, x = model.base_model.model[0], torch.randn(3, 12)
    torch.manual_seed(5)
    found = model.train()(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5)
    wanted = layer.base_layer(x) + dropped @ layer.get_delta_weight("default").T
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_rank": 0}, "block_rank=0 has to be a whole number, at least 1"),
        ({"nblocks": -1}, "nblocks=-1 has to be a whole number"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"layout": "banded"}, "Unknown layout 'banded'. Known: strided, contiguous"),
        ({"bias": "lora_only"}, "Unknown bias 'lora_only'. Known: none, all, more_only"),
        ({"more_dropout": 1.0}, "more_dropout=1.0"),
        ({"more_dropout": "half"}, "more_dropout='half' has to be a number"),
        ({"init_weights": "pissa"}, "init_weights='pissa' has to be True"),
        ({"target_modules": "q", "layers_to_transform": [0]}, "`layers_to_transform` cannot be"),
        ({"format_version": 2}, "by a newer Manticore; .* pip install -U manticore-lm"),
    ],
)
def test_impossible_settings_are_refused_when_they_are_made(settings, message):
    with pytest.raises(ValueError, match=message):
        MoReConfig(**settings)


def test_too_many_blocks_are_refused_before_any_layer_is_replaced():
    base = mlp()
    with pytest.raises(ValueError, match=r"nblocks=8 exceeds .* at most 6\. The layer is '2'"):
        peft.get_peft_model(base, MoReConfig(nblocks=8, target_modules=["0", "2"]))
    assert not any(isinstance(module, MoReLayer) for module in base.modules())


def test_names_that_match_nothing_get_the_closest_ones():
    with pytest.raises(ValueError, match=r"not found .* Closest names: 'q_prj': q_proj"):
        peft.get_peft_model(llama(), MoReConfig(target_modules=["q_prj"]))
    with pytest.warns(UserWarning, match=r"\['v_prj'\] match no module\. Closest names: 'v_prj'"):
        peft.get_peft_model(llama(), MoReConfig(target_modules=["q_proj", "v_prj"]))
    with pytest.raises(ValueError, match="layers_to_transform") as beyond:
        peft.get_peft_model(llama(), MoReConfig(target_modules=["q_proj"], layers_to_transform=[9]))
    assert "Closest names" not in str(beyond.value)  # the name is right, the layer is not


def test_the_output_projection_of_multi_head_attention_is_refused():
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    for targets in (["out_proj"], r".*out_proj"):
        with pytest.raises(TypeError, match=r"never calls it: an adapter there would do nothing"):
            peft.get_peft_model(attention, MoReConfig(target_modules=targets, nblocks=2))
    with pytest.raises(TypeError, match=r"\(MultiheadAttention\) is not supported"):
        peft.get_peft_model(attention, MoReConfig(target_modules=["attention"]))


@pytest.mark.parametrize("excluded", [None, ["first"], r"fir.t"])
def test_all_linear_leaves_out_the_output_projection_of_multi_head_attention(excluded):
    layers = {"first": nn.Linear(8, 8), "second": nn.Linear(8, 8)}
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), **layers})
    config = MoReConfig(target_modules="all-linear", exclude_modules=excluded, nblocks=2)
    with pytest.warns(UserWarning, match=r"leaves out attention\.out_proj: nn\.MultiheadAttention"):
        wrapped = peft.get_peft_model(model, config)
    found = {name for name, module in wrapped.named_modules() if isinstance(module, MoReLayer)}
    wanted = ["second"] if excluded else ["first", "second"]
    assert found == {f"base_model.model.{name}" for name in wanted}


def test_patterns_and_layers_choose_shapes_by_name():
    config = MoReConfig(
        target_modules=["q_proj", "k_proj", "v_proj"],
        rank_pattern={"k_proj": 2, r"layers\.2\.self_attn\.q_proj": 7},
        nblocks_pattern={"v_proj": 2},
        layers_to_transform=[1, 2],
    )
    model = peft.get_peft_model(llama(), config)
    found = {
        name.removeprefix("base_model.model.model.layers.").replace(".self_attn", ""): (
            module.shapes["default"].nblocks, module.shapes["default"].block_rank
        )
        for name, module in model.named_modules() if isinstance(module, MoReLayer)
    }  # fmt: skip
    assert found == {
        "1.q_proj": (4, 4), "1.k_proj": (4, 2), "1.v_proj": (2, 4),
        "2.q_proj": (4, 7), "2.k_proj": (4, 2), "2.v_proj": (2, 4),
    }  # fmt: skip


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_of_other_shapes_is_refused_before_a_weight_is_written(
    tmp_path, low_cpu_mem_usage
):
    random_adapter(mlp(), block_rank=3).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    settings["rank_pattern"] = {"2": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    base = mlp()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with pytest.raises(ValueError, match=r"other shapes .*\n.*saved \(4, 3, 5\), here \(4, 2, 5\)"):
        peft.PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    after = {name.replace("base_layer.", ""): value for name, value in base.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    # Whoever asks for it may ignore them.
    with pytest.warns(UserWarning, match="ignore_mismatched_sizes"):
        peft.PeftModel.from_pretrained(mlp(), tmp_path, ignore_mismatched_sizes=True)


def test_a_newer_adapter_is_refused_and_unknown_settings_alone_only_warn(tmp_path):
    random_adapter(mlp()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"new_setting": 1}
    file.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.warns(UserWarning, match="new_setting"):
        peft.PeftModel.from_pretrained(mlp(), tmp_path)
    file.write_text(json.dumps(settings | {"format_version": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match="newer Manticore"):
        peft.PeftModel.from_pretrained(mlp(), tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["default", "typo"], "non-existing adapter.*typo"),
        (["default"], "Length of `adapter_names`"),
    ],
)
def test_wrong_names_of_adapters_for_rows_are_refused(names, message):
    model = random_adapter(mlp()).eval()
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(2, 12), adapter_names=names)
    with pytest.raises(ValueError, match="training mode"):
        model.train()(torch.zeros(2, 12), adapter_names=["default"] * 2)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="merged adapters"):
        model(torch.zeros(2, 12), adapter_names=["default"] * 2)


def test_generating_by_beams_keeps_every_row_with_its_adapter():
    model = peft.get_peft_model(llama(), MoReConfig(init_weights=False)).eval()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    settings = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mixed = model.generate(input_ids=ids, adapter_names=["__base__", "default"], **settings)
    with_adapter = model.generate(input_ids=ids, **settings)
    with model.disable_adapter():
        without = model.generate(input_ids=ids, **settings)
    assert torch.equal(mixed[0], without[0])
    assert torch.equal(mixed[1], with_adapter[1])


def test_transformers_loads_and_adds_adapters_itself(tmp_path):
    model = peft.get_peft_model(llama(), MoReConfig(init_weights=False)).eval()
    ids = torch.tensor([[1, 2, 3]])
    wanted = model(ids).logits
    model.save_pretrained(tmp_path)
    loaded = llama().eval()
    loaded.load_adapter(str(tmp_path))
    torch.testing.assert_close(loaded(ids).logits, wanted)
    added = llama().eval()
    plain = added(ids).logits
    added.add_adapter(MoReConfig())
    torch.testing.assert_close(added(ids).logits, plain)


_ORDERS = [
    "import manticore, peft",
    "from manticore import MoReConfig; import peft",
    pytest.param("import peft, manticore", marks=pytest.mark.slow),
    pytest.param("import manticore.adapters.more.config, peft", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("order", _ORDERS)
def test_peft_knows_the_method_in_every_order_of_imports(order, run_python):
    code = f"{order}; print(peft.get_peft_config({{'peft_type': 'MORE'}}).nblocks)"
    assert run_python("-c", code).stdout.strip() == "4"


def test_without_manticore_a_saved_adapter_fails_with_the_documented_error(tmp_path, run_python):
    random_adapter(mlp()).save_pretrained(tmp_path)
    code = (
        "import peft\ntry:\n"
        f"    peft.PeftConfig.from_pretrained({str(tmp_path)!r})\n"
        "except KeyError as error:\n    print('KeyError', error)\n"
        "import manticore\n"
        f"print(type(peft.PeftConfig.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    assert run_python("-c", code).stdout.split("\n")[:2] == ["KeyError 'MORE'", "MoReConfig"]


def test_models_that_peft_has_no_names_for_are_adapted_wherever_an_adapter_reaches(tmp_path):
    base, _ = transfer(llama(), "retention", keep=[1])
    ids = torch.arange(8).unsqueeze(0)
    before = base(ids).logits
    model = peft.get_peft_model(base, MoReConfig(nblocks=2, block_rank=1, init_weights=False))
    layers = {
        n.split("layers.")[1][0] for n, m in model.named_modules() if isinstance(m, MoReLayer)
    }
    assert layers == {"0", "1", "2"}
    assert not torch.allclose(model(ids).logits, before)
    model.save_pretrained(tmp_path)
    saved = peft.PeftConfig.from_pretrained(tmp_path)
    assert {"q", "gate", "up", "output"} <= saved.target_modules


def test_a_model_without_a_stack_asks_for_names():
    with pytest.raises(ValueError, match="Name target_modules yourself"):
        peft.get_peft_model(mlp(), MoReConfig())
