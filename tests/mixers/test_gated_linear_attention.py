"""Gated linear attention against loops in float64."""

import numpy
import pytest
import torch

from manticore.mixers.gated_linear_attention import GatedLinearAttentionSpec
from manticore.seeds import torch_generator
from tests.mixers.small import tokens


def loops(mixer, x):
    """One row, one head and one position at a time."""
    spec, heads = mixer.spec, mixer.spec.n_heads
    weights = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    y = numpy.zeros((*x.shape[:2], spec.d_model))
    for row in range(x.shape[0]):
        state = numpy.zeros((heads, spec.key_width // heads, spec.value_width // heads))
        for t, token in enumerate(x[row].numpy()):
            q, k, v = (
                (weights[f"{part}.weight"] @ token).reshape(heads, -1) for part in ("q", "k", "v")
            )
            logits = weights["decay_up.weight"] @ (weights["decay_down.weight"] @ token)
            keep = 1 / (1 + numpy.exp(-(logits + weights["decay_up.bias"])))
            keep = keep.reshape(heads, -1) ** (1 / spec.gate_normalizer)
            outputs = []
            for h in range(heads):
                state[h] = keep[h][:, None] * state[h] + numpy.outer(k[h], v[h])
                read = q[h] @ state[h] / len(q[h]) ** 0.5
                read = read / ((read**2).mean() + spec.norm_eps) ** 0.5
                outputs.append(read * weights["norm.weight"])
            mixed = numpy.concatenate(outputs)
            if spec.use_gate:
                gate = weights["gate.weight"] @ token
                mixed = mixed * gate / (1 + numpy.exp(-gate))
            y[row, t] = weights["output.weight"] @ mixed
    return y


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"n_heads": 1},
        {"n_heads": 4, "expand_key": 0.5},
        {"n_heads": 2, "expand_value": 2.0, "gate_rank": 3, "use_gate": False},
        # Decays of a few per cent a step: quotients of cumulated decays would overflow.
        {"n_heads": 2, "gate_normalizer": 0.05},
    ],
)
def test_gated_linear_attention_equals_loops(settings):
    spec = GatedLinearAttentionSpec(d_model=16, **settings)
    mixer = spec.build(torch_generator(0)).double()
    for parameter in mixer.parameters():
        noise = torch.randn(parameter.shape, generator=torch_generator(1), dtype=torch.float64)
        parameter.add_(0.3 * noise)
    x = tokens(2, 41, 16).double()
    numpy.testing.assert_allclose(mixer(x), loops(mixer, x), rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in mixer.parameters()) == spec.num_parameters()
    _, state = mixer.prefill(x)
    assert state["memory"][0].numel() == spec.state_size(41)


@torch.no_grad()
def test_decays_start_near_half_a_gate_and_forget_slowly():
    mixer = GatedLinearAttentionSpec(d_model=64).build(torch_generator(0))
    x = torch.zeros(1, 1, 64)
    x[..., 0] = 1
    _, state = mixer.prefill(x)
    _, later = mixer.prefill(torch.zeros(1, 16, 64), state)
    # sigmoid(0)^(1/16) sixteen times is a half.
    torch.testing.assert_close(later["memory"], 0.5 * state["memory"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide"),
        ({"n_heads": 8, "expand_key": 0.25}, "n_heads=8 does not divide 4, .*expand_key=0.25"),
        ({"n_heads": 4, "gate_rank": 0}, "gate_rank=0 must be 1 or more"),
        ({"n_heads": 4, "gate_normalizer": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        GatedLinearAttentionSpec(d_model=16, **settings)
