"""A converted model in use: forms, causality, cache, padding, files, costs."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import manticore
from manticore.conversion.transfer import transfer
from manticore.evaluation.conformance import doctor
from manticore.models.costs import cache_bytes, component_cost
from tests.conversion.models import (
    GROWING,
    LAYOUTS,
    SHAPED,
    converted,
    maximal,
    pad_left,
    tiny_source,
)
from tests.models.tiny import token_ids

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.mark.parametrize(
    ("source", "mixer"),
    [
        *(("gpt_neox", name) for name in LAYOUTS if name != "some attention"),
        *(("qwen3", name) for name in SHAPED),
    ],
)
@torch.no_grad()
def test_parallel_piecewise_and_stepwise_forms_agree(source, mixer):
    """qwen3 brings grouped heads and norms of queries and keys."""
    module = converted(LAYOUTS[mixer], source).model.layers[2].mixer
    x = torch.randn(2, 257, 32, generator=torch.Generator().manual_seed(0))
    whole = module(x)
    for cuts in ([64, 128, 192], [1], [63], [100, 101], [256]):
        pieces, state = [], None
        for piece in x.tensor_split(cuts, dim=1):
            y, state = module.prefill(piece, state)
            pieces.append(y)
        assert maximal(torch.cat(pieces, 1) - whole) < 1e-5, cuts
    steps, state = [], None
    for x_t in x.unbind(1):
        y, state = module.step(x_t, state)
        steps.append(y)
    assert maximal(torch.stack(steps, 1) - whole) < 1e-5


@every_layout
@torch.no_grad()
def test_changing_a_token_leaves_the_outputs_before_it(layout):
    """In one chunk a later token is multiplied by an exact zero: nothing leaks. An FFT adds it and
    takes it away again, up to rounding, which float64 makes small beside any real leak."""
    uses_fft = layout in ("hyena", "mh-hyena", "hyena-experts")
    model = converted(LAYOUTS[layout]).to(torch.float64 if uses_fft else torch.float32)
    ids = token_ids(model, 1, 49)
    for t in (1, 17, 48):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % 60
        difference = (model(changed).logits - model(ids).logits)[0]
        assert maximal(difference[:t]) <= (1e-13 if uses_fft else 0)
        assert maximal(difference[t:]) > 0


@every_layout
@torch.no_grad()
def test_greedy_with_a_cache_equals_greedy_without(layout):
    model = converted(LAYOUTS[layout])
    ids = token_ids(model, 2, 5)
    options = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **options)
    plain = model.generate(ids, use_cache=False, **options)
    assert cached.shape == (2, 69)
    assert torch.equal(cached, plain)


@every_layout
@torch.no_grad()
def test_a_left_padded_batch_equals_single_sequences(layout):
    """To 1e-11 in float64; in float32 to 1e-5, or to what rounding does to a single sequence.

    The norm of a head magnifies rounding where the head's sum nearly cancels: at the first token
    of these models q.k may be 300 times smaller than |q|.|k|. Single sequences of retention are
    then 1.4e-5 away from their float64 logits, and no padding is to blame.
    """
    model = converted(LAYOUTS[layout])
    rows = [token_ids(model, 1, length, seed=length)[0] for length in (19, 3, 40, 1)]
    single, padded = _logits_alone_and_padded(model, rows)
    exact, padded_exact = _logits_alone_and_padded(model.double(), rows)
    assert maximal(padded_exact - exact) < 1e-11
    assert maximal(padded - single) < max(1e-5, 2 * maximal(single - exact))


def _logits_alone_and_padded(model, rows):
    ids, mask = pad_left(rows, 2)
    logits = model(ids, attention_mask=mask).logits
    return torch.cat([model(row[None]).logits[0] for row in rows]), logits[mask.bool()]


@pytest.mark.parametrize("mixer", SHAPED)
@torch.no_grad()
def test_padding_stays_out_of_states_that_biases_would_fill(mixer):
    """gpt2 has biases on queries, keys and values; qwen3 has norms."""
    for source in ("gpt2", "qwen3"):
        model = converted(LAYOUTS[mixer], source)
        rows = [token_ids(model, 1, length, seed=length)[0] for length in (9, 4)]
        ids, mask = pad_left(rows, 2)
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
        together = model.generate(ids, attention_mask=mask, eos_token_id=None, **options)
        alone = model.generate(rows[1][None], eos_token_id=None, **options)
        assert torch.equal(together[1, 9:], alone[0, 4:])


@every_layout
def test_a_saved_model_comes_back_bitwise(layout, tmp_path):
    model = converted(LAYOUTS[layout])
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is manticore.ConvertedForCausalLM
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ids = token_ids(model, 1, 17)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded.eval()(ids).logits)


def test_tied_tables_stay_tied_through_a_file(tmp_path):
    model, _ = transfer(tiny_source("llama", 1), "retention")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    ids = token_ids(model, 1, 17)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_a_clean_process_loads_and_generates(tmp_path, run_python):
    converted(["retention", "attention", "linear-attention", "mamba"]).save_pretrained(tmp_path)
    code = (
        "import sys, torch, manticore; from transformers import AutoModelForCausalLM;"
        f"m = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r});"
        "out = m.generate(torch.tensor([[3, 4]]), max_new_tokens=5, do_sample=False,"
        " eos_token_id=None); print(type(m).__name__, tuple(out.shape))"
    )
    assert "ConvertedForCausalLM (1, 7)" in run_python("-c", code).stdout


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in GROWING])
@torch.no_grad()
def test_state_bytes_do_not_grow_with_the_length(layout):
    model = converted(LAYOUTS[layout])
    sizes = []
    for length in (60, 240):
        cache = model(token_ids(model, 1, length), use_cache=True).past_key_values
        tensors = [t for layer in cache.layers for n, t in layer.state.items() if n != "seen"]
        sizes.append(sum(t.nbytes for t in tensors))
        predicted = cache_bytes(model.config, length)
        assert sizes[-1] == predicted.state + predicted.kv
    assert sizes[0] == sizes[1]


def test_retention_keeps_16_kibibytes_in_a_layer_of_four_heads_of_32():
    spec = converted("retention").config.specs()[0]
    wide = type(spec)(d_model=128, n_heads=4, n_kv_heads=4, head_dim=32)
    assert 4 * wide.state_size(128) == 4 * wide.state_size(4096) == 16_384


@every_layout
def test_counted_parameters_equal_the_formula(layout):
    model = converted(LAYOUTS[layout])
    counted = sum(p.numel() for p in model.parameters())
    cost = component_cost(model.config, 16)
    assert cost.layer_parameters + cost.embedding_parameters == counted
    for layer, spec in zip(model.model.layers, model.config.specs(), strict=True):
        assert sum(p.numel() for p in layer.mixer.parameters()) == spec.num_parameters()


@every_layout
def test_every_new_tensor_gets_a_gradient(layout):
    model = converted(LAYOUTS[layout]).train()
    ids = token_ids(model, 2, 33)
    model(ids, labels=ids).loss.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("mixer", SHAPED)
def test_gradients_equal_those_of_small_differences(mixer):
    module = converted(LAYOUTS[mixer], "qwen3").model.layers[1].mixer.double()
    x = torch.randn(1, 11, 32, generator=torch.Generator().manual_seed(1)).double()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x)[..., :3], x, atol=1e-6, rtol=1e-4)


def test_the_doctor_finds_nothing_wrong():
    report = doctor(converted(LAYOUTS["some attention"]))
    assert report.passed, str(report)


def test_gradient_checkpointing_changes_nothing():
    model = converted(LAYOUTS["some attention"]).train()
    ids = token_ids(model, 2, 17)
    model(ids, labels=ids).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    assert all(torch.allclose(plain[n], p.grad, atol=1e-6) for n, p in model.named_parameters())
