"""RWKV-4 as a component: a published checkpoint's logits, rescaling, and what is refused."""

import os
from pathlib import Path

import numpy
import pytest
import torch
from transformers import CONFIG_MAPPING

from manticore.evaluation.conformance import doctor
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.models.component_cache import cache_layers
from manticore.models.fast_paths import bind_fast_paths, describe_fast_paths, unbind_fast_paths
from manticore.models.loading import load_component
from manticore.models.pretrained import split_causal_lm
from manticore.models.supported import UnsupportedFamilyError, check_supported
from tests.models.test_components import gradients, maximal, run_in_stages
from tests.models.tiny import tiny, tiny_config, token_ids

FOLDER = Path(os.environ.get("MANTICORE_SHARED_DATA", "absent")) / "ckpt-tiny-rwkv"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="MANTICORE_SHARED_DATA holds no ckpt-tiny-rwkv")
@pytest.mark.parametrize("bound", [False, True])
@torch.no_grad()
def test_a_published_checkpoint_gives_its_published_logits(bound):
    model = load_component(FOLDER / "hf-rwkv4-660k")
    if bound:
        bind_fast_paths(model)
    expected = numpy.fromfile(FOLDER / "expected-logits-4v0-660K.bin", dtype=numpy.float32)
    logits = run_in_stages(model, torch.tensor([list(b'"in')]), [0, 1, 4])[0, -1]
    assert maximal(logits - torch.from_numpy(expected)) < 1e-4  # rwkv.cpp rounds otherwise


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_the_bound_layers_give_transformers_outputs_and_gradients(variant):
    model = tiny("rwkv", variant=variant).train()
    ids, base = token_ids(model, 2, 33), split_causal_lm(model)[0]
    stock = model(ids).logits
    wanted = gradients(model, stock)
    assert describe_fast_paths(base) == {"wkv_scan": "transformers"}
    assert bind_fast_paths(base) == {"wkv_scan": "torch-step"}
    ours = model(ids).logits
    assert maximal(ours - stock) < 1e-5
    for name, gradient in gradients(model, ours).items():
        scale = wanted[name].abs().max().clamp(min=1e-3)
        assert maximal(gradient - wanted[name]) < 1e-5 * scale, name
    with torch.no_grad():  # the bound layers leave a state to transformers
        state = model.eval()(ids[:1, :20], use_cache=True).state
        rest = model(ids[:1, 20:], state=state, use_cache=True).logits
    assert maximal(rest - ours[:1, 20:]) < 1e-5
    unbind_fast_paths(base)
    assert describe_fast_paths(base) == {"wkv_scan": "transformers"}


@torch.no_grad()
def test_rescaling_is_off_and_weights_stay_as_they_were():
    model = tiny("rwkv", rescale_every=2)
    ids, before = token_ids(model, 2, 9), {n: p.clone() for n, p in model.named_parameters()}
    plain = tiny("rwkv")(ids).logits
    assert maximal(run_in_stages(model, ids, [0, 1, 4]) - plain) < 1e-5
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    model(ids)  # transformers halves weights now
    with pytest.raises(ValueError, match="rescale_every = 0"):
        run_in_stages(model, ids, [0, 1, 4])


def test_padding_and_caches_are_refused():
    model = tiny("rwkv")
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(ValueError, match="ignores padding masks"):
        run_in_stages(model, token_ids(model, 2, 3), [0, 4], mask)
    run_in_stages(model, token_ids(model, 2, 3), [0, 4], torch.ones(2, 3))
    with pytest.raises(ValueError, match="use_cache=False"):
        cache_layers(model.config)


@torch.no_grad()
def test_a_hybrid_generates_without_a_cache_and_refuses_one():
    hybrid = ManticoreForCausalLM.from_components([tiny("rwkv"), tiny("llama")], num_blocks=2)
    ids = token_ids(tiny("rwkv"), 2, 5)
    tokens = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    made = hybrid.generate(ids, use_cache=False, **tokens)
    wanted = ids
    for _ in range(4):
        logits = hybrid(wanted).logits[:, -1]
        logits[:, hybrid.generation_config.eos_token_id] = -torch.inf
        wanted = torch.cat([wanted, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, wanted)
    with pytest.raises(ValueError, match="use_cache=False"):
        hybrid.generate(ids, use_cache=True, **tokens)


@pytest.mark.parametrize("family", ["recurrent_gemma", "xlstm", "zamba2"])
def test_known_families_without_a_row_say_why(family):
    with pytest.raises(UnsupportedFamilyError, match=f"{family}.*not supported: its|it .*[Uu]se"):
        check_supported(CONFIG_MAPPING[family]())


def test_an_opt_with_a_narrow_table_is_refused():
    config = CONFIG_MAPPING["opt"](hidden_size=32, word_embed_proj_dim=16)
    with pytest.raises(UnsupportedFamilyError, match="opt-350m"):
        check_supported(config)


@pytest.mark.parametrize("family", ["mamba2", "bamba", "granitemoehybrid", "falcon_h1"])
def test_a_limit_of_the_time_step_is_refused_because_cached_steps_forget_it(family):
    check_supported(tiny_config(family))
    limited = tiny_config(family, time_step_limit=[0.001, 0.5])
    with pytest.raises(UnsupportedFamilyError, match=r"time_step_limit=\[0.001, 0.5\]"):
        check_supported(limited)
    model = tiny(family, time_step_limit=[0.001, 0.5])  # if this is mended, drop the refusal
    for name, parameter in model.named_parameters():
        if name.endswith("dt_bias"):
            parameter.data.add_(2)  # long steps, which the limit cuts
    assert not doctor(model, ["decode-with-positions", "decode"]).passed
