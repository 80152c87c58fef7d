"""Layers that other libraries describe become ours at the same sizes, or an error says why not."""

import json

import pytest
import yaml

from manticore.mixers.table import TABLE
from manticore.models.configuration_mixer_lm import layer_spec
from manticore.models.imports_fla import config_from_fla, layers_from_fla, read_fla_config
from manticore.models.imports_mad_lab import (
    layer_from_mad_lab,
    read_mad_lab_layer,
    read_mad_lab_task,
    task_from_mad_lab,
)
from manticore.models.mad_lab_rules import RULES
from tests.mixers.small import names_with_a_module

ATTENTION = {
    "dim": 128, "causal": True, "n_heads": 16, "rotary_emb_dim": 8, "dropout": 0,
    "window_size": [-1, -1], "use_flash_attn": True,
}  # fmt: skip
LINEAR = {
    "dim": 128, "expand_k": 1, "expand_v": 1, "num_heads": 16, "tie_feature_map_qk": False,
    "feature_map": "elementwise_product", "parallel_implementation": "quadratic",
    "norm_q": False, "norm_k": False,
}  # fmt: skip
GATED = {
    "dim": 128, "expand_v": 1, "expand_k": 1, "num_heads": 8, "gate_fn": "swish",
    "layernorm_eps": 0.00001, "gate_logit_normalizer": 16, "gate_low_rank_dim": 16,
    "mode": "chunk", "fuse_norm": False,
}  # fmt: skip
HYENA = {
    "dim": 128, "order": 2, "num_heads": 1, "inner_factor": 4, "num_blocks": 1,
    "fused_bias_fc": False, "outer_mixing": False, "dropout": 0, "proj_groups": 4,
    "post_order_ffn": False, "short_filter_order": 3, "nested": True, "activation": "id",
    "long_conv_cfg": {"bias": True, "filter_cls": "implicit", "filter_cfg": {"order": 4}},
}  # fmt: skip
MH_HYENA = {
    "dim": 128, "order": 2, "num_heads": 16, "inner_factor": 1, "num_blocks": 1,
    "fused_bias_fc": False, "outer_mixing": False, "dropout": 0, "post_order_ffn": False,
    "short_filter_order": 3, "activation": "id",
    "long_conv_cfg": {
        "num_heads": 16, "bias": True, "filter_cls": "implicit", "filter_cfg": {"order": 2},
    },
}  # fmt: skip
EXPERTS = {
    "dim": 128, "dim_inner": 16, "num_experts": 8, "active_experts": 2, "order": 2,
    "num_heads": 1, "inner_factor": 1, "num_blocks": 1, "fused_bias_fc": False,
    "outer_mixing": False, "dropout": 0, "post_order_ffn": False, "short_filter_order": 3,
    "activation": "id",
    "long_conv_cfg": {"bias": True, "filter_cls": "implicit", "filter_cfg": {"order": 16}},
}  # fmt: skip
MAMBA = {
    "dim": 128, "d_state": 4, "d_conv": 4, "expand": 2, "dt_rank": "auto", "dt_min": 0.001,
    "dt_max": 0.1, "dt_init": "random", "dt_scale": 1.0, "dt_init_floor": 0.0001,
    "conv_bias": True, "bias": False,
}  # fmt: skip
# The settings in mad-lab's own files, and the parameters that its own layers have.
FILES: dict[str, tuple[dict, int]] = {
    "mh-attention": (ATTENTION, 66_048),
    "attention": ({**ATTENTION, "n_heads": 1, "rotary_emb_dim": 128}, 66_048),
    "mh-sliding-attention": ({**ATTENTION, "window_size": [32, 32]}, 66_048),
    "mh-linear-attention": (LINEAR, 65_824),
    "linear-attention": ({**LINEAR, "num_heads": 1}, 131_584),
    "mh-gated-linear-attention": (GATED, 86_160),
    "gated-linear-attention": ({**GATED, "num_heads": 1}, 86_272),
    "rwkv5-time-mixer": ({"dim": 128, "max_length": 1280, "head_dim": 16, "dim_att": 128,
                          "head_dim_divisor": 8}, 82_944),
    "rwkv6-time-mixer": ({"dim": 128, "max_length": 1280, "head_dim": 16, "dim_att": 128,
                          "head_dim_divisor": 8}, 140_544),
    "rwkv6-channel-mixer": ({"dim": 128, "dim_inner": 512}, 147_712),
    "mamba": (MAMBA, 107_264),
    "mlp": ({"dim": 128, "dim_inner": None, "drop_rate": 0, "bias": False}, 131_072),
    "swiglu": ({"dim": 128}, 135_168),
    # Its benchmark adds the task's length, for which its filters train positions.
    "hyena": ({**HYENA, "max_length": 128}, 124_348),
    "mh-hyena": ({**MH_HYENA, "max_length": 128}, 30_862),
    "hyena-experts": ({**EXPERTS, "max_length": 128}, 57_464),
}  # fmt: skip
# The files where what was counted is another.
MENDED_FILES = {
    "hyena": HYENA,
    "mh-hyena": MH_HYENA,
    "hyena-experts": EXPERTS,
    "moe-mlp": {"dim": 128, "dim_inner": 16, "num_experts": 8, "active_experts": 2, "bias": False},
}


@pytest.mark.parametrize("name", [name for name in FILES if name in RULES])
def test_a_layer_of_mad_lab_has_the_parameters_that_it_has_there(name: str) -> None:
    settings, parameters = FILES[name]
    layer, d_model = layer_from_mad_lab(name, settings, compat="mad-lab")
    assert d_model == 128
    assert layer_spec(layer, d_model).num_parameters() == parameters


@pytest.mark.parametrize("name", [name for name in {**FILES, **MENDED_FILES} if name in RULES])
def test_its_own_files_mean_what_its_names_mean_here(name: str, tmp_path) -> None:
    settings = MENDED_FILES.get(name) or FILES[name][0]
    path = tmp_path / f"{name}.yml"
    path.write_text(yaml.safe_dump(settings))
    read, width = read_mad_lab_layer(path)
    named, _ = layer_from_mad_lab(name)
    assert width == 128
    assert layer_spec(read, 128) == layer_spec(named, 128)


def test_every_layer_that_we_share_has_a_rule() -> None:
    assert {rule.mixer for rule in RULES.values()} <= set(TABLE)
    assert len(RULES) >= 19


def test_what_the_original_computes_is_asked_for_where_we_mend_it() -> None:
    for name in ("hyena", "mh-hyena", "hyena-experts", "moe-mlp"):
        assert layer_from_mad_lab(name, compat="mad-lab")[0]["compat"] == "mad-lab"
        assert "compat" not in layer_from_mad_lab(name)[0]


def test_sizes_of_mamba_are_followed() -> None:
    settings = {**MAMBA, "dim": 64, "d_state": 16, "dt_rank": 3, "d_conv": 3}
    spec = layer_spec(*layer_from_mad_lab("mamba", settings))
    assert (spec.d_state, spec.rank, spec.conv_size, spec.inner_width) == (16, 3, 3, 128)


def test_settings_of_another_width_and_window_are_followed() -> None:
    settings = {**ATTENTION, "dim": 64, "n_heads": 4, "rotary_emb_dim": 8, "window_size": [7, 0]}
    layer, d_model = layer_from_mad_lab("mh-attention", settings)
    assert d_model == 64
    assert (layer["window"], layer["rotary_fraction"], layer["n_heads"]) == (8, 0.5, 4)
    layer, _ = layer_from_mad_lab("rwkv6-channel-mixer", {"dim": 64, "dim_inner": 128})
    assert layer_spec(layer, 64).inner_width == 128


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("attention", {"causal": False}, "causal=False has no counterpart; we have True"),
        ("hyena", {**HYENA, "proj_groups": 2}, "proj_groups=2 has no counterpart; we have 4"),
        ("hyena", {"inner_factor": 4}, "filter_cls='rtf' has no counterpart"),
        ("mh-hyena", {**MH_HYENA, "num_heads": 8}, "num_heads=16 has no counterpart; we have 8"),
        ("hyena-experts", {**EXPERTS, "dim_inner": 8}, "num_experts=64 has no counterpart"),
        ("mamba", {**MAMBA, "bias": True}, "bias=True has no counterpart"),
        ("attention", {"alibi": True}, "'alibi'.*has no counterpart in our 'attention'"),
        ("hyenas", None, "'hyenas' is no name of mad-lab.*Known: attention"),
        ("bs-gated-delta-net", None, "gated-delta-net comes closest"),
    ],
)
def test_what_has_no_counterpart_is_named(name: str, settings: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_from_mad_lab(name, settings)


def test_a_task_of_mad_lab_gives_the_options_of_ours(tmp_path) -> None:
    content = {
        "baseline": {"vocab_size": 16, "seq_len": 256, "num_tokens_to_copy": 16,
                     "num_train_examples": 12800},
        "changes": {"vocab_size": [32, 64, 128], "num_train_examples": [6400, 800]},
    }  # fmt: skip
    path = tmp_path / "selective-copying.yml"
    path.write_text(yaml.safe_dump(content))
    baseline, changes = read_mad_lab_task(path)
    assert baseline == {
        "vocab_size": 16, "seq_len": 256, "num_tokens_to_copy": 16, "num_train": 12800,
    }  # fmt: skip
    assert changes == {"vocab_size": [32, 64, 128], "num_train": [6400, 800]}
    with pytest.raises(ValueError, match="Known: in-context-recall"):
        task_from_mad_lab("copying", content)
    with pytest.raises(ValueError, match="option 'length' is not known"):
        task_from_mad_lab("compression", {"baseline": {"length": 3}})
    with pytest.raises(ValueError, match="a task has 'baseline' and 'changes'"):
        task_from_mad_lab("compression", {"vocab_size": 3})


FLA = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 50, "intermediate_size": 96}
FLA_MODELS = {
    "transformer": {"num_heads": 4, "qkv_bias": True},
    "gla": {"num_heads": 4},
    "retnet": {"num_heads": 4},
    "delta_net": {"num_heads": 4},
    "gated_deltanet": {"num_heads": 2, "head_dim": 24},
    "linear_attn": {"num_heads": 4},
    "rwkv6": {"num_heads": 4, "expand_k": 1.0},
    "mamba": {"state_size": 8, "intermediate_size": None},
    "mamba2": {"state_size": 8, "head_dim": 16, "n_groups": 2, "intermediate_size": None},
}
NO_CHANNEL_MIXER = ("mamba", "mamba2")
HAS_SWIGLU = "swiglu" in names_with_a_module()
FLA_BUILT = [name for name in FLA_MODELS if HAS_SWIGLU or name == "rwkv6"]


def fla_config(name: str) -> dict:
    settings = {"model_type": name, **FLA, **FLA_MODELS[name]}
    return {key: value for key, value in settings.items() if value is not None}


@pytest.mark.parametrize("name", FLA_BUILT)
def test_a_configuration_of_fla_becomes_a_model(name: str, tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**fla_config(name), "use_cache": True, "fuse_norm": True}))
    config = read_fla_config(path, max_position_embeddings=None)
    assert (config.hidden_size, config.vocab_size) == (64, 50)
    assert len(config.layers) == (2 if name in NO_CHANNEL_MIXER else 4)
    assert config_from_fla(fla_config(name), vocab_size=16).vocab_size == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in FLA_BUILT if name not in ("rwkv6", "transformer")]
)
def test_mixers_have_as_many_parameters_as_flas_own(name: str) -> None:
    pytest.importorskip("fla")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = fla_config(name)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**settings, fuse_norm=False, fuse_swiglu=False)
        )
    layers = getattr(theirs, "model", getattr(theirs, "backbone", None)).layers
    ours = config_from_fla(settings).specs()
    if name in NO_CHANNEL_MIXER:
        counts = [sum(p.numel() for p in block.mixer.parameters()) for block in layers]
        assert [spec.num_parameters() for spec in ours] == counts
        return
    for index, block in enumerate(layers):
        token, channel = block.attn, block.mlp
        assert ours[2 * index].num_parameters() == sum(p.numel() for p in token.parameters())
        assert ours[2 * index + 1].num_parameters() == sum(p.numel() for p in channel.parameters())


def test_attention_layers_of_a_hybrid_of_fla_stay_where_they_are() -> None:
    attention = {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": 9}
    layers = layers_from_fla({**fla_config("gla"), "num_hidden_layers": 3, "attn": attention})
    names = [layer["mixer"] for layer in layers]
    mixers = ["mh-gated-linear-attention", "mh-attention", "mh-gated-linear-attention"]
    assert names[::2] == mixers
    assert names[1::2] == ["swiglu"] * 3
    assert (layers[2]["window"], layers[2]["n_kv_heads"]) == (9, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mega"}, "'mega' is no name of flash-linear-attention.*Known: "),
        ({"model_type": "rwkv7"}, "'rwkv7' has no counterpart here"),
        ({"model_type": "gla", "feature_map": "relu"}, "feature_map='relu' has no counterpart"),
        ({"model_type": "mamba", "intermediate_size": 96}, "intermediate_size=96 has no count"),
        ({"model_type": "mamba2", "rmsnorm": False}, "rmsnorm=False has no counterpart"),
        ({"model_type": "gla", "gate_size": 3}, "'gate_size'.*has no counterpart"),
        ({}, "'None' is no name"),
    ],
)
def test_configurations_without_a_counterpart_are_named(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layers_from_fla(config)
