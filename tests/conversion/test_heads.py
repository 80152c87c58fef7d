"""Mixers behind the source's projections against their equations, written as loops in NumPy."""

import numpy
import pytest
import torch

from manticore.conversion.decayed_heads import first_log_decays
from manticore.conversion.transfer import transfer
from tests.conversion.models import converted
from tests.models.tiny import tiny

RECURRENT = (
    "retention",
    "gated-linear-attention",
    "mamba2-heads",
    "deltanet",
    "gated-deltanet",
    "linear-attention",
)


def sigmoid(x):
    return 1 / (1 + numpy.exp(-x))


def softplus(x):
    return numpy.log1p(numpy.exp(x))


def softmax(x):
    return numpy.exp(x) / numpy.exp(x).sum()


class Plain:
    """One layer of a converted model in NumPy: x (T, D) to (T, D), one head and token at a time."""

    def __init__(self, module, mixer):
        self.spec, self.mixer = module.spec, mixer
        self.w = {name: p.detach().numpy() for name, p in module.named_parameters()}

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    def rotated(self, h, position):
        """Pairs (i, i + R/2) as complex numbers, times e^(i position frequency)."""
        frequencies = numpy.float32(self.spec.frequencies).astype(float)
        half = len(frequencies)
        turned = (h[:half] + 1j * h[half : 2 * half]) * numpy.exp(1j * position * frequencies)
        return numpy.concatenate([turned.real, turned.imag, h[2 * half :]])

    def looked_for(self, name, x, head, position):
        """A query or key: projected, normed as in qwen3, rotated."""
        size = self.spec.head_dim
        h = self.linear(name, x)[head * size : (head + 1) * size]
        weight = self.w[f"{name}_norm.weight"]
        h = h / numpy.sqrt((h**2).mean() + self.spec.qk_norm_eps) * weight
        return self.rotated(h, position)

    def kept_and_strength(self, x, head):
        """Decay (a number or one per channel) and strength of writing, from the equations."""
        size = self.spec.head_dim
        if self.mixer == "retention":
            memories = numpy.geomspace(
                self.spec.shortest_memory, self.spec.longest_memory, self.spec.n_heads
            )
            return 1 - 1 / memories[head], 1.0
        if self.mixer == "gated-linear-attention":
            gate = sigmoid(self.linear("decay_up", self.linear("decay_down", x)))
            kept = gate ** (1 / self.spec.gate_normalizer)
            return kept[head * size : (head + 1) * size], 1.0
        if self.mixer == "mamba2-heads":
            step = softplus(self.linear("time_step", x)[head])
            return numpy.exp(-numpy.exp(self.w["log_rate"][head]) * step), step
        strength = sigmoid(self.linear("strength", x)[head])
        if self.mixer == "deltanet":
            return 1.0, strength
        return numpy.exp(-softplus(self.linear("decay", x)[head])), strength

    def recurrent_head(self, q, k, v, x, head, memory):
        kept, strength = self.kept_and_strength(x, head)
        q = q * self.spec.scale
        if "delta" in self.mixer:  # queries and keys of length one, whatever the scale
            q, k = (h / numpy.sqrt((h**2).sum() + 1e-6) for h in (q, k))
        memory = memory * numpy.reshape(kept, (-1, 1))
        if "delta" in self.mixer:
            v = v - memory.T @ k  # what is new about it
        memory = memory + strength * numpy.outer(k, v)
        y = memory.T @ q
        if self.mixer == "mamba2-heads":
            y = y + self.w["skip"][head] * v
        return y / numpy.sqrt((y**2).mean() + self.spec.norm_eps), memory

    def averaging_head(self, q, k, v, memory):
        def features(h, name):
            mapped = self.w[f"{name}.weight"] @ h
            return softmax(numpy.concatenate([mapped, -mapped]))

        seen = [*memory, (features(k, "k_map"), v)]
        weights = numpy.array([features(q, "q_map") @ key for key, _ in seen])
        values = numpy.array([value for _, value in seen])
        return weights @ values / weights.sum(), seen

    def __call__(self, xs):
        spec, size = self.spec, self.spec.head_dim
        out = []
        memories = [[] if self.mixer == "linear-attention" else numpy.zeros((size, size))]
        memories = memories * spec.n_heads
        for position, x in enumerate(xs):
            heads = []
            for head in range(spec.n_heads):
                group = head * spec.n_kv_heads // spec.n_heads
                q = self.looked_for("q", x, head, position)
                k = self.looked_for("k", x, group, position)
                v = self.linear("v", x)[group * size : (group + 1) * size]
                if self.mixer == "linear-attention":
                    y, memories[head] = self.averaging_head(q, k, v, memories[head])
                else:
                    y, memories[head] = self.recurrent_head(q, k, v, x, head, memories[head])
                heads.append(y)
            y = numpy.concatenate(heads)
            if self.mixer != "linear-attention":
                gate = self.linear("gate", x)
                y = y * self.w["gain"] * gate * sigmoid(gate)
            out.append(self.linear("output", y))
        return numpy.stack(out)


@pytest.mark.parametrize("mixer", RECURRENT)
@torch.no_grad()
def test_mixers_do_what_their_equations_say(mixer):
    """Grouped heads, norms of queries and keys, a rotation; longer than one chunk."""
    module = converted(mixer, "qwen3").model.layers[1].mixer.double()
    assert module.spec.n_kv_heads < module.spec.n_heads
    x = torch.randn(37, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = Plain(module, mixer)(x.numpy())
    assert numpy.abs(expected).mean() > 0.1
    # Retention's decays are made in float32, whose numbers near 1 are 6e-8 apart.
    tolerance = 1e-6 if mixer == "retention" else 1e-12
    assert numpy.abs(module(x[None])[0].numpy() - expected).max() < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["retention", "gated-linear-attention", "gated-deltanet"])
@torch.no_grad()
def test_sums_equal_those_of_flash_linear_attention(mixer):
    place = {"gated-linear-attention": "gla", "gated-deltanet": "gated_delta_rule"}
    theirs = pytest.importorskip(f"fla.ops.{place.get(mixer, mixer)}.naive")
    # Memories of 32, 64, 128 and 256 tokens are RetNet's decays, 1 - 2^(-5-h).
    layer = {"mixer": mixer, "shortest_memory": 32, "longest_memory": 256}
    module = converted(layer, "gpt_neox").model.layers[1].mixer
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 257, 8, generator=generator) for _ in range(3))
    x = torch.randn(2, 257, 32, generator=generator)
    y, _ = module.sum_up(q * 8**-0.5, k, v, x, None, None)
    by_time = [h.transpose(1, 2) for h in (q, k, v)]
    if mixer == "retention":
        expected = theirs.naive_retention(q, k, v)
    elif mixer == "gated-linear-attention":
        gate = torch.nn.functional.logsigmoid(module.decay_up(module.decay_down(x))) / 16
        expected = theirs.naive_recurrent_gla(*by_time, gate.unflatten(-1, (4, 8)))[0]
        expected = expected.transpose(1, 2)
    else:
        unit = [h * torch.rsqrt(h.square().sum(-1, keepdim=True) + 1e-6) for h in by_time[:2]]
        expected = theirs.naive_recurrent_gated_delta_rule(
            *unit, by_time[2], module.strength(x).sigmoid(), module.log_decay(x), scale=1.0
        )[0].transpose(1, 2)
    # Sums of up to 257 products of size one: a rounding of each.
    assert (y - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("mixer", ["retention", "gated-linear-attention", "mamba2-heads"])
def test_decays_are_spread_over_the_range_asked_for(mixer):
    layer = {"mixer": mixer, "shortest_memory": 2, "longest_memory": 128}
    spec = converted(layer, "gpt_neox").config.specs()[0]
    memories = 1 / (1 - first_log_decays(spec).exp())
    assert memories.tolist() == pytest.approx([2, 8, 32, 128], rel=1e-4)


@pytest.mark.parametrize("mixer", RECURRENT[:5])
@torch.no_grad()
def test_gates_start_at_one(mixer):
    model, _ = transfer(tiny("gpt_neox"), mixer)
    module = model.model.layers[0].mixer
    gate = torch.nn.functional.silu(module.gate(torch.randn(3, 32)))
    assert (gate - 1).abs().max() < 1e-6
