"""The plan of a transfer: what becomes of every tensor of the source and of the target.

```
target                          shape        how          source            note
model.embed_tokens.weight       (2048, 128)  copied       gpt_neox.embed_in.weight
model.layers.0.mixer.gate.bias  (128,)       initialised                    silu of it is 1
                                             dropped      ...query_key_value.weight  not asked for
```

Nothing is left out: a tensor without a row is an error, because that is how weights get lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

How = Literal["copied", "mapped", "repeated", "tied", "initialised", "constant", "dropped"]
HOWS = ("copied", "mapped", "repeated", "tied", "initialised", "constant", "dropped")


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """What becomes of one tensor."""

    how: How
    """copied: bit by bit; mapped: the same numbers elsewhere; repeated: rows of shared heads;
    constant: what a mixer was built with and never trains."""
    target: str | None
    """Name in the converted model; None for what is dropped."""
    shape: tuple[int, ...]
    """Of the target, or of what is dropped."""
    source: str | None = None
    """Name in the source."""
    note: str = ""
    """The map, the first weights, or the reason."""
    part: str = ""
    """embeddings, norms, mlp, output, qkv, or mixer for what the source does not have."""

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def is_inherited(self) -> bool:
        """Whether its numbers come from the source."""
        return self.how in ("copied", "mapped", "repeated")


@dataclass(frozen=True)
class TransferPlan:
    """All rows, and what they add up to."""

    rows: tuple[TransferRow, ...]
    source: str
    """The source's model_type."""
    layers: tuple[str, ...]
    """Name of the mixer in every layer."""

    @property
    def parameters(self) -> int:
        """Of the target; a tied table counts once, and what is constant does not."""
        others = ("dropped", "tied", "constant")
        return sum(row.numel for row in self.rows if row.how not in others)

    @property
    def inherited(self) -> int:
        """Parameters of the target whose numbers come from the source."""
        return sum(row.numel for row in self.rows if row.is_inherited)

    @property
    def share_inherited(self) -> float:
        """Between 0 and 1."""
        return self.inherited / self.parameters

    def by_how(self) -> dict[str, dict[str, int]]:
        """Tensors and numbers for each `how`."""
        totals: dict[str, dict[str, int]] = {}
        for how in HOWS:
            rows = [row for row in self.rows if row.how == how]
            if rows:
                numbers = sum(row.numel for row in rows)
                totals[how] = {"tensors": len(rows), "numbers": numbers}
        return totals

    def inherited_names(self) -> list[str]:
        """Target tensors whose numbers come from the source: what a stage may freeze."""
        return [row.target for row in self.rows if row.is_inherited and row.target is not None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {
            "source": self.source,
            "layers": list(self.layers),
            "parameters": self.parameters,
            "inherited": self.inherited,
            "share_inherited": self.share_inherited,
            "by_how": self.by_how(),
            "rows": [asdict(row) | {"shape": list(row.shape)} for row in self.rows],
        }

    def __str__(self) -> str:
        return "\n".join([*table_lines(self.rows), *self.summary_lines()])

    def summary_lines(self) -> list[str]:
        """Totals, for a terminal."""
        lines = [
            f"{how:12} {total['tensors']:>5} tensors {total['numbers']:>14,} numbers"
            for how, total in self.by_how().items()
        ]
        return [
            *lines,
            f"inherited: {self.inherited:,} of {self.parameters:,} parameters "
            f"({100 * self.share_inherited:.1f} %)",
        ]

    def check(self, target: Mapping[str, tuple[int, ...]], source: Iterable[str]) -> None:
        """Raise unless every tensor of target and source has its row."""
        planned = [row.target for row in self.rows if row.target is not None]
        read = {row.source for row in self.rows}
        missing = [
            *(f"target {name}" for name in target if name not in planned),
            *(f"target {name}, which does not exist" for name in planned if name not in target),
            *(f"source {name}" for name in source if name not in read),
        ]
        if missing or len(planned) != len(set(planned)):
            raise RuntimeError(f"The plan does not account for: {', '.join(missing) or 'doubles'}.")


def table_lines(rows: Iterable[TransferRow]) -> list[str]:
    """The rows as aligned text; layers in which the same happens share a line."""
    folded: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        named = [_LAYER.sub(".#.", name or "-") for name in (row.target, row.source)]
        line = (named[0], _shape(row.shape), row.how, named[1], row.note)
        folded.setdefault(line, []).extend(_LAYER.findall(row.target or row.source or "")[:1])
    cells: list[tuple[str, ...]] = [("target", "shape", "how", "source", "note")]
    cells += [
        tuple(cell.replace(".#.", f".{_ranges(layers)}.") for cell in line)
        for line, layers in folded.items()
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(line[:4], widths, strict=True)), line[4]]).rstrip()
        for line in cells
    ]


# The number in "model.layers.3.mlp" and in "transformer.h.3.mlp".
_LAYER = re.compile(r"\.(\d+)\.")


def _ranges(layers: list[str]) -> str:
    """Numbers with runs of neighbours joined: 0-2,5."""
    runs: list[list[int]] = []
    for number in map(int, layers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"
