"""RWKV's mixers against plain loops over the papers' equations; sizes, depth, value residual."""

import pytest
import torch
import torch.nn.functional as F

from manticore.mixers.rwkv5 import RWKV5Spec
from manticore.mixers.rwkv6 import RWKV6Spec
from manticore.mixers.rwkv7 import RWKV7Spec
from manticore.mixers.rwkv_channel import RWKVChannelSpec
from manticore.mixers.table import mixer_spec
from manticore.seeds import torch_generator
from tests.mixers.small import small_mixer, tokens

D, HEAD = 12, 4
TIME_SPECS = {"rwkv5": RWKV5Spec, "rwkv6": RWKV6Spec, "rwkv7": RWKV7Spec}


def shaken(spec):
    """A mixer with every weight off its start, so that none of them hides."""
    generator = torch_generator(0, "rwkv")
    mixer = spec.build(generator)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return mixer


def low_rank(part, x, f):
    y = part.up.weight @ f(part.down.weight @ x)
    return y if part.bias is None else y + part.bias


def read_heads(mixer, S, r, k, v, decay, bonus):
    """One token of RWKV-5 and 6: the outputs of all heads, normed, and the states after it."""
    y = []
    for h in range(D // HEAD):
        part = slice(h * HEAD, (h + 1) * HEAD)
        write = torch.outer(k[part], v[part])
        y.append((S[h] + bonus[part, None] * write).T @ r[part])
        S[h] = decay[part, None] * S[h] + write
    return norm_heads(mixer, y), S


def norm_heads(mixer, y):
    y = [(u - u.mean()) / (u.var(unbiased=False) + mixer.spec.norm_eps).sqrt() for u in y]
    return torch.cat(y) * mixer.norm.weight + mixer.norm.bias


def plain_rwkv5(mixer, xs):
    S, last, outputs = [torch.zeros(HEAD, HEAD) for _ in range(D // HEAD)], torch.zeros(D), []
    for x in xs:
        r, k, v, g = (m * x + (1 - m) * last for m in mixer.blend)
        r, k, v = mixer.receptance(r), mixer.key(k), mixer.value(v)
        y, S = read_heads(mixer, S, r, k, v, torch.exp(-torch.exp(mixer.decay)), mixer.bonus)
        outputs.append(mixer.output(y * F.silu(mixer.gate(g))))
        last = x
    return torch.stack(outputs)


def plain_rwkv6(mixer, xs):
    S, last, outputs = [torch.zeros(HEAD, HEAD) for _ in range(D // HEAD)], torch.zeros(D), []
    rank = mixer.spec.blend_rank
    for x in xs:
        blended = x + (last - x) * mixer.blend_of_blends
        inner = torch.tanh(mixer.blend_down(blended))
        w, k, v, r, g = (
            x + (last - x) * (mixer.blends[i] + inner[i * rank : (i + 1) * rank] @ up)
            for i, up in enumerate(mixer.blend_up)
        )
        decay = torch.exp(-torch.exp(low_rank(mixer.decay, w, torch.tanh)))
        r, k, v = mixer.receptance(r), mixer.key(k), mixer.value(v)
        y, S = read_heads(mixer, S, r, k, v, decay, mixer.bonus)
        outputs.append(mixer.output(y * F.silu(mixer.gate(g))))
        last = x
    return torch.stack(outputs)


def plain_rwkv7(mixer, xs, first_values=None):
    S, last, outputs = [torch.zeros(HEAD, HEAD) for _ in range(D // HEAD)], torch.zeros(D), []
    for t, x in enumerate(xs):
        r, w, k, v, a, g = (x + (last - x) * m for m in mixer.blend)
        decay = torch.exp(-0.6065306597126334 * torch.sigmoid(low_rank(mixer.decay, w, torch.tanh)))
        share = torch.sigmoid(low_rank(mixer.replace, a, lambda z: z))
        gate = low_rank(mixer.gate, g, torch.sigmoid)
        own = mixer.value(v)
        if first_values is not None:
            mix = torch.sigmoid(low_rank(mixer.value_share, v, lambda z: z))
            own = own + (first_values[t] - own) * mix
        r, k, v = mixer.receptance(r), mixer.key(k), own
        removal, k = k * mixer.removal_scale, k * (1 + (share - 1) * mixer.replace_scale)
        y, extra = [], []
        for h in range(D // HEAD):
            part = slice(h * HEAD, (h + 1) * HEAD)
            n = removal[part] / removal[part].norm()
            transition = torch.diag(decay[part]) - torch.outer(n, share[part] * n)
            # As printed: the state is (value, key) and transitions multiply from the right.
            S[h] = S[h] @ transition + torch.outer(v[part], k[part])
            y.append(S[h] @ r[part])
            extra.append((r[part] * mixer.bonus[part] * k[part]).sum() * v[part])
        outputs.append(mixer.output((norm_heads(mixer, y) + torch.cat(extra)) * gate))
        last = x
    return torch.stack(outputs)


def plain_channel(mixer, xs):
    last, outputs = torch.zeros(D), []
    for x in xs:

        def blend(m, x=x, last=last):
            return m * x + (1 - m) * last if mixer.spec.version == 5 else x + (last - x) * m

        y = mixer.value(F.relu(mixer.key(blend(mixer.blend_key))) ** 2)
        if mixer.spec.version != 7:
            y = torch.sigmoid(mixer.receptance(blend(mixer.blend_receptance))) * y
        outputs.append(y)
        last = x
    return torch.stack(outputs)


CASES = {
    "rwkv5": (RWKV5Spec(d_model=D, head_size=HEAD), plain_rwkv5),
    "rwkv6": (RWKV6Spec(d_model=D, head_size=HEAD, blend_rank=3, decay_rank=2), plain_rwkv6),
    "rwkv7": (RWKV7Spec(d_model=D, head_size=HEAD, gate_rank=5), plain_rwkv7),
    **{
        f"rwkv{version}-channel": (RWKVChannelSpec(d_model=D, version=version), plain_channel)
        for version in (5, 6, 7)
    },
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_each_mixer_equals_its_equations_written_plainly(name):
    spec, plain = CASES[name]
    mixer = shaken(spec)
    x = tokens(2, 37, D)
    expected = torch.stack([plain(mixer, row) for row in x])
    torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_layer_with_a_value_residual_blends_its_values_with_the_first_layers():
    spec = RWKV7Spec(
        d_model=D, head_size=HEAD, layer_index=1, n_layers=3, value_residual=True, value_rank=2
    )
    mixer = shaken(spec)
    assert sum(p.numel() for p in mixer.parameters()) == spec.num_parameters()
    x, first = tokens(2, 20, D), tokens(2, 20, D, seed=1)
    expected = torch.stack([plain_rwkv7(mixer, *rows) for rows in zip(x, first, strict=True)])
    y, value = mixer.forward_with_value(x, first)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    one, _, state = mixer.prefill_with_value(x[:, :7], first[:, :7])
    two, later, _ = mixer.prefill_with_value(x[:, 7:], first[:, 7:], state)
    torch.testing.assert_close(torch.cat([one, two], dim=1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(later, value[:, 7:], rtol=1e-5, atol=1e-6)


def test_a_value_residual_without_the_first_value_is_refused_and_names_the_way_out():
    residual = small_mixer("rwkv7", value_residual=True)
    with pytest.raises(ValueError, match="forward_with_value"):
        residual(tokens(1, 3, 32))
    with pytest.raises(ValueError, match="value_residual=False"):
        small_mixer("rwkv7").forward_with_value(tokens(1, 3, 32), tokens(1, 3, 32))


@pytest.mark.parametrize(
    ("name", "parameters", "state"),
    [
        ("rwkv5", 82_944, 2048),
        ("rwkv6", 140_544, 2048),
        ("rwkv7", 4 * 128**2 + 2 * 128 * (32 + 32 + 64) + 13 * 128, 2048),
        ("rwkv5-channel", 147_712, 0),
        ("rwkv6-channel", 147_712, 0),
        ("rwkv7-channel", 131_200, 0),
    ],
)
def test_defaults_have_mad_labs_sizes(name, parameters, state):
    spec = mixer_spec(name)
    assert spec.num_parameters() == parameters
    assert spec.mixing_state_size(128) == state


@torch.no_grad()
@pytest.mark.parametrize("name", TIME_SPECS)
def test_later_layers_start_nearer_to_the_present_token(name):
    first, last = (
        TIME_SPECS[name](layer_index=layer, n_layers=12).build(torch_generator(0))
        for layer in (0, 11)
    )
    # RWKV-5 stores the share of the present token, the others that of the earlier one.
    blend = {"rwkv5": "blend", "rwkv6": "blends", "rwkv7": "blend"}[name]
    difference = getattr(last, blend).mean() - getattr(first, blend).mean()
    assert (difference > 0.1) if name == "rwkv5" else (difference < -0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", list(CASES))
def test_the_published_start_adds_nothing_to_the_residual_stream(name):
    mixer = mixer_spec(name, output_gain=0.0).build(torch_generator(0))
    assert (mixer(tokens(1, 9, 128)) == 0).all()
    default = mixer_spec(name).build(torch_generator(0))
    assert default(tokens(1, 9, 128)).abs().max() > 1e-3


@torch.no_grad()
def test_rwkv7s_decay_stays_within_its_bound_whatever_the_weights():
    mixer = small_mixer("rwkv7")
    for parameter in mixer.decay.parameters():
        parameter.mul_(1000)
    x = 100 * tokens(2, 100, 32)
    whole, state, steps = mixer(x), None, []
    for t in range(100):
        y, state = mixer.step(x[:, t], state)
        steps.append(y)
    assert whole.isfinite().all()
    # Outputs of a few hundred; a chunk's decays are divided by decays of up to exp(-0.61 * 16).
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rwkv5", {"head_size": 48}, "head_size=48 does not divide d_model=128"),
        ("rwkv6", {"blend_rank": 0}, "blend_rank=0"),
        ("rwkv7", {"gate_rank": 0}, "gate_rank=0"),
        ("rwkv7", {"layer_index": 2, "n_layers": 2}, "layer_index=2 must be 0 to n_layers - 1"),
        ("rwkv5-channel", {"version": 4}, "version=4 must be 5, 6 or 7"),
        ("rwkv5-channel", {"expand": 0.0}, "expand=0.0"),
    ],
)
def test_bad_settings_say_what_is_allowed(name, settings, message):
    with pytest.raises(ValueError, match=message):
        mixer_spec(name, **settings)
