"""transformers' own functions and models computing in float64, where they insist on float32."""

import importlib
import inspect

import torch


class WideTorch:
    """torch for a function of transformers that computes in float32 whatever it is given."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def module_of(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def theirs(family, name, dtype, monkeypatch):
    """transformers' function, in the given dtype."""
    plain = inspect.unwrap(getattr(module_of(family), name))
    if dtype == torch.float64:
        compute_in_float64(family, monkeypatch)
    return plain


def compute_in_float64(family, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(module_of(family), "torch", WideTorch())
