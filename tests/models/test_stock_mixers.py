"""Models built from mixers leave as Mamba, Mamba-2 or Nemotron-H, or are told why not."""

import pytest
import torch

from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.models.stock import NoStockClassError
from manticore.models.stock_mixers import mixers_as_stock_model

MAMBA = {"mixer": "mamba", "d_state": 8, "dt_rank": 3, "conv_size": 3}
MAMBA2 = {"mixer": "mamba2", "d_state": 6, "head_dim": 8, "norm_eps": 1e-4}
GROUPS = {**MAMBA2, "n_groups": 2, "expand": 1}
ATTENTION = {
    "mixer": "mh-attention", "n_heads": 4, "n_kv_heads": 2, "rotary_fraction": 0.0,
    "qkv_bias": False, "output_bias": False,
}  # fmt: skip
NARROW = {"mixer": "mlp", "expand": 1.5}


def model_of(layers, **settings):
    """A model without zeros and ones where training would have left other numbers."""
    config = MixerLMConfig(
        layers=layers, **{"d_model": 32, "vocab_size": 50, "head_bias": False, **settings}
    )
    generator = torch.Generator().manual_seed(0)
    model = MixerForCausalLM.from_generator(config, generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


CASES = [
    ([MAMBA] * 2, {}, "MambaForCausalLM"),
    (["mamba"] * 2, {"tie_word_embeddings": True, "norm_eps": 1e-3}, "MambaForCausalLM"),
    ([MAMBA2] * 2, {"norm_eps": 1e-4}, "Mamba2ForCausalLM"),
    ([GROUPS] * 2, {"norm_eps": 1e-4, "tie_word_embeddings": True}, "Mamba2ForCausalLM"),
    ([MAMBA2, NARROW, ATTENTION, MAMBA2], {"norm_eps": 1e-4}, "NemotronHForCausalLM"),
    (
        [ATTENTION, GROUPS, GROUPS, "mlp"],
        {"norm_eps": 1e-4, "tie_word_embeddings": True},
        "NemotronHForCausalLM",
    ),
    (
        ["mlp", {**ATTENTION, "head_dim": 6, "n_kv_heads": None}, "mlp"],
        {},
        "NemotronHForCausalLM",
    ),
]


@pytest.mark.parametrize(("layers", "settings", "class_name"), CASES)
@torch.no_grad()
def test_a_model_of_such_mixers_leaves_as_its_class(layers, settings, class_name):
    model = model_of(layers, **settings)
    stock = mixers_as_stock_model(model)
    assert type(stock).__name__ == class_name
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    ours, theirs = model(ids).logits, stock(ids).logits
    # Two orders of the same float32 sums.
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    ours, theirs = (
        m.generate(
            ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=16, do_sample=False
        )
        for m in (model, stock)
    )
    assert ours.shape[1] == 56  # no token of theirs ends it
    assert torch.equal(ours, theirs)


def test_who_computes_and_how_weights_started_do_not_matter():
    model = model_of(["mamba", {"mixer": "mamba", "compat": "mad-lab"}])
    assert type(mixers_as_stock_model(model)).__name__ == "MambaForCausalLM"


@pytest.mark.parametrize(
    ("layers", "settings", "reason"),
    [
        (["mamba", "swiglu"], {}, "no class has the mixer swiglu of layer 1"),
        ([MAMBA2, "mlp"], {}, "Nemotron-H needs a layer of attention"),
        ([{**ATTENTION, "rotary_fraction": 1.0}], {}, "rotary_fraction=1.0 here, 0.0 in Nemotron"),
        ([{**ATTENTION, "window": 9}], {}, "window=9 here, None in Nemotron-H"),
        ([ATTENTION, "mlp", NARROW], {}, "settings of layer 2 are not those of layer 1"),
        (["mamba", MAMBA2], {}, "layer 1 is mamba2 and layer 0 is mamba"),
        (["mamba", MAMBA], {}, "settings of layer 1"),
        (["mamba"], {"norm": "layer"}, "norm='layer' here"),
        (["mamba"], {"positions": "sinusoidal"}, "positions='sinusoidal' here"),
        (["mamba"], {"head_bias": True}, "head has a bias"),
        ([MAMBA2], {}, "norm_eps is 0.0001 in Mamba-2 and 1e-05"),
    ],
)
def test_the_first_difference_is_named(layers, settings, reason):
    with pytest.raises(NoStockClassError, match=reason):
        mixers_as_stock_model(model_of(layers, **settings))


def test_special_tokens_travel():
    config = mixers_as_stock_model(model_of(["mamba"], eos_token_id=7)).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 7, None)
