"""The chunked scan with decay against plain loops, at decays from none to complete."""

import numpy
import pytest
import torch

from manticore.mixers.decayed_scan import decayed_scan, decayed_scan_naive
from manticore.seeds import torch_generator

KEY, VALUE, HEADS = 6, 5, 3
# A float32 sum over up to 257 terms in another order, relative to the largest entry.
TOLERANCE = 1e-5
DECAYS = ["channel", "head", "none"]


def scan_inputs(batch, seq_len, decay="channel", strength=1.0, dtype=torch.float32, seed=0):
    generator = torch_generator(seed, "scan")

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "q": normal(batch, HEADS, seq_len, KEY),
        "k": normal(batch, HEADS, seq_len, KEY),
        "v": normal(batch, HEADS, seq_len, VALUE),
        "log_decay": -strength
        * torch.exp(2 * normal(batch, HEADS, seq_len, 1 if decay == "head" else KEY)),
        "initial_state": normal(batch, HEADS, KEY, VALUE),
        "bonus": normal(HEADS, KEY),
    }
    if decay == "none":
        del inputs["log_decay"]
    return {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}


def run(scan, inputs):
    return scan(**{"log_decay": None, **inputs})


def outputs_and_gradients(scan, inputs):
    """Return y, the final state and the gradients of a fixed random functional of both."""
    y, state = run(scan, inputs)
    generator = torch_generator(0, "functional")
    loss = (y * torch.randn(y.shape, generator=generator)).sum()
    loss = loss + (state * torch.randn(state.shape, generator=generator)).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y, "state": state, **dict(zip(inputs, gradients, strict=True))}


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.keys() == expected.keys()
    for name, reference in expected.items():
        error = (found[name].double() - reference.double()).abs().max()
        assert error <= tolerance * reference.abs().max().clamp(min=1), (name, error)


def loops(q, k, v, log_decay, initial_state, bonus):
    """The equations, number by number in float64."""
    batch, heads, seq_len, n_keys = q.shape
    state = initial_state.copy()
    y = numpy.zeros(v.shape)
    for b in range(batch):
        for h in range(heads):
            for t in range(seq_len):
                now = numpy.outer(k[b, h, t], v[b, h, t])
                before = state[b, h].copy()
                for i in range(n_keys):
                    a = (
                        1.0
                        if log_decay is None
                        else numpy.exp(log_decay[b, h, t][i % log_decay.shape[-1]])
                    )
                    state[b, h, i] = a * before[i] + now[i]
                read = state[b, h] if bonus is None else before + bonus[h][:, None] * now
                y[b, h, t] = q[b, h, t] @ read
    return y, state


@pytest.mark.parametrize("has_bonus", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("seq_len", [1, 37])
def test_both_scans_equal_loops_in_float64(seq_len, decay, has_bonus):
    inputs = scan_inputs(2, seq_len, decay, dtype=torch.float64)
    plain = {name: value.detach().numpy() for name, value in inputs.items()}
    plain.setdefault("log_decay", None)
    if not has_bonus:
        plain["bonus"] = None
        del inputs["bonus"]
    y, state = loops(**plain)
    for scan in (decayed_scan, decayed_scan_naive):
        found_y, found_state = run(scan, inputs)
        numpy.testing.assert_allclose(found_y.detach(), y, rtol=1e-12, atol=1e-12)
        numpy.testing.assert_allclose(found_state.detach(), state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropped", [(), ("bonus",), ("bonus", "initial_state")])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("seq_len", [1, 63, 257])
def test_fast_scan_equals_naive_scan_in_outputs_and_gradients(seq_len, decay, dropped):
    inputs = {k: v for k, v in scan_inputs(2, seq_len, decay).items() if k not in dropped}
    assert_close(
        outputs_and_gradients(decayed_scan, inputs),
        outputs_and_gradients(decayed_scan_naive, inputs),
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("seq_len", [1, 63, 257])
def test_heads_that_share_queries_and_keys_equal_heads_with_copies_of_them(seq_len, groups):
    inputs = {k: v for k, v in scan_inputs(2, seq_len, "head").items() if k != "bonus"}
    timed = ("v", "log_decay", "initial_state")
    inputs |= {name: torch.cat([inputs[name], inputs[name].flip(-1, 2)], 1) for name in timed}
    inputs |= {name: inputs[name][:, :groups] for name in ("q", "k")}  # 6 heads, 1 or 2 of keys
    inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}

    def with_copies(q, k, **others):
        return decayed_scan(*(x.repeat_interleave(6 // groups, 1) for x in (q, k)), **others)

    expected = outputs_and_gradients(with_copies, inputs)
    assert_close(outputs_and_gradients(decayed_scan, inputs), expected)
    assert_close(outputs_and_gradients(decayed_scan_naive, inputs), expected)


@pytest.mark.parametrize("strength", [1e-6, 30.0, 1e4])
@pytest.mark.parametrize("decay", ["channel", "head"])
def test_slow_and_violent_decays_mixed_lose_no_accuracy(decay, strength):
    # The logarithms spread over a factor of e^12 around the strength, within one chunk.
    inputs = scan_inputs(2, 100, decay, strength)
    exact = {name: value.detach().double().requires_grad_() for name, value in inputs.items()}
    found = outputs_and_gradients(decayed_scan, inputs)
    assert all(value.isfinite().all() for value in found.values())
    # A gradient by a log decay of 1e-6 is a sum of many terms; the naive scan errs as much.
    assert_close(found, outputs_and_gradients(decayed_scan_naive, exact), 2e-5)


@pytest.mark.parametrize("decay", ["channel", "head"])
def test_a_decay_of_zero_forgets_everything_and_gives_finite_gradients(decay):
    inputs = {k: v.detach() for k, v in scan_inputs(1, 50, decay).items() if k != "bonus"}
    inputs["log_decay"][:, :, 20] = float("-inf")
    cut = {k: v[:, :, 20:] for k, v in inputs.items() if k != "initial_state"}
    y, state = decayed_scan(**inputs)
    y_cut, state_cut = decayed_scan(**cut)
    torch.testing.assert_close(y[:, :, 20:], y_cut, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, state_cut, atol=1e-5, rtol=1e-5)
    found = outputs_and_gradients(decayed_scan, {k: v.requires_grad_() for k, v in inputs.items()})
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("chunk", [1, 2, 16, 128])
@pytest.mark.parametrize("decay", DECAYS)
def test_the_length_of_a_chunk_changes_nothing(decay, chunk):
    inputs = scan_inputs(1, 70, decay)
    found = outputs_and_gradients(lambda **x: decayed_scan(**x, chunk=chunk), inputs)
    assert_close(found, outputs_and_gradients(decayed_scan_naive, inputs))


@pytest.mark.parametrize("has_bonus", [False, True])
def test_a_split_with_the_state_carried_over_equals_the_whole(has_bonus):
    inputs = {k: v.detach() for k, v in scan_inputs(2, 63).items() if has_bonus or k != "bonus"}
    y, state = decayed_scan(**inputs)
    timed = ("q", "k", "v", "log_decay")
    pieces, carried = [], inputs.pop("initial_state")
    for start, end in ((0, 1), (1, 30), (30, 63)):
        piece = {k: v[:, :, start:end] if k in timed else v for k, v in inputs.items()}
        piece_y, carried = decayed_scan(**piece, initial_state=carried)
        pieces.append(piece_y)
    torch.testing.assert_close(torch.cat(pieces, dim=2), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(carried, state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_equal_finite_differences_in_float64(decay):
    inputs = scan_inputs(1, 5, decay, dtype=torch.float64)
    names = list(inputs)

    def scan(*values):
        return run(decayed_scan, dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


def test_bfloat16_inputs_keep_a_float32_state():
    # Same rounded inputs on both sides, so that only the arithmetic differs.
    rounded = {k: v.detach().bfloat16() for k, v in scan_inputs(2, 257).items()}
    expected_y, expected_state = decayed_scan(**{k: v.float() for k, v in rounded.items()})
    for context in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            y, state = decayed_scan(**rounded)
        assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(y, expected_y.bfloat16())
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("shared", [(), ("bonus", "log_decay"), ("q", "initial_state")])
def test_vmap_over_three_models_equals_a_loop_in_values_and_gradients(shared):
    each = [scan_inputs(2, 23, seed=seed) for seed in range(3)]
    names = list(each[0])
    values = [each[0][k] if k in shared else torch.stack([x[k] for x in each]) for k in names]
    values = [value.detach() for value in values]
    in_dims = tuple(None if name in shared else 0 for name in names)

    def loss(*values):
        y, state = decayed_scan(**dict(zip(names, values, strict=True)))
        return (y * y).sum() + (state**3).sum()

    derivative = torch.func.grad_and_value(loss, tuple(range(len(names))))
    gradients, losses = torch.func.vmap(derivative, in_dims)(*values)
    for i in range(3):
        one = [v if n in shared else v[i] for n, v in zip(names, values, strict=True)]
        expected, value = derivative(*one)
        torch.testing.assert_close(losses[i], value, rtol=1e-5, atol=1e-5)
        found = dict(zip(names, (g[i] for g in gradients), strict=True))
        assert_close(found, dict(zip(names, expected, strict=True)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("k", (2, HEADS, 9, KEY + 1), "k has shape"),
        ("v", (2, HEADS, 8, VALUE), "v has shape"),
        ("log_decay", (2, HEADS, 9, 2), r"log_decay has shape \(2, 3, 9, 2\)"),
        ("bonus", (KEY,), "bonus has shape"),
        ("initial_state", (2, HEADS, VALUE, KEY), "initial_state has shape"),
    ],
)
def test_wrong_shapes_are_named_before_any_work(name, shape, message):
    inputs = scan_inputs(2, 9) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        decayed_scan(**inputs)


@pytest.mark.parametrize("reason", ["channel", "bonus", "division"])
def test_sharing_that_cannot_be_is_refused(reason):
    inputs = scan_inputs(2, 9, "channel" if reason == "channel" else "head")
    if reason != "bonus":
        del inputs["bonus"]
    keys = 2 if reason == "division" else 1  # 2 do not divide the 3 heads of v
    inputs |= {name: torch.zeros(2, keys, 9, KEY) for name in ("q", "k")}
    with pytest.raises(ValueError, match="v has shape"):
        decayed_scan(**inputs)


def test_a_chunk_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="chunk=48 must be a power of two"):
        decayed_scan(**scan_inputs(1, 9), chunk=48)


@pytest.mark.slow
def test_scans_equal_the_naive_ones_of_flash_linear_attention():
    gla = pytest.importorskip("fla.ops.gla.naive")
    rwkv6 = pytest.importorskip("fla.ops.rwkv6.recurrent_naive")
    inputs = {k: v.detach() for k, v in scan_inputs(2, 63).items()}
    q, k, v, log_decay = (inputs[name] for name in ("q", "k", "v", "log_decay"))
    by_time = [x.transpose(1, 2) for x in (q, k, v, log_decay)]
    y, state = gla.naive_recurrent_gla(*by_time, inputs["initial_state"], True)
    found = decayed_scan(q * KEY**-0.5, k, v, log_decay, inputs["initial_state"])
    expected = {"y": y.transpose(1, 2), "state": state}
    assert_close(dict(zip(("y", "state"), found, strict=True)), expected)
    y, state = rwkv6.naive_recurrent_rwkv6(
        q, k, v, log_decay, inputs["bonus"], 1.0, inputs["initial_state"], True
    )
    found = decayed_scan(**inputs)
    assert_close(dict(zip(("y", "state"), found, strict=True)), {"y": y, "state": state})
