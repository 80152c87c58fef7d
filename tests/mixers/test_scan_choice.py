"""The kernels of flash-linear-attention: only when asked for, and called as they mean it."""

import sys
import types

import pytest
import torch

from manticore.mixers.decayed_scan import decayed_scan
from manticore.mixers.gated_linear_attention import GatedLinearAttentionSpec
from manticore.mixers.scan_choice import choose_scan, fla_scan
from manticore.seeds import torch_generator


def test_the_default_is_our_own():
    assert choose_scan("torch") is decayed_scan


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the error without a GPU")
def test_without_a_gpu_the_error_names_the_kernel_that_works():
    with pytest.raises(ValueError, match=r"needs a GPU.*Use kernel='torch'"):
        GatedLinearAttentionSpec(kernel="fla").build()


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "fla.ops.gla", None)
    with pytest.raises(ValueError, match="pip install flash-linear-attention"):
        choose_scan("fla")


def recurrence(q, k, v, decay, scale, initial_state, output_final_state):
    """What the library documents of its kernels: (batch, seq, heads, ...), plain loops."""
    assert output_final_state
    state, outputs = initial_state, []
    for t in range(q.shape[1]):
        state = decay[:, t].exp() * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((scale * q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize("seq_len", [1, 9])
@pytest.mark.parametrize("channels", [4, 1])
def test_layouts_and_names_are_those_of_the_library(monkeypatch, channels, seq_len):
    def by_channel(form):
        def kernel(q, k, v, scale, initial_state, output_final_state, **decay):
            (name, decay) = decay.popitem()
            assert name == {"chunk": "g", "fused_recurrent": "gk"}[form]
            return recurrence(
                q, k, v, decay.unsqueeze(-1), scale, initial_state, output_final_state
            )

        return kernel

    def by_head(q, k, v, g, scale, initial_state, output_final_state):
        decay = g[..., None, None]
        return recurrence(q, k, v, decay, scale, initial_state, output_final_state)

    gla, simple = types.ModuleType("fla.ops.gla"), types.ModuleType("fla.ops.simple_gla")
    for form in ("chunk", "fused_recurrent"):
        setattr(gla, f"{form}_gla", by_channel(form))
        setattr(simple, f"{form}_simple_gla", by_head)
    for name, module in (("fla.ops.gla", gla), ("fla.ops.simple_gla", simple)):
        monkeypatch.setitem(sys.modules, name, module)
    generator = torch_generator(0)
    q, k, v, state = (
        torch.randn(2, 3, *shape, generator=generator)
        for shape in ((seq_len, 4), (seq_len, 4), (seq_len, 5), (4, 5))
    )
    log_decay = -torch.rand(2, 3, seq_len, channels, generator=generator)
    found = fla_scan(q, k, v, log_decay, state)
    expected = decayed_scan(q, k, v, log_decay, state)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("seq_len", [1, 100])
@pytest.mark.parametrize("channels", [16, 1])
def test_the_kernels_give_our_numbers(channels, seq_len):
    pytest.importorskip("fla")
    generator = torch_generator(0, "gpu", device="cuda")
    q, k, v, state = (
        torch.randn(2, 3, *shape, generator=generator, device="cuda")
        for shape in ((seq_len, 16), (seq_len, 16), (seq_len, 16), (16, 16))
    )
    log_decay = -torch.rand(2, 3, seq_len, channels, generator=generator, device="cuda")
    found = choose_scan("fla")(q, k, v, log_decay, state)
    expected = decayed_scan(q, k, v, log_decay, state)
    for one, other in zip(found, expected, strict=True):
        # Triton multiplies in TensorFloat-32, which keeps 10 bits.
        assert (one - other).abs().max() < 1e-2 * other.abs().max()
