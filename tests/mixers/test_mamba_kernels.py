"""The kernels of mamba-ssm: only when asked for, and called as they mean it."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from manticore.mixers.selective_scan import selective_scan
from manticore.mixers.selective_scan_choice import choose_selective_scan, mamba_ssm_scan
from manticore.mixers.table import mixer_spec
from manticore.seeds import torch_generator

SCAN = "mamba_ssm.ops.selective_scan_interface"
UPDATE = "mamba_ssm.ops.triton.selective_state_update"


def scan_inputs(seq_len, device="cpu"):
    generator = torch_generator(0, "mamba-ssm", device=device)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    return {
        "x": normal(2, seq_len, 6),
        "dt": F.softplus(normal(2, seq_len, 6) - 2),
        "A": -normal(6, 3).exp(),
        "B": normal(2, seq_len, 3),
        "C": normal(2, seq_len, 3),
        "D": normal(6),
        "z": normal(2, seq_len, 6),
        "initial_state": normal(2, 6, 3),
    }


def documented_scan(u, delta, A, B, C, D=None, z=None, return_last_state=False):
    """What the library documents: (batch, channels, seq) and (batch, states, seq), plain loops."""
    assert return_last_state
    state, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        drive = delta[:, :, t, None] * B[:, None, :, t] * u[:, :, t, None]
        state = torch.exp(delta[:, :, t, None] * A) * state + drive
        outputs.append((state * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(outputs, dim=2) * F.silu(z), state


def documented_update(state, x, dt, A, B, C, D=None, z=None):
    """One token; writes into the state."""
    drive = dt[..., None] * B[:, None] * x[..., None]
    state.copy_(torch.exp(dt[..., None] * A) * state + drive)
    return ((state * C[:, None]).sum(-1) + D * x) * F.silu(z)


@pytest.fixture
def library(monkeypatch):
    for place, name, function in (
        (SCAN, "selective_scan_fn", documented_scan),
        (UPDATE, "selective_state_update", documented_update),
    ):
        module = types.ModuleType(place)
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, place, module)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("seq_len", [1, 9])
@pytest.mark.parametrize("has_state", [False, True])
def test_layouts_and_names_are_those_of_the_library(seq_len, has_state):
    inputs = scan_inputs(seq_len)
    given = inputs["initial_state"].clone()
    if not has_state:
        inputs["initial_state"] = None
    found, expected = mamba_ssm_scan(**inputs), selective_scan(**inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    if has_state:
        assert torch.equal(inputs["initial_state"], given)


def test_the_default_is_our_own():
    assert choose_selective_scan("torch") is selective_scan
    assert mixer_spec("mamba").build().scan is selective_scan


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the error without a GPU")
def test_without_a_gpu_the_error_names_the_kernel_that_works():
    with pytest.raises(ValueError, match=r"needs a GPU.*Use kernel='torch'"):
        mixer_spec("mamba", kernel="mamba-ssm").build()


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, SCAN, None)
    with pytest.raises(ValueError, match="pip install mamba-ssm"):
        choose_selective_scan("mamba-ssm")


def test_a_kernel_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match="must be one of torch, mamba-ssm"):
        mixer_spec("mamba", kernel="fla")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("seq_len", [1, 100])
@pytest.mark.parametrize("has_state", [False, True])
def test_the_kernels_give_our_numbers(seq_len, has_state):
    pytest.importorskip("mamba_ssm")
    inputs = scan_inputs(seq_len, "cuda")
    if not has_state:
        inputs["initial_state"] = None
    found, expected = choose_selective_scan("mamba-ssm")(**inputs), selective_scan(**inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
