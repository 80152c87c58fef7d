"""Layouts that a class of transformers expresses: the same weights give the same logits there.

These are independent truths for whole hybrids: their windows, their mixers among kept attention,
their padding.
"""

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from manticore.conversion.transfer import transfer
from tests.conversion.models import converted, maximal, pad_left
from tests.models.tiny import tiny, token_ids

MAMBA2 = {"mixer": "mamba2", "head_dim": 8, "norm_eps": 1e-6}


WITH_WINDOWS = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "ministral", "olmo2": "olmo3"}
"""Source family -> the family whose `layer_types` mix windows with full attention."""


@pytest.mark.parametrize("family", WITH_WINDOWS)
@torch.no_grad()
def test_windows_among_full_attention_are_a_stock_class(family):
    source = tiny(family)
    n_layers = source.config.num_hidden_layers
    kinds = (["sliding_attention", "full_attention", "sliding_attention"] * n_layers)[:n_layers]
    stock = AutoModelForCausalLM.from_config(_windowed(source, kinds)).eval()
    stock.load_state_dict(source.state_dict())
    window = {"mixer": "sliding-attention", "window": 9}
    target = [window if kind == "sliding_attention" else "attention" for kind in kinds]
    model, _ = transfer(source, target, copy="all")
    ids = token_ids(source, 2, 40)
    assert maximal(source(ids).logits - stock(ids).logits) > 0.01  # the windows matter
    assert maximal(model(ids).logits - stock(ids).logits) < 1e-5


@torch.no_grad()
def test_a_llama_with_windows_everywhere_is_a_mistral():
    source = tiny("llama")
    stock = MistralForCausalLM(MistralConfig(**_same(source), sliding_window=9)).eval()
    stock.load_state_dict(source.state_dict())
    model, _ = transfer(source, {"mixer": "sliding-attention", "window": 9}, copy="all")
    ids = token_ids(source, 2, 40)
    assert maximal(model(ids).logits - stock(ids).logits) < 1e-5


@torch.no_grad()
def test_mamba2_among_a_llamas_attention_is_a_granite_hybrid():
    model = converted([MAMBA2, "attention", MAMBA2, MAMBA2], "llama", copy="paper")
    stock = granite_of(model)
    rows = [token_ids(model, 1, length, seed=length)[0] for length in (40, 13, 1)]
    for row in rows:
        assert maximal(model(row[None]).logits - stock(row[None]).logits) < 1e-5
    ids, mask = pad_left(rows, 2)
    real = mask.bool()
    ours, theirs = (m(ids, attention_mask=mask).logits[real] for m in (model, stock))
    assert maximal(ours - theirs) < 1e-5
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    generated = [m.generate(ids, attention_mask=mask, **options) for m in (model, stock)]
    assert torch.equal(*generated)


def granite_of(model):
    """The same model in the stock class of Granite's hybrids."""
    block, spec = model.config.block_spec, model.config.specs()[0]
    names = [layer["mixer"] for layer in model.config.layers]
    config = GraniteMoeHybridConfig(
        vocab_size=block.vocab_size, hidden_size=block.hidden_size,
        num_hidden_layers=block.n_layers, num_attention_heads=block.n_heads,
        num_key_value_heads=block.n_kv_heads, rms_norm_eps=block.norm_eps,
        attention_multiplier=block.score_scales[0], num_local_experts=0,
        shared_intermediate_size=block.intermediate_size, position_embedding_type="rope",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        layer_types=["linear_attention" if n == "mamba2" else "full_attention" for n in names],
        mamba_n_heads=spec.n_heads, mamba_d_head=spec.head_dim, mamba_n_groups=spec.n_groups,
        mamba_d_state=spec.d_state, mamba_d_conv=spec.conv_size, mamba_expand=spec.expand,
        pad_token_id=2,
    )  # fmt: skip
    stock = GraniteMoeHybridForCausalLM(config).eval()
    ours = model.state_dict()
    state = {
        "model.embed_tokens.weight": ours["model.embed_tokens.weight"],
        "model.norm.weight": ours["model.norm.weight"],
        "lm_head.weight": ours["lm_head.weight"],
    }
    for index, name in enumerate(names):
        layer = {
            key.removeprefix(f"model.layers.{index}."): value
            for key, value in ours.items()
            if key.startswith(f"model.layers.{index}.")
        }
        mixer = _mamba_in_granite(layer) if name == "mamba2" else _attention_in_granite(layer)
        state |= {
            f"model.layers.{index}.{key}": value
            for key, value in {
                **mixer,
                "input_layernorm.weight": layer["mixer_norm.weight"],
                "post_attention_layernorm.weight": layer["mlp_norm.weight"],
                "shared_mlp.input_linear.weight": torch.cat(
                    [layer["mlp.gate.weight"], layer["mlp.up.weight"]]
                ),
                "shared_mlp.output_linear.weight": layer["mlp.down.weight"],
            }.items()
        }
    stock.load_state_dict(state)
    return stock


def _attention_in_granite(layer):
    parts = {"q": "q", "k": "k", "v": "v", "output": "o"}
    return {f"self_attn.{t}_proj.weight": layer[f"mixer.{o}.weight"] for o, t in parts.items()}


def _mamba_in_granite(layer):
    return {
        "mamba.in_proj.weight": layer["mixer.input.weight"],
        "mamba.conv1d.weight": layer["mixer.conv.weight"].reshape(
            layer["mixer.conv_bias"].shape[0], 1, -1
        ),
        "mamba.conv1d.bias": layer["mixer.conv_bias"],
        "mamba.A_log": layer["mixer.log_rate"],
        "mamba.dt_bias": layer["mixer.step_bias"],
        "mamba.D": layer["mixer.skip"],
        "mamba.norm.weight": layer["mixer.norm_weight"],
        "mamba.out_proj.weight": layer["mixer.output.weight"],
    }


def _windowed(source, kinds):
    """A config of the source's sizes with windows of 9 in some layers."""
    family = WITH_WINDOWS[source.config.model_type]
    rope = {"rope_type": "default", "rope_theta": source.config.rope_parameters["rope_theta"]}
    special = {"llama": {}, "olmo2": {"rope_parameters": {kind: dict(rope) for kind in set(kinds)}}}
    own = special.get(source.config.model_type, {"use_sliding_window": True})
    return CONFIG_MAPPING[family](
        **{**_same(source), **own}, layer_types=kinds, sliding_window=9, pad_token_id=2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def _same(source):
    """The sizes of a source, for a config of another family."""
    names = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "head_dim", "vocab_size", "tie_word_embeddings", "rms_norm_eps",
        "rope_parameters", "max_position_embeddings",
    )  # fmt: skip
    return {name: getattr(source.config, name) for name in names if hasattr(source.config, name)}
