"""Models go to fla's layout and come back with every bit; what fla cannot express is named."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.exports_fla import CLASSES, fla_config, save_as_fla
from manticore.models.imports_fla import read_fla_model
from manticore.models.modeling_mixer_lm import MixerForCausalLM

WIDTH, VOCABULARY = 32, 24
EPS = 1e-6
HEADS = {"n_heads": 2, "norm_eps": EPS}
ATTENTION = {"mixer": "mh-attention", "n_heads": 4, "qkv_bias": False, "output_bias": False}
TOKEN = {
    "retnet": {"mixer": "retention", **HEADS, "expand_value": 2.0, "output_norm": "rms"},
    "retnet without a gate": {
        "mixer": "retention", **HEADS, "output_norm": "rms", "use_gate": False,
    },
    "gla": {"mixer": "gated-linear-attention", **HEADS, "expand_key": 0.5},
    "delta_net": {"mixer": "deltanet", **HEADS},
    "delta_net without filters": {
        "mixer": "deltanet", **HEADS, "conv_size": 0, "qk_norm": "sum", "use_beta": False,
    },
    "gated_deltanet": {
        "mixer": "gated-deltanet", **HEADS, "expand_key": 0.75, "expand_value": 1.5,
    },
    "linear_attn": {
        "mixer": "linear-attention", "n_heads": 2, "normalize": "rms", "norm_eps": 16 * EPS,
    },
    "linear_attn, quadratic": {
        "mixer": "linear-attention", "n_heads": 2, "normalize": "rms", "norm_eps": 16 * EPS,
        "feature_map": "quadratic",
    },
    "linear_attn, hedgehog": {
        "mixer": "linear-attention", "n_heads": 2, "normalize": "rms", "norm_eps": 32 * EPS,
        "feature_map": "hedgehog",
    },
    "rwkv6": {"mixer": "rwkv6", "head_size": 8, "norm_eps": EPS},
    "mamba": {"mixer": "mamba", "d_state": 4, "dt_rank": 3},
    "mamba2": {"mixer": "mamba2", "d_state": 8, "head_dim": 16, "norm_eps": EPS},
    "transformer": {**ATTENTION, "n_kv_heads": 2, "window": 5, "qkv_bias": True},
}  # fmt: skip


def small_model(layers: list, **settings) -> MixerForCausalLM:
    """A model with weights, biases and norms that are all drawn."""
    norm = "layer" if "rwkv6-channel" in [layer["mixer"] for layer in layers] else "rms"
    config = MixerLMConfig(
        layers=layers, d_model=WIDTH, vocab_size=VOCABULARY, norm=norm,
        **{"norm_eps": EPS, "head_bias": False, "eos_token_id": 3, **settings},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = MixerForCausalLM.from_generator(config, generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def blocks(*tokens: dict) -> list:
    """Each token mixer with the channel mixer that fla has behind it."""
    names = {token["mixer"] for token in tokens}
    if names & {"mamba", "mamba2"}:
        return list(tokens)
    channel = {"mixer": "swiglu", "inner_width": 48}
    if "rwkv6" in names:
        channel = {"mixer": "rwkv6-channel", "expand": 1.5}
    return [layer for token in tokens for layer in (token, channel)]


@pytest.mark.parametrize("name", TOKEN)
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_a_model_comes_back_from_the_layout_of_fla_with_every_bit(
    name: str, is_tied: bool, tmp_path: Path
) -> None:
    model = small_model(blocks(TOKEN[name], TOKEN[name]), tie_word_embeddings=is_tied)
    save_as_fla(model, tmp_path)
    back = read_fla_model(tmp_path)
    state = back.state_dict()
    assert set(state) == set(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    ids = torch.arange(2 * 9).reshape(2, 9) % VOCABULARY
    torch.testing.assert_close(back(ids).logits, model(ids).logits, atol=1e-6, rtol=0)
    assert back.config.eos_token_id == 3


@pytest.mark.parametrize("name", ["retnet", "gla", "gated_deltanet", "linear_attn", "rwkv6"])
def test_a_hybrid_has_its_attention_in_the_section_for_it(name: str, tmp_path: Path) -> None:
    wide = {**ATTENTION, "n_kv_heads": 1, "rotary_base": 500.0}
    model = small_model(blocks(TOKEN[name], ATTENTION, TOKEN[name], wide, ATTENTION))
    save_as_fla(model, tmp_path)
    sections = json.loads((tmp_path / "config.json").read_text())["attn"]
    assert [section["layers"] for section in sections] == [[1, 4], [3]]
    back = read_fla_model(tmp_path)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(back(ids).logits, model(ids).logits, atol=1e-6, rtol=0)


def test_generated_tokens_are_the_same_after_the_way_there_and_back(tmp_path: Path) -> None:
    model = small_model(blocks(TOKEN["gated_deltanet"], ATTENTION))
    model.generation_config.max_new_tokens = 7
    save_as_fla(model, tmp_path)
    back = read_fla_model(tmp_path)
    ids = torch.arange(5)[None]
    assert back.generation_config.max_new_tokens == 7
    assert torch.equal(back.generate(ids), model.generate(ids))


def test_weights_in_bfloat16_stay_so(tmp_path: Path) -> None:
    model = small_model(blocks(TOKEN["gla"])).to(torch.bfloat16)
    save_as_fla(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert read_fla_model(tmp_path).dtype == torch.bfloat16


REFUSED = {
    "a decay's normaliser": ([{**TOKEN["gla"], "gate_normalizer": 8.0}], {}, "gate_normalizer=8.0"),
    "another norm of heads": (
        [{**TOKEN["retnet"], "output_norm": "group"}], {}, "output_norm='group'.* 'rms'",
    ),
    "partial rotation": (
        [{**ATTENTION, "rotary_fraction": 0.5}], {}, "rotary_fraction=0.5.* 1.0",
    ),
    "a bias of the output": ([{**ATTENTION, "output_bias": True}], {}, "output_bias=True"),
    "layers that differ": (
        [TOKEN["gla"], {**TOKEN["gla"], "n_heads": 4}], {}, r"layer 2 .* n_heads=4.* it is 2",
    ),
    "another epsilon": (
        [TOKEN["delta_net"]], {"norm_eps": 1e-5}, "norm_eps of the blocks is 1e-05",
    ),
    "a bias of the head": ([TOKEN["gla"]], {"head_bias": True}, "head_bias is True here"),
    "layer norms": ([TOKEN["gla"]], {"norm": "layer"}, "norm is 'layer' here and 'rms' there"),
    "two mixers": ([TOKEN["gla"], TOKEN["retnet"]], {}, "gla and retnet.* one of them"),
    "a mixer of ours": ([{"mixer": "hyena"}], {}, "Layer 0 is hyena, and .* has one of deltanet, "),
    "a sum that divides": (
        [{**TOKEN["linear_attn"], "normalize": "sum"}], {}, "normalize='sum'.* 'rms'",
    ),
    "a feature map": (
        [{**TOKEN["linear_attn"], "feature_map": "taylor"}], {}, "feature_map='taylor' is none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_fla_does_not_compute_is_refused_by_name(name: str) -> None:
    tokens, settings, message = REFUSED[name]
    config = MixerLMConfig(
        layers=blocks(*tokens), d_model=WIDTH, vocab_size=VOCABULARY,
        **{"norm_eps": EPS, "head_bias": False, **settings},
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        fla_config(config)


def test_a_model_without_channel_mixers_is_refused() -> None:
    config = MixerLMConfig(layers=[TOKEN["gla"], TOKEN["gla"]], d_model=WIDTH, head_bias=False)
    with pytest.raises(ValueError, match=r"Layer 1 is gated-linear-attention, .* has swiglu there"):
        fla_config(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of fla's gla."""
    save_as_fla(small_model(blocks(TOKEN["gla"])), tmp_path)
    return tmp_path


def _change(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_tensor_that_no_layer_has_is_refused(folder: Path) -> None:
    _change(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"1 tensors .* \(first: extra\)"):
        read_fla_model(folder)


def test_a_tensor_that_is_missing_is_named(folder: Path) -> None:
    _change(folder, lambda tensors: tensors.pop("model.layers.0.attn.gk_proj.1.bias"))
    with pytest.raises(ValueError, match=r"lack model\.layers\.0\.attn\.gk_proj\.1\.bias"):
        read_fla_model(folder)


def test_a_tensor_of_another_size_is_named(folder: Path) -> None:
    _change(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(7, WIDTH)}))
    with pytest.raises(ValueError, match=r"lm_head.weight has the shape \(7, 32\)"):
        read_fla_model(folder)


def test_a_norm_apart_from_its_gate_is_the_same_norm(folder: Path) -> None:
    before = read_fla_model(folder).state_dict()
    fused, apart = (f"model.layers.0.attn.{n}.weight" for n in ("g_norm_swish_gate", "g_norm"))
    _change(folder, lambda tensors: tensors.update({apart: tensors.pop(fused)}))
    after = read_fla_model(folder).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_shards_are_read_together(folder: Path) -> None:
    before, tensors = read_fla_model(folder), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    after = read_fla_model(folder).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.state_dict().items())


def test_a_hedgehog_with_a_bias_is_refused(tmp_path: Path) -> None:
    save_as_fla(small_model(blocks(TOKEN["linear_attn, hedgehog"])), tmp_path)
    name = "model.layers.0.attn.feature_map_q.layer.bias"
    _change(tmp_path, lambda tensors: tensors[name].add_(1))
    with pytest.raises(ValueError, match=f"{name} is not zero"):
        read_fla_model(tmp_path)


@pytest.mark.parametrize("name", ["retnet", "gla", "rwkv6"])
@torch.no_grad()
def test_another_epsilon_is_folded_where_queries_enter_linearly(name: str, tmp_path: Path) -> None:
    model = small_model(blocks({**TOKEN[name], "norm_eps": 0.01})).double()
    save_as_fla(model, tmp_path)
    back = read_fla_model(tmp_path)
    assert back.config.specs()[0].norm_eps == EPS
    ids = torch.arange(18).reshape(2, 9)
    # Float64, where folding rounds next to nothing.
    torch.testing.assert_close(back(ids).logits, model(ids).logits, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_norm_behind_the_table_of_rwkv_is_folded_into_its_rows(tmp_path: Path) -> None:
    model = small_model(blocks(TOKEN["rwkv6"]))
    save_as_fla(model, tmp_path)
    weight, bias = torch.rand(WIDTH) + 0.5, torch.rand(WIDTH)
    names = [f"model.layers.0.pre_norm.{leaf}" for leaf in ("weight", "bias")]
    _change(tmp_path, lambda tensors: tensors.update(zip(names, (weight, bias), strict=True)))
    table = model.model.embed_tokens.weight
    table.copy_(F.layer_norm(table, (WIDTH,), weight, bias, EPS))
    ids = torch.arange(9)[None]
    assert torch.equal(read_fla_model(tmp_path)(ids).logits, model(ids).logits)


def test_residual_lines_that_read_other_layers_are_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attnres_block_size": 2}))
    with pytest.raises(ValueError, match="attnres_block_size=2 has no counterpart"):
        read_fla_model(folder)


def test_every_model_has_a_class_and_an_example_here() -> None:
    examples = {name.split(",")[0].split(" ")[0] for name in TOKEN}
    assert set(CLASSES) == examples
