"""Retention against loops in float64, and its rates against the paper's."""

import cmath

import numpy
import pytest
import torch

from manticore.mixers.retention import RetentionSpec, log_decays
from manticore.seeds import torch_generator
from tests.mixers.small import tokens


def loops(mixer, x):
    """The parallel form of equation 5: every pair, its distance, and turned complex channels."""
    spec, heads = mixer.spec, mixer.spec.n_heads
    weights = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    half = int(spec.d_model // heads * spec.rotary_fraction) // 2
    y = numpy.zeros((*x.shape[:2], spec.d_model))
    for row in range(x.shape[0]):
        made = [
            {part: (weights[f"{part}.weight"] @ token).reshape(heads, -1) for part in "qkv"}
            for token in x[row].numpy()
        ]
        for t, token in enumerate(x[row].numpy()):
            outputs = []
            for h in range(heads):
                read = 0
                for s in range(t + 1):
                    q, k = made[t]["q"][h], made[s]["k"][h]
                    product = q[2 * half :] @ k[2 * half :]
                    for i in range(half):
                        angle = (t - s) * spec.rotary_base ** (-i / half)
                        pair = complex(q[i], q[i + half]) * complex(k[i], -k[i + half])
                        product += (pair * cmath.exp(1j * angle)).real
                    rate = (1 - 2.0 ** (-5 - h)) ** (t - s)
                    read = read + product / len(q) ** 0.5 * rate * made[s]["v"][h]
                outputs.append(normed(read, spec, weights))
            mixed = numpy.concatenate(outputs)
            if spec.use_gate:
                gate = weights["gate.weight"] @ token
                mixed = mixed * gate / (1 + numpy.exp(-gate))
            y[row, t] = weights["output.weight"] @ mixed
    return y


def normed(read, spec, weights):
    if spec.output_norm == "none":
        return read
    if spec.output_norm == "group":
        return (read - read.mean()) / (read.var() + spec.norm_eps) ** 0.5
    return read / ((read**2).mean() + spec.norm_eps) ** 0.5 * weights["norm.weight"]


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"n_heads": 2},
        {"n_heads": 4, "expand_value": 2.0, "output_norm": "rms", "rotary_fraction": 0.5},
        {"n_heads": 1, "rotary_fraction": 0.0, "use_gate": False, "output_norm": "none"},
    ],
)
def test_retention_equals_loops(settings):
    spec = RetentionSpec(d_model=16, **settings)
    mixer = spec.build(torch_generator(0)).double()
    for parameter in mixer.parameters():
        noise = torch.randn(parameter.shape, generator=torch_generator(1), dtype=torch.float64)
        parameter.add_(0.3 * noise)
    x = tokens(1, 35, 16).double()
    numpy.testing.assert_allclose(mixer(x), loops(mixer, x), rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in mixer.parameters()) == spec.num_parameters()


def test_rates_are_the_papers():
    kept = log_decays(4, torch.float64).exp()
    expected = torch.tensor([31 / 32, 63 / 64, 127 / 128, 255 / 256], dtype=torch.float64)
    torch.testing.assert_close(kept, expected)


@pytest.mark.slow
@torch.no_grad()
def test_plain_retention_equals_the_naive_one_of_flash_linear_attention():
    theirs = pytest.importorskip("fla.ops.retention.naive")
    settings = {"rotary_fraction": 0.0, "use_gate": False, "output_norm": "none"}
    mixer = RetentionSpec(d_model=16, n_heads=4, **settings).build(torch_generator(0))
    x = tokens(2, 63, 16)
    q, k, v = (
        part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (mixer.q, mixer.k, mixer.v)
    )
    expected = mixer.output(theirs.naive_retention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide d_model=16"),
        ({"n_heads": 16}, "is odd"),
        ({"n_heads": 2, "output_norm": "batch"}, "must be one of rms, group, none"),
        ({"n_heads": 2, "norm_eps": 0.0}, "norm_eps=0.0 must be greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        RetentionSpec(d_model=16, **settings)
