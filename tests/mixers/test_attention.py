"""Attention against loops, against Llama's layer, and its window, positions and cache."""

import numpy
import pytest
import torch

from manticore.mixers import attention
from manticore.mixers.attention import AttentionSpec
from manticore.mixers.rotary import rotate
from manticore.mixers.softmax_attention import (
    softmax_attention,
    softmax_attention_naive,
    window_attention,
)
from manticore.seeds import torch_generator
from tests.mixers.small import tokens

# One float32 softmax over a few dozen keys, summed in another order.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def build(**settings):
    return AttentionSpec(**settings).build(torch_generator(0))


def loops(mixer, x):
    """One head, one position and one pair at a time, in float64."""
    spec = mixer.spec
    weights = {name: value.detach().double().numpy() for name, value in mixer.named_parameters()}
    size, width = spec.head_size, int(spec.head_size * spec.rotary_fraction)

    def heads(name, token):
        made = weights[f"{name}.weight"] @ token + weights.get(f"{name}.bias", 0)
        return made.reshape(-1, size)

    def turned(head, position):
        out = head.copy()
        for i in range(width // 2):
            angle = position * spec.rotary_base ** (-2 * i / width)
            a, b = head[i], head[i + width // 2]
            out[i] = a * numpy.cos(angle) - b * numpy.sin(angle)
            out[i + width // 2] = b * numpy.cos(angle) + a * numpy.sin(angle)
        return out

    y = numpy.zeros(x.shape)
    for row in range(x.shape[0]):
        tokens_ = x[row].double().numpy()
        for t in range(x.shape[1]):
            first = 0 if spec.window is None else max(0, t - spec.window + 1)
            mixed = []
            for h, q in enumerate(heads("q", tokens_[t])):
                group = h // (spec.n_heads // spec.kv_heads)
                seen = range(first, t + 1)
                keys = [turned(heads("k", tokens_[s])[group], s) for s in seen]
                scores = numpy.array([turned(q, t) @ key for key in keys]) / size**0.5
                share = numpy.exp(scores - scores.max())
                share /= share.sum()
                values = [heads("v", tokens_[s])[group] for s in seen]
                mixed.append(sum(p * v for p, v in zip(share, values, strict=True)))
            out = weights["output.weight"] @ numpy.concatenate(mixed)
            y[row, t] = out + weights.get("output.bias", 0)
    return y


@pytest.mark.parametrize(
    "settings",
    [
        {"n_heads": 2},
        {"n_heads": 4, "n_kv_heads": 2, "rotary_fraction": 0.5},
        {"n_heads": 4, "n_kv_heads": 1, "head_dim": 6, "window": 4, "rotary_base": 50.0},
        {"n_heads": 2, "rotary_fraction": 0.0, "qkv_bias": False, "output_bias": False},
    ],
)
def test_attention_equals_loops(settings):
    mixer = build(d_model=16, **settings).double()
    x = tokens(2, 13, 16).double()
    with torch.no_grad():
        numpy.testing.assert_allclose(mixer(x), loops(mixer, x), rtol=1e-9, atol=1e-9)
    numbers = sum(p.numel() for p in mixer.parameters())
    assert numbers == mixer.spec.num_parameters()


@pytest.mark.parametrize(("n_kv_heads", "bias"), [(4, True), (2, False), (1, True)])
def test_attention_equals_llamas_layer_with_the_same_weights(n_kv_heads, bias):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attention_bias=bias,
        attn_implementation="eager",
    )
    theirs = llama.LlamaAttention(config, layer_idx=0)
    ours = build(
        d_model=32,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        rotary_base=500.0,
        qkv_bias=bias,
        output_bias=bias,
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            ours.get_parameter(name.replace("o_proj", "output").replace("_proj", "")).copy_(
                parameter
            )
        x = tokens(2, 21, 32)
        positions = torch.arange(21).unsqueeze(0) + 5
        cosine_sine = llama.LlamaRotaryEmbedding(config)(x, positions)
        future = torch.full((21, 21), float("-inf")).triu(1)
        expected = theirs(x, cosine_sine, future)[0]
        torch.testing.assert_close(ours(x, positions=positions), expected, **CLOSE)
        # Only distances count, so the default start at 0 gives the same.
        torch.testing.assert_close(ours(x), expected, **CLOSE)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("past", [0, 3])
def test_fused_attention_equals_the_naive_one_in_outputs_and_gradients(n_kv_heads, past):
    generator = torch_generator(0)
    q, k, v = (
        torch.randn(2, heads, length, 8, generator=generator, requires_grad=True)
        for heads, length in ((4, 9), (n_kv_heads, 9 + past), (n_kv_heads, 9 + past))
    )
    visible = torch.ones(9, 9 + past, dtype=torch.bool).tril(past)
    weights = torch.randn(2, 4, 9, 8, generator=generator)
    found, expected = (
        torch.autograd.grad((attend(q, k, v, visible) * weights).sum(), (q, k, v))
        for attend in (softmax_attention, softmax_attention_naive)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("seq_len", [1, 5, 6, 23, 64])
@pytest.mark.parametrize("window", [1, 2, 6, 100])
@pytest.mark.parametrize("has_past", [False, True])
def test_window_in_blocks_equals_a_band_in_the_mask(window, seq_len, has_past):
    past = min(window - 1, 4) if has_past else 0
    generator = torch_generator(0)
    q, k, v = (
        torch.randn(2, heads, length, 4, generator=generator)
        for heads, length in ((4, seq_len), (2, seq_len + past), (2, seq_len + past))
    )
    band = torch.ones(seq_len, seq_len + past, dtype=torch.bool).tril(past).triu(past - window + 1)
    torch.testing.assert_close(
        window_attention(q, k, v, window), softmax_attention_naive(q, k, v, band), **CLOSE
    )


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_window_counts_the_positions_seen_itself_included(window):
    mixer = build(d_model=16, n_heads=2, window=window)
    x = tokens(1, 12, 16)
    expected = mixer(x)
    for t in range(12):
        changed = x.clone()
        changed[:, t] += 1
        moved = (mixer(changed) - expected).abs().amax(dim=-1)[0] > 1e-6
        reached = torch.arange(12)
        assert torch.equal(moved, (reached >= t) & (reached < t + window))


@torch.no_grad()
def test_a_window_bounds_the_state_and_its_memory():
    mixer = build(d_model=16, n_heads=2, window=8)
    x = tokens(1, 300, 16)
    _, state = mixer.prefill(x)
    assert state["k"].shape == (1, 2, 7, 8)
    assert state["k"].untyped_storage().nbytes() == 7 * 16 * 4
    assert mixer.state_size(300) == mixer.state_size(10_000) == 2 * 7 * 16


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
def test_padding_between_pieces_is_as_if_it_were_not_there(window):
    mixer = build(d_model=16, n_heads=2, window=window)
    x = tokens(2, 20, 16)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, [0, 1, 7, 8, 9, 10, 11]] = False
    mask[1, [9, 18, 19]] = False
    state, outputs = None, []
    for start, end in ((0, 9), (9, 10), (10, 20)):
        y, state = mixer.prefill(x[:, start:end], state, mask[:, start:end])
        outputs.append(y)
    y = torch.cat(outputs, dim=1)
    after, _ = mixer.step(tokens(2, 1, 16, seed=1)[:, 0], state)
    for row in range(2):
        alone, alone_state = mixer.prefill(x[row : row + 1, mask[row]])
        torch.testing.assert_close(y[row, mask[row]], alone[0], **CLOSE)
        expected, _ = mixer.step(tokens(2, 1, 16, seed=1)[row : row + 1, 0], alone_state)
        torch.testing.assert_close(after[row], expected[0], **CLOSE)
        torch.testing.assert_close(mixer(x, mask)[row, mask[row]], alone[0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
def test_every_position_sees_something_padding_too(monkeypatch, window):
    # torch's kernel gives 0 for a softmax over nothing; the plain one, and others, not a number.
    monkeypatch.setattr(attention, "softmax_attention", softmax_attention_naive)
    mask = torch.arange(9).expand(2, 9) >= torch.tensor([[4], [9]])
    assert build(d_model=16, n_heads=2, window=window)(tokens(2, 9, 16), mask).isfinite().all()


@torch.no_grad()
def test_given_positions_are_used_and_without_rotation_none_are():
    x = tokens(1, 9, 16)
    spread = torch.arange(9).unsqueeze(0) * 3
    rotated = build(d_model=16, n_heads=2)
    assert (rotated(x, positions=spread) - rotated(x)).abs().max() > 1e-3
    plain = build(d_model=16, n_heads=2, rotary_fraction=0.0)
    assert torch.equal(plain(x, positions=spread), plain(x))


@torch.no_grad()
def test_angles_are_exact_at_long_positions_in_bfloat16():
    x = tokens(1, 4, 8)[:, None].bfloat16()
    far = torch.tensor([[4096, 4097, 4098, 4099]])
    expected = rotate(x.double(), far)
    # bfloat16 rounds the result by 1 in 256; angles in bfloat16 would be off by whole turns.
    assert (rotate(x, far).double() - expected).abs().max() < 2**-7 * expected.abs().max()


def test_second_derivatives_under_torch_func_are_refused_and_name_the_way_out():
    def loss(q):
        return softmax_attention(q, q, q, is_causal=True).square().sum()

    q = tokens(1, 4, 4)[:, None]
    with pytest.raises(RuntimeError, match="softmax_attention_naive"):
        torch.func.grad(lambda q: torch.func.grad(loss)(q).sum())(q)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide d_model=16"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=4"),
        ({"n_heads": 4, "head_dim": 0}, "head_dim=0"),
        ({"n_heads": 4, "window": 0}, "window=0 must be 1"),
        ({"n_heads": 16}, "rotates 1, which is odd"),
        ({"n_heads": 4, "rotary_fraction": 1.5}, "rotary_fraction=1.5"),
        ({"n_heads": 4, "rotary_base": 0.5}, "rotary_base=0.5"),
    ],
)
def test_settings_that_contradict_each_other_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        AttentionSpec(d_model=16, **settings)
