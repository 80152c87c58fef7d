"""The section of a recipe that says which text is read, and how it is divided."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from manticore.config.numbers import check_least, check_within


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    kind: str
    """Name of this kind of text in tables, such as prose."""
    path: str
    """File or folder of text, JSON lines or Parquet, or hf:NAME for a data set on the hub."""
    field: str | None = None
    """JSON, Parquet: the field that holds the text, or a template like '{question}\\n{answer}'."""
    group_field: str | None = None
    """JSON, Parquet: rows with the same value here stay in one split."""
    split: str | None = None
    """Data sets with splits of their own: the one to read."""
    region_chars: int = 12000
    """Plain text: neighbours within so many characters stay in one split."""
    limit: int | None = None
    """Read at most so many documents."""
    weight: float = 1.0
    """Share of this kind in a batch, in any unit."""
    licence: str = ""
    """Shown in the report and in model cards."""

    def __post_init__(self) -> None:
        check_least({"region_chars": (self.region_chars, 1), "limit": (self.limit, 1)})
        check_within({"weight": (self.weight, 0, math.inf)})


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    pretrain: float = 0.0
    """Share kept for pretraining components; fine-tuning never sees it."""
    train: float = 0.9
    """Share on which weights are trained."""
    architecture: float = 0.03
    """Share on which the mixture is searched."""
    validation: float = 0.03
    """Share on which learning rates and checkpoints are chosen."""
    test: float = 0.04
    """Share that is read once, for the final table."""
    seed: int = 0
    """Of the division into splits; keep it equal to that of the components' pretraining."""

    def __post_init__(self) -> None:
        shares = {key: value for key, value in dataclasses.asdict(self).items() if key != "seed"}
        check_within({key: (share, 0, 1) for key, share in shares.items()})
        total = math.fsum(shares.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(
                f"The shares {', '.join(shares)} sum to {total:g}, not to 1. When one is changed, "
                "another has to give way."
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[SourceConfig, ...]
    """Kinds of text; a batch holds them in proportion to their weights."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer; default that of the host component."""
    seq_len: int = 128
    """Tokens in a row."""
    splits: SplitConfig = SplitConfig()
    """How documents are divided; groups stay together, duplicates are dropped."""
    eval_rows: int | None = None
    """Rows of each kind that an evaluation reads; default all."""

    def __post_init__(self) -> None:
        kinds = [source.kind for source in self.sources]
        if not kinds:
            raise ValueError("data.sources is empty. Name at least one file, folder or data set.")
        if len(set(kinds)) < len(kinds):
            raise ValueError("Two sources have the same kind. Give each a kind of its own.")
        if not any(source.weight for source in self.sources):
            raise ValueError("All sources have weight 0. Give one of them more.")
        check_least({"data.seq_len": (self.seq_len, 2), "data.eval_rows": (self.eval_rows, 1)})
