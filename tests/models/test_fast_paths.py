"""Mamba models with the fast scan bound, against the same models without it."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

from manticore.evaluation.conformance import doctor  # noqa: E402
from manticore.models.fast_mamba import FastMambaMixer  # noqa: E402
from manticore.models.fast_paths import (  # noqa: E402
    bind_fast_paths,
    describe_fast_paths,
    unbind_fast_paths,
)
from tests.models.tiny import tiny, token_ids  # noqa: E402

VOCAB = 61
CONFIGS = {
    "plain": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
    "biases": {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 16, "use_bias": True},
    "odd": {
        "hidden_size": 20,
        "num_hidden_layers": 4,
        "state_size": 3,
        "conv_kernel": 3,
        "use_conv_bias": False,
        "time_step_rank": 5,
        "expand": 3,
        "residual_in_fp32": False,
    },
}
# Logits are of order 1; two float32 summation orders over a few layers differ by about 1e-6.
LOGITS = {"atol": 1e-5, "rtol": 1e-5}


def random_model(name="plain", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.MambaConfig(vocab_size=VOCAB, **CONFIGS[name])
        model = transformers.MambaForCausalLM(config).eval()
        for name, parameter in model.named_parameters():
            # Away from the initial values, where every row of A and every D is the same and
            # the biases are zero.
            if not name.endswith("A_log"):
                parameter.data += 0.1 * torch.randn_like(parameter)
            else:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def pair(name="plain"):
    """Return the same random model twice: transformers' forward, and ours."""
    stock = random_model(name)
    fast = copy.deepcopy(stock)
    bind_fast_paths(fast.backbone)
    return stock, fast


def tokens(batch=2, seq_len=21, seed=5):
    return torch.randint(VOCAB, (batch, seq_len), generator=torch.Generator().manual_seed(seed))


def worst_gradient_error(found, expected):
    """Return the largest error over parameters, each relative to its own largest gradient."""
    errors = []
    for (name, a), (_, b) in zip(
        found.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert (a.grad is None) == (b.grad is None), name
        if b.grad is not None:
            errors.append(((a.grad - b.grad).abs().max() / b.grad.abs().max()).item())
    return max(errors)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_bound_model_equals_unbound_in_logits_and_gradients(name, training):
    stock, fast = (model.train(training) for model in pair(name))
    ids = tokens()
    outputs = [model(ids, labels=ids, use_cache=False) for model in (stock, fast)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, **LOGITS)
    for output in outputs:
        output.loss.backward()
    assert worst_gradient_error(fast, stock) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_padded_batch_equals_transformers_and_the_sequences_alone(name, side):
    stock, fast = pair(name)
    ids, mask = tokens(3), torch.ones(3, 21, dtype=torch.long)
    lengths = (21, 13, 1)
    for row, length in enumerate(lengths):
        mask[row, slice(None, 21 - length) if side == "left" else slice(length, None)] = 0
    logits = fast(ids, attention_mask=mask).logits
    # With a bias in in_proj, padding on the left reaches the original's convolution.
    if not (CONFIGS[name].get("use_bias") and side == "left"):
        torch.testing.assert_close(logits, stock(ids, attention_mask=mask).logits, **LOGITS)
    for row in range(3):
        real = mask[row].bool()
        alone = fast(ids[row : row + 1, real]).logits[0]
        torch.testing.assert_close(logits[row, real], alone, **LOGITS)


def test_a_mask_of_ones_changes_no_bit_and_multiplies_nothing(monkeypatch):
    _, fast = pair()
    expected = fast(tokens()).logits

    def refuse_a_mask(tensor, mask):
        assert mask is None
        return tensor

    monkeypatch.setattr("manticore.models.fast_mamba._hide_padding", refuse_a_mask)
    assert torch.equal(fast(tokens(), attention_mask=torch.ones(2, 21)).logits, expected)


def test_a_mask_that_covers_the_cache_is_read_at_its_end():
    _, fast = pair()
    ids, mask = tokens(), torch.ones(2, 21, dtype=torch.long)
    mask[1, 15:18] = 0
    whole = fast(ids, attention_mask=mask).logits
    prefill = fast(ids[:, :12], attention_mask=mask[:, :12], use_cache=True)
    rest = fast(ids[:, 12:], attention_mask=mask, cache_params=prefill.cache_params)
    torch.testing.assert_close(rest.logits, whole[:, 12:], **LOGITS)


def test_a_mask_that_is_too_short_is_refused():
    _, fast = pair()
    with pytest.raises(ValueError, match=r"\(2, 20\).*at least 21"):
        fast(tokens(), attention_mask=torch.ones(2, 20))


@pytest.mark.parametrize(
    "pieces", [(21,), (20, 1), (1, 20), (2, 1, 18), (9, 3, 1, 1, 7), (1,) * 21]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_in_pieces_and_decoding_equal_one_forward(name, pieces):
    stock, fast = pair(name)
    ids = tokens()
    with torch.no_grad():
        expected = stock(ids, use_cache=False).logits
        found, cache = [], None
        for piece in ids.split(list(pieces), dim=1):
            output = fast(piece, cache_params=cache, use_cache=True)
            cache = output.cache_params
            found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, **LOGITS)


def test_the_cache_holds_what_transformers_would_put_there():
    stock, fast = pair()
    caches = [model(tokens(), use_cache=True).cache_params for model in (stock, fast)]
    for layer in range(3):
        for get in ("get_conv_state", "get_recurrent_state"):
            expected, found = (getattr(cache, get)(layer) for cache in caches)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # and either may decode from the other's
    step = tokens(2, 1, seed=6)
    torch.testing.assert_close(
        fast(step, cache_params=caches[0]).logits,
        stock(step, cache_params=caches[1]).logits,
        **LOGITS,
    )


def test_gradients_flow_through_a_cache_filled_in_pieces():
    _, fast = pair()
    ids = tokens()
    expected = torch.autograd.grad(fast(ids).logits.square().sum(), fast.lm_head.weight)[0]
    output = fast(ids[:, :9], use_cache=True)
    logits = [output.logits]
    for piece in (ids[:, 9:10], ids[:, 10:]):
        output = fast(piece, cache_params=output.cache_params, use_cache=True)
        logits.append(output.logits)
    found = torch.autograd.grad(torch.cat(logits, 1).square().sum(), fast.lm_head.weight)[0]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_left_padded_generation_equals_generation_alone():
    _, fast = pair()
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, :3] = 0
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    batch = fast.generate(ids, attention_mask=mask, **settings)
    for row, start in enumerate((0, 3)):
        alone = fast.generate(ids[row : row + 1, start:], **settings)
        assert torch.equal(batch[row, start:], alone[0])


def test_binding_touches_this_instance_only_and_can_be_undone():
    stock, fast = pair()
    mamba = transformers.models.mamba.modeling_mamba
    assert describe_fast_paths(stock) == {"selective_scan": "transformers"}
    assert {type(layer.mixer) for layer in stock.backbone.layers} == {mamba.MambaMixer}
    assert {type(layer.mixer) for layer in fast.backbone.layers} == {FastMambaMixer}
    assert type(random_model().backbone.layers[0].mixer) is mamba.MambaMixer
    unbind_fast_paths(fast)
    assert {type(layer.mixer) for layer in fast.backbone.layers} == {mamba.MambaMixer}


def test_binding_twice_reports_the_same_and_keeps_every_name():
    stock, fast = pair()
    assert bind_fast_paths(fast) == bind_fast_paths(fast) == {"selective_scan": "torch-step"}
    assert list(fast.state_dict()) == list(stock.state_dict())
    assert type(copy.deepcopy(fast).backbone.layers[0].mixer) is FastMambaMixer


def test_a_model_without_mamba_mixers_has_nothing_to_bind():
    assert bind_fast_paths(torch.nn.Linear(2, 2)) == {}


def test_subclasses_of_the_mixer_keep_their_own_forward():
    model = random_model()
    mixer = model.backbone.layers[1].mixer
    mixer.__class__ = type("SomeonesMixer", (type(mixer),), {})
    bind_fast_paths(model)
    assert type(mixer).__name__ == "SomeonesMixer"


@pytest.mark.parametrize("bind_first", [True, False])
def test_lora_in_the_projections_equals_transformers_with_the_same_lora(bind_first):
    peft = pytest.importorskip("peft")
    stock = random_model()
    fast = copy.deepcopy(stock)
    if bind_first:
        bind_fast_paths(fast)
    # PEFT itself refuses out_proj on Mamba; the test below covers a wrapper there.
    config = peft.LoraConfig(r=2, target_modules=["in_proj", "x_proj"], init_lora_weights=False)
    models = []
    for model in (stock, fast):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            models.append(peft.get_peft_model(model, config))
    bind_fast_paths(models[1])
    ids = tokens()
    outputs = [model(input_ids=ids, labels=ids, use_cache=False) for model in models]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, **LOGITS)
    for output in outputs:
        output.loss.backward()
    assert worst_gradient_error(models[1], models[0]) < 1e-5


class Doubled(torch.nn.Module):
    """What an adapter looks like to a mixer: a module around a linear layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize("projection", ["in_proj", "x_proj", "out_proj"])
def test_a_wrapped_projection_is_called_and_not_bypassed(projection):
    models = pair()
    for model in models:
        mixer = model.backbone.layers[1].mixer
        setattr(mixer, projection, Doubled(getattr(mixer, projection)))
    stock, fast = (model(tokens()).logits for model in models)
    torch.testing.assert_close(fast, stock, **LOGITS)
    assert (fast - random_model()(tokens()).logits).abs().max() > 1e-3


def test_an_adapter_on_the_time_step_acts_and_trains_where_transformers_passes_it_by():
    def with_lora(model):
        # Both factors random, so that the adapter changes the output.
        config = peft.LoraConfig(r=2, target_modules=["dt_proj"], init_lora_weights=False)
        return peft.get_peft_model(model, config)

    peft = pytest.importorskip("peft")
    plain = random_model()(tokens()).logits
    stock, fast = pair()
    torch.testing.assert_close(with_lora(stock)(tokens()).logits, plain, **LOGITS)
    adapted = with_lora(fast)
    logits = adapted(tokens()).logits
    assert (logits - plain).abs().max() > 1e-3
    logits.square().mean().backward()
    grads = [p.grad for name, p in adapted.named_parameters() if "lora_" in name]
    assert grads
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    with torch.no_grad():
        merged = adapted.merge_and_unload()(tokens()).logits
    torch.testing.assert_close(merged, logits.detach(), **LOGITS)


def test_gradient_checkpointing_changes_nothing():
    _, fast = pair()
    again = copy.deepcopy(fast).train()
    again.gradient_checkpointing_enable()
    ids = tokens()
    for model in (fast.train(), again):
        model(ids, labels=ids).loss.backward()
    assert worst_gradient_error(again, fast) < 1e-6


def test_hooks_of_accelerate_reach_the_fast_forward(monkeypatch):
    hooks = pytest.importorskip("accelerate.hooks")
    _, fast = pair()
    ids = tokens()
    expected = fast(ids).logits
    hooked = random_model()
    for layer in hooked.backbone.layers:
        hooks.add_hook_to_module(layer.mixer, hooks.ModelHook())
    bind_fast_paths(hooked)
    assert torch.equal(hooked(ids).logits, expected)
    unbind_fast_paths(hooked)
    torch.testing.assert_close(hooked(ids).logits, expected, **LOGITS)
    monkeypatch.setattr(FastMambaMixer, "_scan", None)  # unbound: ours is not called any more
    hooked(ids)


def test_three_stacked_models_under_vmap_equal_a_loop():
    models = [random_model(seed=seed).backbone for seed in range(3)]
    mixers = []
    for model in models:
        bind_fast_paths(model)
        mixers.append(model.layers[0].mixer)
    hidden = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(7))
    parameters, buffers = torch.func.stack_module_state(mixers)

    def loss(parameters, buffers):
        return torch.func.functional_call(mixers[0], (parameters, buffers), hidden).square().sum()

    gradients, values = torch.func.vmap(torch.func.grad_and_value(loss))(parameters, buffers)
    for i, mixer in enumerate(mixers):
        value = mixer(hidden).square().sum()
        torch.testing.assert_close(values[i], value, rtol=1e-5, atol=0)
        for name, parameter in mixer.named_parameters():
            (expected,) = torch.autograd.grad(value, parameter, retain_graph=True)
            error = (gradients[name][i] - expected).abs().max() / expected.abs().max()
            assert error < 1e-5, name


def test_bfloat16_and_autocast_stay_close_to_float32():
    _, fast = pair()
    ids = tokens()
    expected = fast(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fast(ids).logits
    low = copy.deepcopy(fast).bfloat16()(ids).logits
    # bfloat16 keeps 8 bits: 0.4 % per rounding, a dozen roundings deep, relative to the spread.
    for found in (mixed, low):
        assert (found.float() - expected).std() < 0.03 * expected.std()


@pytest.mark.parametrize("family", ["falcon_mamba", "jamba"])
def test_relatives_of_mamba_keep_their_numbers_and_continue_exactly(family):
    stock = tiny(family, variant=0)
    fast = copy.deepcopy(stock)
    assert bind_fast_paths(fast) == {"selective_scan": "torch-step"}
    ids = token_ids(stock, 2, 21)
    outputs = [model(ids, labels=ids, use_cache=False) for model in (stock, fast)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, **LOGITS)
    for output in outputs:
        output.loss.backward()
    assert worst_gradient_error(fast, stock) < 1e-5
    assert doctor(fast, ["chunked-prefill", "decode", "left-padding", "adapter-reach"]).passed
    unbind_fast_paths(fast)
    assert not doctor(fast, ["chunked-prefill"]).passed
