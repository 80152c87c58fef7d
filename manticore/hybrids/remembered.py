"""Remember what was computed from a few tensors, until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """One value and the tensors that it came from.

    Reading values off a GPU waits for it, and a handful of tiny operations is much of the time of
    a decoded token. The tensors themselves are kept too: another one may come to lie at the
    address of a freed one. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._sources: tuple[Tensor, ...] = ()
        self._stamps: list[tuple[int, int]] = []
        self._value: Any = None

    def get(self, sources: Sequence[Tensor], compute: Callable[[], Value]) -> Value:
        """The value of `compute()`, which depends on the values of `sources` and nothing else."""
        if any(source.is_inference() for source in sources):
            return compute()  # an inference tensor keeps no count of its changes
        same = len(sources) == len(self._sources) and all(
            new is old for new, old in zip(sources, self._sources, strict=True)
        )
        stamps = [(source.data_ptr(), source._version) for source in sources]
        if not same or stamps != self._stamps:
            self._value = compute()
            self._sources, self._stamps = tuple(sources), stamps
        return self._value

    def __getstate__(self) -> dict[str, Any]:
        return {"_sources": (), "_stamps": [], "_value": None}
