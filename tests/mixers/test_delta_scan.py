"""The chunked delta rule and RWKV-7's scan against their naive twins, and against others' code."""

import functools
import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from manticore.mixers.delta_scan import delta_scan, delta_scan_naive
from manticore.mixers.dplr_scan import dplr_scan, dplr_scan_naive
from manticore.seeds import torch_generator
from tests.mixers.flop_count import FlopCount

FASTEST = -math.exp(-0.5)
# float32 sums of up to 257 terms in another order. RWKV-7's chunks also divide by decays of up
# to exp(-0.61 * 16), and the gradient of a decay is a difference of sums over the chunk.
TOLERANCE = 1e-5

SCANS = {
    "delta": (delta_scan, delta_scan_naive),
    "gated delta": (delta_scan, delta_scan_naive),
    "dplr": (functools.partial(dplr_scan, fastest_decay=FASTEST), dplr_scan_naive),
}
every_scan = pytest.mark.parametrize("kind", list(SCANS))


def scan_inputs(kind, batch, seq_len, heads=2, keys=8, values=5, dtype=torch.float32, seed=0):
    generator = torch_generator(seed, "delta scan", kind)

    def normal(*shape):
        return torch.randn(batch, heads, *shape, generator=generator, dtype=torch.float64)

    unit = F.normalize(normal(seq_len, keys), dim=-1)
    inputs = {
        "q": normal(seq_len, keys) / keys**0.5,
        "k": unit,
        "v": normal(seq_len, values),
    }
    if kind == "dplr":
        inputs["k"] = normal(seq_len, keys)
        inputs["a"] = -unit
        inputs["b"] = unit * torch.sigmoid(normal(seq_len, keys))
        inputs["log_decay"] = FASTEST * torch.sigmoid(3 * normal(seq_len, keys))
    else:
        inputs["beta"] = 2 * torch.sigmoid(normal(seq_len))  # eigenvalues down to -1
    if kind == "gated delta":
        inputs["log_decay"] = -F.softplus(normal(seq_len) - 2)
    inputs["initial_state"] = normal(keys, values)
    return {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}


def outputs_and_gradients(scan, inputs):
    """Return y, the final state and the gradients of a fixed random functional of both."""
    y, final_state = scan(**inputs)
    weights = torch_generator(99)
    loss = (y * torch.randn(y.shape, generator=weights)).sum()
    loss = loss + (final_state * torch.randn(final_state.shape, generator=weights)).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y, "final_state": final_state, **dict(zip(inputs, gradients, strict=True))}


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.keys() == expected.keys()
    for name, reference in expected.items():
        error = (found[name].double() - reference.double()).abs().max()
        assert error <= tolerance * reference.abs().max().clamp(min=1), (name, error)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seq_len", [1, 2, 63, 257])
@every_scan
def test_fast_scan_equals_naive_scan_in_outputs_and_gradients(kind, seq_len, batch):
    fast, naive = SCANS[kind]
    inputs = scan_inputs(kind, batch, seq_len)
    assert_close(outputs_and_gradients(fast, inputs), outputs_and_gradients(naive, inputs))


@every_scan
def test_fast_scan_without_an_initial_state_starts_from_zeros(kind):
    fast, _ = SCANS[kind]
    inputs = scan_inputs(kind, 2, 21)
    zeros = torch.zeros_like(inputs.pop("initial_state"))
    for found, expected in zip(fast(**inputs), fast(**inputs, initial_state=zeros), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 64])
@every_scan
def test_the_length_of_a_chunk_changes_nothing(kind, chunk):
    fast, naive = SCANS[kind]
    inputs = scan_inputs(kind, 2, 45)
    found = outputs_and_gradients(functools.partial(fast, chunk=chunk), inputs)
    assert_close(found, outputs_and_gradients(naive, inputs))


@pytest.mark.parametrize("cut", [1, 31, 62])
@every_scan
def test_split_with_carried_state_equals_the_whole(kind, cut):
    fast, _ = SCANS[kind]
    inputs = scan_inputs(kind, 2, 63)

    def in_two_pieces(initial_state, **by_time):
        y_first, state = fast(
            initial_state=initial_state, **{k: t[:, :, :cut] for k, t in by_time.items()}
        )
        y_second, state = fast(
            initial_state=state, **{k: t[:, :, cut:] for k, t in by_time.items()}
        )
        return torch.cat([y_first, y_second], dim=2), state

    assert_close(outputs_and_gradients(in_two_pieces, inputs), outputs_and_gradients(fast, inputs))


@every_scan
def test_gradients_equal_finite_differences_in_float64(kind):
    fast, _ = SCANS[kind]
    inputs = scan_inputs(kind, 1, 5, heads=1, keys=3, values=2, dtype=torch.float64)
    scan = functools.partial(fast, chunk=2)  # three chunks, one short
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *values: scan(**dict(zip(names, values, strict=True))), tuple(inputs.values())
    )


@pytest.mark.parametrize("seq_len", [1, 35])
@every_scan
def test_vmap_over_three_models_equals_a_loop_in_values_and_gradients(kind, seq_len):
    fast, _ = SCANS[kind]
    each = [scan_inputs(kind, 2, seq_len, seed=seed) for seed in range(3)]
    names = list(each[0])
    stacked = tuple(torch.stack([inputs[name].detach() for inputs in each]) for name in names)

    def loss(*values):
        y, final_state = fast(**dict(zip(names, values, strict=True)))
        return (y * y).sum() + (final_state**3).sum()

    arguments = tuple(range(len(names)))
    gradients, values = torch.func.vmap(torch.func.grad_and_value(loss, arguments))(*stacked)
    for i in range(3):
        expected, value = torch.func.grad_and_value(loss, arguments)(*(t[i] for t in stacked))
        torch.testing.assert_close(values[i], value, rtol=1e-5, atol=1e-5)
        found = (gradient[i] for gradient in gradients)
        assert_close(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))


@pytest.mark.parametrize("way", ["inputs", "autocast"])
@every_scan
def test_bfloat16_outside_keeps_the_arithmetic_in_float32(kind, way):
    fast, _ = SCANS[kind]
    # Same rounded inputs on both sides, so that only the arithmetic differs.
    rounded = {k: v.detach().bfloat16() for k, v in scan_inputs(kind, 2, 65).items()}
    wide = {k: v.float() for k, v in rounded.items()}
    expected_y, expected_state = fast(**wide)
    if way == "inputs":
        y, state = fast(**rounded)
        assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(y, expected_y.bfloat16())
    else:
        with torch.autocast("cpu", torch.bfloat16):
            y, state = fast(**wide)
        assert torch.equal(y, expected_y)
    assert torch.equal(state, expected_state)


@every_scan
def test_a_step_that_writes_nothing_leaves_the_state_exactly_as_it_was(kind):
    fast, _ = SCANS[kind]
    inputs = {k: v.detach() for k, v in scan_inputs(kind, 2, 40).items()}
    for name in {"beta", "log_decay", "b"} & inputs.keys():
        inputs[name] = torch.zeros_like(inputs[name])
    if kind == "dplr":
        inputs["k"] = torch.zeros_like(inputs["k"])
    assert torch.equal(fast(**inputs)[1], inputs["initial_state"])


def test_the_same_key_written_a_hundred_times_holds_its_last_value():
    # The triangular system is all ones here; its powers, not its solution, would overflow.
    inputs = {k: v.detach() for k, v in scan_inputs("delta", 1, 100).items()}
    inputs["k"] = inputs["k"][:, :, :1].expand(-1, -1, 100, -1)
    inputs["beta"] = torch.ones_like(inputs["beta"])
    _, state = delta_scan(**inputs)
    held = (inputs["k"][:, :, 0].unsqueeze(-2) @ state).squeeze(-2)
    torch.testing.assert_close(held, inputs["v"][:, :, -1], rtol=1e-5, atol=1e-5)


def test_full_reflections_flip_a_state_at_every_step_and_lose_nothing():
    inputs = {k: v.detach() for k, v in scan_inputs("delta", 1, 2048).items()}
    key = inputs["k"][:, :, :1]
    inputs |= {
        "k": key.expand(-1, -1, 2048, -1),
        "v": torch.zeros_like(inputs["v"]),
        "beta": torch.full_like(inputs["beta"], 2),
    }
    inputs["initial_state"] = key.mT @ inputs["initial_state"][:, :, :1]  # along the key
    for seq_len, sign in ((2047, -1), (2048, 1)):
        by_time = {k: v if k == "initial_state" else v[:, :, :seq_len] for k, v in inputs.items()}
        _, state = delta_scan(**by_time)
        # |k| is 1 to float32's 6e-8, twice that per step, over 2,048 steps.
        torch.testing.assert_close(state, sign * inputs["initial_state"], rtol=1e-3, atol=1e-3)


def test_a_decay_to_nothing_gives_finite_outputs_and_gradients():
    inputs = scan_inputs("gated delta", 2, 40)
    strong = inputs["log_decay"].detach() - 100 * (torch.arange(40) % 3 == 0)
    inputs["log_decay"] = strong.requires_grad_()
    found = outputs_and_gradients(delta_scan, inputs)
    # 1,400 nats in one chunk are rounded to 6e-8 of themselves.
    assert_close(found, outputs_and_gradients(delta_scan_naive, inputs), 3e-4)


@pytest.mark.parametrize("fastest", [-0.01, -5.0, -79.0])
def test_the_fastest_decay_at_every_step_is_still_right(fastest):
    inputs = scan_inputs("dplr", 2, 65)
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], fastest).requires_grad_()
    scan = functools.partial(dplr_scan, fastest_decay=fastest, chunk=64)
    assert_close(
        outputs_and_gradients(scan, inputs), outputs_and_gradients(dplr_scan_naive, inputs), 3e-5
    )


def test_the_delta_rule_is_a_case_of_rwkv7s_scan():
    inputs = {k: v.detach() for k, v in scan_inputs("gated delta", 2, 50).items()}
    decay = inputs["log_decay"].clamp(min=FASTEST).unsqueeze(-1)
    q, k, v, state = (inputs[name] for name in ("q", "k", "v", "initial_state"))
    written = inputs["beta"].unsqueeze(-1) * k
    expected = delta_scan(q, k, v, inputs["beta"], decay.squeeze(-1), state)
    found = dplr_scan(
        q, written, v, -decay.exp() * k, written, decay.expand_as(k), state, fastest_decay=FASTEST
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every_scan
def test_twice_the_length_costs_twice_the_work(kind):
    fast, _ = SCANS[kind]
    work = []
    for seq_len in (512, 1024):
        inputs = {k: v.detach() for k, v in scan_inputs(kind, 1, seq_len).items()}
        with FlopCount() as count, torch.no_grad():
            fast(**inputs)
        work.append(count.products + count.elementwise)
    assert work[1] == pytest.approx(2 * work[0], rel=0.01)


@pytest.mark.parametrize("seq_len", [1, 63, 130])
def test_gated_delta_scan_equals_transformers(seq_len):
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    inputs = scan_inputs("gated delta", 2, seq_len)

    def transformers_scan(q, k, v, beta, log_decay, initial_state):
        q, k, v, beta, g = (t.transpose(1, 2) for t in (q, k, v, beta, log_decay))
        # Unwrapped: with flash-linear-attention installed it would call that, on a GPU.
        plain = inspect.unwrap(qwen.torch_chunk_gated_delta_rule)
        y, state = plain(
            q * q.shape[-1] ** 0.5,  # it divides by this itself
            k,
            v,
            g=g,
            beta=beta,
            initial_state=initial_state,
            output_final_state=True,
        )
        return y.transpose(1, 2), state

    assert_close(
        outputs_and_gradients(delta_scan, inputs),
        outputs_and_gradients(transformers_scan, inputs),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seq_len", [1, 63, 257])
@every_scan
def test_fast_scan_equals_the_naive_one_of_flash_linear_attention(kind, seq_len):
    place = {
        "delta": "fla.ops.delta_rule.naive",
        "gated delta": "fla.ops.gated_delta_rule.naive",
        "dplr": "fla.ops.generalized_delta_rule.dplr.naive",
    }[kind]
    naive = pytest.importorskip(place)
    inputs = {k: v.detach() for k, v in scan_inputs(kind, 2, seq_len).items()}
    y, state = SCANS[kind][0](**inputs)
    inputs["q"] = inputs["q"] * inputs["q"].shape[-1] ** 0.5  # they divide by this themselves
    if kind == "delta":
        expected, expected_state = naive.delta_rule_recurrence(**inputs)
    elif kind == "gated delta":
        by_time = {k: inputs[k].transpose(1, 2) for k in ("q", "k", "v", "beta")}
        expected, expected_state = naive.naive_recurrent_gated_delta_rule(
            **by_time,
            g=inputs["log_decay"].transpose(1, 2),
            initial_state=inputs["initial_state"],
            output_final_state=True,
        )
        expected = expected.transpose(1, 2)
    else:
        renamed = {"a": "alpha", "b": "beta", "log_decay": "gk"}
        expected, expected_state = naive.dplr_recurrence(
            **{renamed.get(k, k): v for k, v in inputs.items()}
        )
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "shape", "message"),
    [
        ("delta", "beta", (2, 2, 8), r"beta has shape \(2, 2, 8\).*ask for \(2, 2, 9\)"),
        ("gated delta", "log_decay", (2, 2, 9, 1), "log_decay has shape"),
        ("delta", "q", (2, 2, 0, 8), "seq >= 1"),
        ("dplr", "a", (2, 2, 9, 5), "a has shape"),
        ("dplr", "initial_state", (2, 2, 5, 8), "initial_state has shape"),
    ],
)
def test_wrong_shapes_are_named_before_any_work(kind, name, shape, message):
    inputs = scan_inputs(kind, 2, 9) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        SCANS[kind][0](**inputs)


@pytest.mark.parametrize("fastest", [0.0, 0.5, -81.0, math.nan])
def test_a_bound_that_no_chunk_can_hold_is_refused_and_names_the_way_out(fastest):
    with pytest.raises(ValueError, match="dplr_scan_naive"):
        dplr_scan(**scan_inputs("dplr", 1, 4), fastest_decay=fastest)
