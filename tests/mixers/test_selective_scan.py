"""The fast selective scan against the naive one, against transformers, and against itself."""

import pytest
import torch
import torch.nn.functional as F

from manticore.mixers import scan_kernels
from manticore.mixers.selective_scan import (
    selective_scan,
    selective_scan_naive,
    selective_step,
)

D_INNER, STATE = 24, 5
# float32 sums of up to 257 terms in another order: a few units in the last place, relative to
# the largest entry, leave two orders of magnitude of room.
TOLERANCE = 1e-5


def scan_inputs(batch, seq_len, dtype=torch.float32, d_inner=D_INNER, state=STATE, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": normal(batch, seq_len, d_inner),
        "dt": F.softplus(normal(batch, seq_len, d_inner) - 2),
        "A": -torch.exp(normal(d_inner, state)),
        "B": normal(batch, seq_len, state),
        "C": normal(batch, seq_len, state),
        "D": normal(d_inner),
        "z": normal(batch, seq_len, d_inner),
        "initial_state": normal(batch, d_inner, state),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}


def outputs_and_gradients(scan, inputs):
    """Return y, the final state and the gradients of a fixed random functional of both."""
    y, final_state = scan(**inputs)
    weights = torch.Generator().manual_seed(99)
    loss = (y.float() * torch.randn(y.shape, generator=weights)).sum()
    loss = loss + (final_state.float() * torch.randn(final_state.shape, generator=weights)).sum()
    return {
        "y": y,
        "final_state": final_state,
        **dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True)),
    }


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.keys() == expected.keys()
    for name, reference in expected.items():
        error = (found[name].double() - reference.double()).abs().max()
        assert error <= tolerance * reference.abs().max().clamp(min=1), (name, error)


@pytest.mark.parametrize("dropped", [(), ("D",), ("z",), ("initial_state",), ("D", "z")])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seq_len", [1, 63, 257])
def test_fast_scan_equals_naive_scan_in_outputs_and_gradients(seq_len, batch, dropped):
    inputs = {k: v for k, v in scan_inputs(batch, seq_len).items() if k not in dropped}
    assert_close(
        outputs_and_gradients(selective_scan, inputs),
        outputs_and_gradients(selective_scan_naive, inputs),
    )


@pytest.mark.parametrize("steps", [(1, 1), (2, 2), (7, 7), (64, 64)])
def test_the_length_of_a_segment_changes_nothing(monkeypatch, steps):
    inputs = scan_inputs(2, 23)
    expected = outputs_and_gradients(selective_scan_naive, inputs)
    monkeypatch.setattr(scan_kernels, "_SEGMENT_STEPS", steps)
    assert_close(outputs_and_gradients(selective_scan, inputs), expected)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seq_len", [1, 63, 257])
def test_fast_scan_equals_transformers_in_outputs_and_gradients(seq_len, batch):
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")

    def transformers_scan(x, dt, A, B, C, D, z):
        y, state = mamba.mamba_selective_scan(
            *(t.transpose(1, 2) for t in (x, dt)),
            A,
            *(t.transpose(1, 2) for t in (B, C)),
            D=D,
            z=z.transpose(1, 2),
            return_last_state=True,
        )
        return y.transpose(1, 2), state

    inputs = {k: v for k, v in scan_inputs(batch, seq_len).items() if k != "initial_state"}
    assert_close(
        outputs_and_gradients(selective_scan, inputs),
        outputs_and_gradients(transformers_scan, inputs),
    )


@pytest.mark.parametrize("seq_len", [1, 5])
def test_gradients_equal_finite_differences_in_float64(monkeypatch, seq_len):
    monkeypatch.setattr(scan_kernels, "_SEGMENT_STEPS", (2, 2))  # three segments, one short
    inputs = scan_inputs(2, seq_len, torch.float64, d_inner=3, state=2)
    assert torch.autograd.gradcheck(lambda *args: selective_scan(*args), tuple(inputs.values()))


@pytest.mark.parametrize("cut", [1, 31, 62])
def test_split_with_carried_state_equals_the_whole(cut):
    inputs = scan_inputs(2, 63)

    def in_two_pieces(initial_state, A, D, **by_time):
        first = {k: v[:, :cut] for k, v in by_time.items()}
        second = {k: v[:, cut:] for k, v in by_time.items()}
        y_first, state = selective_scan(A=A, D=D, initial_state=initial_state, **first)
        y_second, state = selective_scan(A=A, D=D, initial_state=state, **second)
        return torch.cat([y_first, y_second], dim=1), state

    assert_close(
        outputs_and_gradients(in_two_pieces, inputs),
        outputs_and_gradients(selective_scan, inputs),
    )


def test_one_token_at_a_time_equals_one_call():
    inputs = {k: v.detach() for k, v in scan_inputs(2, 33).items()}
    expected, final_state = selective_scan(**inputs)
    state, shared = inputs.pop("initial_state"), {k: inputs.pop(k) for k in ("A", "D")}
    steps = []
    for t in range(33):
        now = {k: v[:, t : t + 1] for k, v in inputs.items()}
        y, state = selective_scan(**now, **shared, initial_state=state)
        steps.append(y)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, final_state, atol=1e-5, rtol=1e-5)


def test_bfloat16_inputs_keep_a_float32_state():
    # Same rounded inputs on both sides, so that only the arithmetic differs.
    rounded = {k: v.bfloat16() for k, v in scan_inputs(2, 257).items()}
    y, state = selective_scan(**rounded)
    expected_y, expected_state = selective_scan(**{k: v.float() for k, v in rounded.items()})
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, expected_y.bfloat16())
    assert torch.equal(state, expected_state)


def stacked_inputs(count, seq_len, shared=()):
    each = [scan_inputs(2, seq_len, seed=seed) for seed in range(count)]
    return {
        k: each[0][k] if k in shared else torch.stack([inputs[k] for inputs in each]).detach()
        for k in each[0]
    }


@pytest.mark.parametrize("seq_len", [1, 23])
@pytest.mark.parametrize("shared", [(), ("A", "D"), ("x", "z"), ("initial_state", "B", "dt")])
def test_vmap_over_three_models_equals_a_loop_in_values_and_gradients(seq_len, shared):
    stacked = stacked_inputs(3, seq_len, shared)
    names = list(stacked)
    in_dims = tuple(None if name in shared else 0 for name in names)

    def loss(*values):
        y, final_state = selective_scan(**dict(zip(names, values, strict=True)))
        return (y * y).sum() + (final_state**3).sum()

    arguments = tuple(range(len(names)))
    values = tuple(v.detach() for v in stacked.values())
    mapped = torch.func.vmap(torch.func.grad_and_value(loss, arguments), in_dims)(*values)
    for i in range(3):
        one = [v if n in shared else v[i] for n, v in zip(names, values, strict=True)]
        grads, value = torch.func.grad_and_value(loss, arguments)(*one)
        torch.testing.assert_close(mapped[1][i], value, rtol=1e-5, atol=1e-5)
        found = dict(zip(names, (g[i] for g in mapped[0]), strict=True))
        assert_close(found, dict(zip(names, grads, strict=True)))


def test_gradients_flow_through_an_outer_vmap_to_shared_and_stacked_inputs():
    stacked = {k: v.requires_grad_() for k, v in stacked_inputs(3, 23, ("A", "D")).items()}
    in_dims = tuple(None if k in ("A", "D") else 0 for k in stacked)

    def mapped(**inputs):
        return torch.func.vmap(selective_scan, in_dims)(*inputs.values())

    def looped(A, D, **rest):
        rows = [selective_scan(A=A, D=D, **{k: v[i] for k, v in rest.items()}) for i in range(3)]
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

    assert_close(outputs_and_gradients(mapped, stacked), outputs_and_gradients(looped, stacked))


def test_vmap_nests():
    inputs = {k: v.detach() for k, v in scan_inputs(2, 9).items()}
    names = [k for k in inputs if k not in ("A", "D")]
    twice = {k: torch.stack([torch.stack([v, 2 * v])] * 2) for k, v in inputs.items()}
    twice["A"], twice["D"] = inputs["A"], inputs["D"]
    in_dims = tuple(0 if k in names else None for k in inputs)
    mapped = torch.func.vmap(torch.func.vmap(selective_scan, in_dims), in_dims)
    y, _ = mapped(*twice.values())
    once = {k: 2 * v if k in names else v for k, v in inputs.items()}
    torch.testing.assert_close(y[1, 1], selective_scan(**once)[0], rtol=1e-5, atol=1e-5)


def test_frozen_A_leaves_the_other_gradients_as_they_were():
    inputs = scan_inputs(2, 23)
    others = {k: v for k, v in inputs.items() if k != "A"}
    frozen = inputs["A"].detach()
    found = outputs_and_gradients(lambda **rest: selective_scan(A=frozen, **rest), others)
    expected = outputs_and_gradients(selective_scan_naive, inputs)
    del expected["A"]
    assert_close(found, expected)


def test_second_derivative_is_refused_and_names_the_way_out():
    inputs = scan_inputs(1, 5)
    y, _ = selective_scan(**inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan_naive"):
        gradient.sum().backward()


def test_long_sequences_keep_a_few_states_and_not_one_per_step():
    inputs = scan_inputs(1, 1024, d_inner=64, state=16)
    kept = 0

    def count(tensor):
        nonlocal kept
        kept = max(kept, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        selective_scan(**inputs)
    all_states = 1024 * 64 * 16
    assert kept <= all_states / 16


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("dt", (2, 8, D_INNER), r"dt has shape \(2, 8, 24\).*ask for \(2, 9, 24\)"),
        ("A", (STATE, D_INNER), "ask for"),
        ("A", (1, D_INNER, STATE), r"must be \(d_inner, state\)"),
        ("initial_state", (2, STATE, D_INNER), "initial_state has shape"),
        ("x", (2, 0, D_INNER), "seq >= 1"),
    ],
)
def test_wrong_shapes_are_named_before_any_work(name, shape, message):
    inputs = scan_inputs(2, 9) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_without_a_time_dimension_equals_the_naive_scan(dtype):
    inputs = {name: value.detach() for name, value in scan_inputs(3, 1, dtype).items()}
    inputs["initial_state"] = inputs["initial_state"].float()
    y, final_state = selective_scan_naive(**inputs)
    timed = ("x", "dt", "B", "C", "z")
    step = {name: inputs[name].squeeze(1) if name in timed else inputs[name] for name in inputs}
    found, state = selective_step(**{"state": step.pop("initial_state"), **step})
    # bfloat16 outputs are rounded once, from the same float32 sums: one unit in the last place.
    room = 1e-6 if dtype == torch.float32 else 2**-7
    assert found.dtype == dtype
    assert_close(
        {"y": found.float(), "state": state},
        {"y": y.squeeze(1).float(), "state": final_state},
        room,
    )
