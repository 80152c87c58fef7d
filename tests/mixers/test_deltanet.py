"""DeltaNet against a plain loop over its equations, and what its settings promise."""

import pytest
import torch
import torch.nn.functional as F

from manticore.mixers.deltanet import DeltaNetSpec
from manticore.mixers.table import mixer_spec
from manticore.seeds import torch_generator
from tests.mixers.small import tokens

SETTINGS = {
    "paper": {},
    "other sizes": {"n_heads": 2, "expand_key": 0.5, "expand_value": 1.5, "conv_size": 3},
    "no convolution": {"conv_size": 0},
    "gate": {"use_gate": True, "norm_eps": 0.1},
    "negative eigenvalues": {"allow_neg_eigval": True},
    "no strength": {"use_beta": False},
    "relu, sum": {"qk_activation": "relu", "qk_norm": "sum"},
    "elu": {"qk_activation": "elu"},
    "identity": {"qk_activation": "identity"},
}


def small(**settings):
    spec = DeltaNetSpec(**{"d_model": 16, "n_heads": 4, **settings})
    return spec.build(torch_generator(0, "deltanet"))


def plain(mixer, x):
    """The paper's equations for one sequence (T, D), one head and one token at a time."""
    spec = mixer.spec
    keys, values = round(16 * spec.expand_key), round(16 * spec.expand_value)
    qkv = torch.cat([x @ m.weight.T for m in (mixer.q, mixer.k, mixer.v)], dim=1)
    if spec.conv_size:
        padded = F.pad(qkv.T, (spec.conv_size - 1, 0))
        qkv = F.conv1d(padded, mixer.conv.weight[:, None], groups=len(padded)).T
    f = {
        "silu": F.silu,
        "relu": F.relu,
        "identity": lambda z: z,
        "elu": lambda z: torch.where(z > 0, z + 1, z.exp()),
    }[spec.qk_activation]
    q, k, v = qkv.split([keys, keys, values], dim=1)
    q, k, v = f(q), f(k), F.silu(v)
    beta = torch.sigmoid(x @ mixer.beta.weight.T) if spec.use_beta else torch.ones(len(x), 4)
    if spec.allow_neg_eigval:
        beta = 2 * beta
    heads = []
    for h in range(spec.n_heads):
        K, V = keys // spec.n_heads, values // spec.n_heads
        S, outputs = torch.zeros(K, V), []
        for t in range(len(x)):
            q_t, k_t = q[t, h * K : (h + 1) * K], k[t, h * K : (h + 1) * K]
            if spec.qk_norm == "sum":
                q_t, k_t = q_t / q_t.sum().clamp(min=1e-6), k_t / k_t.sum().clamp(min=1e-6)
            else:
                q_t = q_t / (q_t @ q_t + 1e-6).sqrt()
                k_t = k_t / (k_t @ k_t + 1e-6).sqrt()
            S = (torch.eye(K) - beta[t, h] * torch.outer(k_t, k_t)) @ S
            S = S + beta[t, h] * torch.outer(k_t, v[t, h * V : (h + 1) * V])
            y = S.T @ q_t / K**0.5
            outputs.append(y / ((y @ y) / V + spec.norm_eps).sqrt() * mixer.norm_weight)
        heads.append(torch.stack(outputs))
    y = torch.cat(heads, dim=1)
    if spec.use_gate:
        y = y * F.silu(x @ mixer.gate.weight.T)
    return y @ mixer.output.weight.T


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_deltanet_equals_its_equations_written_plainly(settings):
    mixer = small(**settings)
    mixer.norm_weight.add_(torch.randn(mixer.norm_weight.shape, generator=torch_generator(1)))
    x = tokens(2, 37, 16)
    expected = torch.stack([plain(mixer, row) for row in x])
    # An output of the norm is divided by its own size, which may be small.
    torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_formulas_hold_for_every_setting(settings):
    mixer = small(**settings)
    assert sum(p.numel() for p in mixer.parameters()) == mixer.spec.num_parameters()
    _, state = mixer.prefill(tokens(1, 9, 16))
    assert sum(value.numel() for value in state.values()) == mixer.state_size(9)
    y, _ = mixer.step(tokens(1, 1, 16)[:, 0], state)
    assert y.shape == (1, 16)


def test_the_default_has_the_state_that_architectures_are_compared_at():
    spec = mixer_spec("deltanet")
    assert spec.mixing_state_size(128) == 2048
    assert spec.num_parameters() == 4 * 128**2 + 128 * 8 + 3 * 128 * 4 + 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide"),
        ({"n_heads": 0}, "n_heads=0"),
        ({"expand_value": 0.3}, "expand_value=0.3"),
        ({"conv_size": -1}, "conv_size=-1"),
        ({"qk_activation": "gelu"}, "silu, relu, elu, identity"),
        ({"qk_norm": "l1"}, "'l2' or 'sum'"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)
