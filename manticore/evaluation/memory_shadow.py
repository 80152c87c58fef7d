"""Run a model without its numbers and count the bytes that it would hold at every moment.

Inside a `Shadow` floating-point tensors have shapes and no data (torch's FakeTensor, on the meta
device), and every operator chooses its kernel as it would on a CPU, so that the same tensors come
and go as in a real run. Small whole numbers and truth values (token ids, masks, positions) are
computed for real: code that asks "is anything padded?" gets its answer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Model = TypeVar("Model", bound=nn.Module)

_MOST_COMPUTED = {True: 1 << 20, False: 1 << 26}
"""Largest tensors that are computed for real, in bytes: floating-point ones, others."""


_INDEXING = {
    torch.ops.aten.index,
    torch.ops.aten.index_put,
    torch.ops.aten.index_put_,
    torch.ops.aten._index_put_impl_,
}


class UnknownMemoryError(ValueError):
    """The memory of something cannot be told without its numbers."""


class Shadow:
    """Models and steps without numbers; everything that meets must come from one Shadow."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def build(self, make: Callable[[], Model]) -> Model:
        """A model without data; what `make` itself puts on the CPU keeps its numbers."""
        with torch.device("meta"):
            model = make()
        adopted: dict[int, Tensor] = {}
        tables: list[dict[str, Any]] = []
        for module in model.modules():
            tables += [module._parameters, module._buffers]
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and tensor.is_meta:
                    table[name] = adopted.setdefault(id(tensor), self._adopt(tensor))
        return model

    def _adopt(self, tensor: Tensor) -> Any:
        convert = self._fake.fake_tensor_converter.from_meta_and_device
        fake = convert(self._fake, tensor.detach(), torch.device("cpu"))
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return fake

    @contextmanager
    def counting(self, *owners: nn.Module) -> Iterator[Tally]:
        """Count every tensor that is born inside; what the `owners` hold already is not counted."""
        tally = Tally()
        for owner in owners:
            tally.leave_out([*owner.parameters(), *owner.buffers()])
        try:
            with self._fake, tally:
                yield tally
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            names = ", ".join(type(owner).__name__ for owner in owners)
            raise UnknownMemoryError(
                f"The memory of {names} cannot be told without its numbers: {error.func} decides "
                "a size or a branch by them, as where experts are chosen token by token. Measure "
                "a short run instead."
            ) from error


class _Computing(TorchDispatchMode):
    """Compute what has no shadow among its inputs and is small; leave the rest to the Shadow."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _INDEXING:
            args = (args[0], _positions_of(args[1]), *args[2:])
        given = _tensors((args, kwargs))
        has_shadow = any(isinstance(tensor, FakeTensor) for tensor in given)
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if has_shadow:
                raise
        else:
            if has_shadow or not _is_computable(given, _tensors(result)):
                return result
        with unset_fake_temporarily():
            return func(*args, **kwargs)


class Tally(_Computing):
    """Bytes of the storages that live, each once, at every moment.

    A storage is counted from the operator that made it until nothing refers to it any more: views
    cost nothing, and what autograd saves counts for as long as it is saved.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes now."""
        self.peak = 0
        """Most bytes at one time."""
        self._peak_serial = 0
        self._count = 0
        self._serials: dict[int, int] = {}
        self._references: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._note(_tensors(result))
        return result

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Count these, which exist already, as nothing."""
        self._note(tensors, counted=False)

    def bytes_at_peak(self, tensors: Iterable[Tensor]) -> int:
        """How many of the peak's bytes belong to tensors that are alive to this day."""
        storages = {id(t.untyped_storage()): t.untyped_storage() for t in tensors}
        return sum(
            storage.nbytes()
            for key, storage in storages.items()
            if 0 < self._serials.get(key, 0) <= self._peak_serial
        )

    def _note(self, tensors: Iterable[Tensor], counted: bool = True) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) in self._references:
                continue
            size = storage.nbytes() if counted else 0
            self._count += 1
            self._serials[id(storage)] = self._count if size else 0
            self._references[id(storage)] = weakref.ref(storage, self._forget(id(storage), size))
            self.live += size
            if self.live > self.peak:
                self.peak, self._peak_serial = self.live, self._serials[id(storage)]

    def _forget(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(reference: Any) -> None:
            self.live -= size
            self._references.pop(key, None)
            self._serials.pop(key, None)

        return forget


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _positions_of(indices: Any) -> list[Any]:
    """Indices whose masks, where they have numbers, became the places that they name."""
    found: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
        if not is_mask or isinstance(index, FakeTensor):
            found.append(index)
            continue
        with unset_fake_temporarily():
            found += index.nonzero(as_tuple=True)
    return found


def _is_computable(given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether an operator that no shadow goes into may run for real: little comes out."""
    if not given and any(tensor.is_floating_point() for tensor in made):
        return False  # a fresh state, mask or table, to be filled from shadows
    return all(t.untyped_storage().nbytes() <= _MOST_COMPUTED[t.is_floating_point()] for t in made)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, shared storages once."""
    storages = {id(t.untyped_storage()): t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())
