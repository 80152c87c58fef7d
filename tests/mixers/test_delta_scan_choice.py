"""The kernels of flash-linear-attention: only when asked for, and called as they mean it."""

import inspect
import sys
import types

import pytest
import torch

from manticore.mixers.decayed_scan import decayed_scan, decayed_scan_naive
from manticore.mixers.delta_scan import delta_scan, delta_scan_naive
from manticore.mixers.delta_scan_choice import (
    choose_bonus_scan,
    choose_delta_scan,
    choose_dplr_scan,
    fla_bonus_scan,
    fla_delta_scan,
    fla_dplr_scan,
)
from manticore.mixers.dplr_scan import dplr_scan, dplr_scan_naive
from manticore.mixers.table import mixer_spec
from manticore.seeds import torch_generator

# Ours, theirs, the naive twin, the library's module, and our names of what it calls otherwise.
SCANS = {
    "delta": (delta_scan, fla_delta_scan, delta_scan_naive, "gated_delta_rule", {}),
    "gated delta": (
        delta_scan,
        fla_delta_scan,
        delta_scan_naive,
        "gated_delta_rule",
        {"g": "log_decay"},
    ),
    "dplr": (dplr_scan, fla_dplr_scan, dplr_scan_naive, "rwkv7", {"r": "q", "w": "log_decay"}),
    "bonus": (
        decayed_scan,
        fla_bonus_scan,
        decayed_scan_naive,
        "rwkv6",
        {"r": "q", "w": "log_decay", "u": "bonus"},
    ),
}
CHOOSE = {
    "delta": choose_delta_scan,
    "gated delta": choose_delta_scan,
    "dplr": choose_dplr_scan,
    "bonus": choose_bonus_scan,
}
every_scan = pytest.mark.parametrize("kind", list(SCANS))


def inputs_of(kind, seq_len, size=4, device="cpu"):
    generator = torch_generator(0, kind, device=device)

    def normal(*shape):
        return torch.randn(2, 3, *shape, generator=generator, device=device)

    unit = torch.nn.functional.normalize(normal(seq_len, size), dim=-1)
    inputs = {"q": normal(seq_len, size), "k": unit, "v": normal(seq_len, size)}
    if "delta" in kind:
        inputs["beta"] = torch.sigmoid(normal(seq_len))
    if kind == "gated delta":
        inputs["log_decay"] = -0.3 * torch.sigmoid(normal(seq_len))
    if kind in ("dplr", "bonus"):
        inputs["log_decay"] = -0.3 * torch.sigmoid(normal(seq_len, size))
    if kind == "dplr":
        inputs |= {"a": -unit, "b": 0.5 * unit}
    inputs["initial_state"] = normal(size, size)
    if kind == "bonus":
        inputs["bonus"] = normal(size)[0]
    return inputs


def bound(kind):
    return {"fastest_decay": -0.61} if kind == "dplr" else {}


@every_scan
def test_the_default_is_our_own(kind):
    assert CHOOSE[kind]("torch") is SCANS[kind][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the error without a GPU")
@pytest.mark.parametrize("name", ["deltanet", "gated-deltanet", "rwkv5", "rwkv6", "rwkv7"])
def test_without_a_gpu_the_error_names_the_kernel_that_works(name):
    with pytest.raises(ValueError, match=r"needs a GPU.*Use kernel='torch'"):
        mixer_spec(name, kernel="fla").build()
    with pytest.raises(ValueError, match="must be one of torch, fla"):
        mixer_spec(name, kernel="triton")


@every_scan
def test_without_the_library_the_error_says_what_to_install(monkeypatch, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, f"fla.ops.{SCANS[kind][3]}", None)
    with pytest.raises(ValueError, match="pip install flash-linear-attention"):
        CHOOSE[kind]("fla")


@pytest.mark.parametrize("seq_len", [1, 9])
@every_scan
def test_layouts_and_names_are_those_of_the_library(monkeypatch, kind, seq_len):
    ours, theirs, naive, name, ours_of = SCANS[kind]

    def kernel(scale, initial_state, output_final_state, **inputs):
        """What the library documents: (batch, seq, heads, ...), and the recurrence."""
        assert (scale, output_final_state) == (1.0, True)
        inputs = {ours_of.get(key, key): value for key, value in inputs.items()}
        assert kind != "delta" or (inputs.pop("g") == 0).all()
        by_time = {k: v if k == "bonus" else v.transpose(1, 2) for k, v in inputs.items()}
        y, state = naive(**by_time, initial_state=initial_state)
        return y.transpose(1, 2), state

    module = types.ModuleType(f"fla.ops.{name}")
    setattr(module, f"{'fused_recurrent' if seq_len == 1 else 'chunk'}_{name}", kernel)
    monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    inputs = inputs_of(kind, seq_len)
    found, expected = (scan(**inputs, **bound(kind)) for scan in (theirs, ours))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["chunk", "fused_recurrent"])
@every_scan
def test_the_library_has_kernels_that_take_these_names(kind, form):
    pytest.importorskip("fla")
    name, ours_of = SCANS[kind][3:]
    module = pytest.importorskip(f"fla.ops.{name}")
    theirs_of = {ours: theirs for theirs, ours in ours_of.items()}
    names = {theirs_of.get(key, key) for key in inputs_of(kind, 2)} | {"scale"}
    assert names <= inspect.signature(getattr(module, f"{form}_{name}")).parameters.keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("seq_len", [1, 100])
@every_scan
def test_the_kernels_give_our_numbers(kind, seq_len):
    pytest.importorskip("fla")
    inputs = inputs_of(kind, seq_len, size=16, device="cuda")
    found = CHOOSE[kind]("fla")(**inputs, **bound(kind))
    expected = SCANS[kind][0](**inputs, **bound(kind))
    for one, other in zip(found, expected, strict=True):
        # Triton multiplies in TensorFloat-32, which keeps 10 bits.
        assert (one - other).abs().max() < 1e-2 * other.abs().max()
