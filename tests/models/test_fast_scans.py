"""Mamba-2 and gated DeltaNet with our scans bound, against the same models of transformers."""

import copy
import importlib
from itertools import pairwise

import pytest
import torch

from manticore.evaluation.conformance import doctor
from manticore.models.fast_paths import bind_fast_paths, describe_fast_paths, unbind_fast_paths
from manticore.seeds import torch_generator
from tests.models.in_float64 import compute_in_float64
from tests.models.tiny import VARIANTS, tiny, token_ids

MAMBA2 = ("mamba2", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h")
DELTA = ("qwen3_next", "olmo_hybrid")
FAMILIES = MAMBA2 + DELTA
SEQ_LEN = 21  # no multiple of any chunk
# Another order of sums, relative to numbers of order 1. In float32 the gates of these random
# delta-rule models amplify it: transformers itself is up to 6e-5 off its logits in float64.
TOLERANCE, EXACT = 1e-5, 1e-10
AMPLIFIED = dict.fromkeys(DELTA, 2e-4)


def largest(tensor):
    return tensor.abs().max().item()


def pair(family, variant=0, **overrides):
    """The same random model twice: transformers', and with our scan bound."""
    stock = tiny(family, variant=variant, **overrides)
    fast = copy.deepcopy(stock)
    (scan,) = bind_fast_paths(fast).items()
    assert scan == ("decayed_scan" if family in MAMBA2 else "delta_scan", "torch-chunk")
    return stock, fast


def cache_of(output):
    return {name: output[name] for name in ("cache_params", "past_key_values") if output.get(name)}


def assert_same_training(models, tolerance):
    """Compare logits and gradients, each relative to the largest number if that is above 1."""
    ids = token_ids(models[0], 2, SEQ_LEN)
    outputs = [model.train()(ids, labels=ids, use_cache=False) for model in models]
    assert largest(outputs[1].logits - outputs[0].logits) < tolerance
    for output in outputs:
        output.loss.backward()
    fast = dict(models[1].named_parameters())
    for name, parameter in models[0].named_parameters():
        if parameter.grad is not None:
            error = largest(fast[name].grad - parameter.grad)
            assert error < tolerance * max(1.0, largest(parameter.grad)), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bound_models_equal_transformers_in_logits_and_gradients(family, variant):
    assert_same_training(pair(family, variant), AMPLIFIED.get(family, TOLERANCE))


# The others' rotary tables, routers or experts know no float64.
@pytest.mark.parametrize(
    ("family", "variant"),
    [(f, v) for f in ("mamba2", "falcon_h1", "olmo_hybrid") for v in VARIANTS]
    + [("qwen3_next", 1), ("nemotron_h", 1)],
)
def test_bound_models_equal_transformers_in_float64(family, variant, monkeypatch):
    compute_in_float64(family, monkeypatch)
    assert_same_training([model.double() for model in pair(family, variant)], EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_left_padding_and_caches_handed_over_keep_transformers_numbers(family, variant):
    stock, fast = pair(family, variant)
    ids, tolerance = token_ids(stock, 2, SEQ_LEN), AMPLIFIED.get(family, TOLERANCE)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    real, positions = mask.bool(), (mask.cumsum(1) - 1).clamp(min=0)

    def run(model, lo, hi, **settings):
        if family != "mamba2":  # where a cache is there, bamba wants to be told
            settings["position_ids"] = positions[:, lo:hi]
        return model(ids[:, lo:hi], attention_mask=mask[:, :hi], **settings)

    expected = run(stock, 0, SEQ_LEN, use_cache=False).logits
    whole = run(fast, 0, SEQ_LEN, use_cache=False).logits
    assert largest(whole[real] - expected[real]) < tolerance
    found, cache = [], {}
    # Prefill, a continuation of several tokens and steps, by both models in turn.
    for index, (lo, hi) in enumerate(pairwise((0, 9, 15, 19, 20, SEQ_LEN))):
        output = run((fast, stock)[index % 2], lo, hi, use_cache=True, **cache)
        cache = cache_of(output)
        found.append(output.logits)
    assert largest(torch.cat(found, 1)[real] - expected[real]) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_the_doctor_finds_nothing_wrong_with_bound_models(family):
    _, fast = pair(family)
    checks = ["chunked-prefill-with-positions", "decode-with-positions", "left-padding"]
    if family == "mamba2":  # which takes no positions
        checks = [check.removesuffix("-with-positions") for check in checks]
    assert doctor(fast, [*checks, "adapter-reach"]).passed


@pytest.mark.parametrize("family", ["mamba2", "qwen3_next"])
def test_gradients_flow_through_a_cache_filled_in_pieces(family):
    _, fast = pair(family)
    ids, (weight, *_) = token_ids(fast, 2, SEQ_LEN), fast.parameters()
    expected = torch.autograd.grad(fast(ids).logits.square().sum(), weight)[0]
    logits, cache = [], {}
    for piece in ids.split([9, 1, 1, 10], dim=1):
        output = fast(piece, use_cache=True, **cache)
        cache = cache_of(output)
        logits.append(output.logits)
    found = torch.autograd.grad(torch.cat(logits, 1).square().sum(), weight)[0]
    assert largest(found - expected) < AMPLIFIED.get(family, TOLERANCE) * largest(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_binding_reports_itself_keeps_names_and_can_be_undone(family):
    stock, fast = pair(family)
    names = [type(module).__name__ for module in fast.modules()]
    assert any(name.startswith("Fast") for name in names)
    assert list(fast.state_dict()) == list(stock.state_dict())
    assert set(describe_fast_paths(stock).values()) == {"transformers"}
    assert bind_fast_paths(fast) == describe_fast_paths(copy.deepcopy(fast))
    unbind_fast_paths(fast)
    assert [type(m) for m in fast.modules()] == [type(m) for m in stock.modules()]


@pytest.mark.parametrize("family", ["mamba2", "qwen3_next"])
def test_three_stacked_layers_under_vmap_equal_a_loop(family):
    layers = []
    for seed in range(3):
        model = tiny(family, seed=seed)
        bind_fast_paths(model)
        layers += [m for m in model.modules() if type(m).__name__.startswith("Fast")][:1]
    hidden = torch.randn(2, 11, 32, generator=torch_generator(0, "hidden"))
    stacked = torch.func.stack_module_state(layers)

    def loss(parameters, buffers):
        state = (parameters, buffers)
        return torch.func.functional_call(layers[0], state, (hidden,)).square().sum()

    gradients, values = torch.func.vmap(torch.func.grad_and_value(loss))(*stacked)
    for i, layer in enumerate(layers):
        value = layer(hidden).square().sum()
        torch.testing.assert_close(values[i], value, rtol=1e-5, atol=0)
        named = dict(layer.named_parameters())
        for name, grad in zip(named, torch.autograd.grad(value, named.values()), strict=True):
            assert largest(gradients[name][i] - grad) < 2e-5 * largest(grad), name


@pytest.mark.parametrize("family", ["mamba2", "qwen3_next"])
@torch.no_grad()
def test_bfloat16_and_autocast_stay_close_to_float32(family):
    _, fast = pair(family, variant=1)
    ids = token_ids(fast, 2, SEQ_LEN)
    expected = fast(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fast(ids).logits
    low = copy.deepcopy(fast).bfloat16()(ids).logits
    for found in (mixed, low):  # 8 bits: 0.4 % for a rounding, a few dozen one after another
        assert (found.float() - expected).std() < 0.05 * expected.std()


def test_the_library_keeps_its_functions_and_packed_sequences_their_refusal():
    module = importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    _, fast = pair("mamba2")
    mixer = next(m for m in fast.modules() if type(m).__name__ == "FastMamba2Mixer")
    hidden = torch.zeros(1, 4, 32)
    with pytest.raises(ValueError, match="packed sequences"):
        mixer(hidden, seq_idx=torch.zeros(1, 4, dtype=torch.int32))
    assert module.mamba2_chunk_scan.__module__ == module.__name__
    assert module.Mamba2Mixer.forward is not type(mixer).forward
