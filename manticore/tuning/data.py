"""A recipe's data as batches to train on and splits to measure on, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manticore.config.adapter_recipe import AdaptRecipe
from manticore.config.data_sections import DataConfig, SourceConfig
from manticore.config.example_sections import AdaptDataConfig
from manticore.text.documents import documents_hash
from manticore.text.packing import PackedText
from manticore.text.prepared import prepare_data
from manticore.tuning.batches import ExampleBatches
from manticore.tuning.encoding import Encoded, encode_examples, pack_rows
from manticore.tuning.examples import SPLITS, read_examples


@dataclass(frozen=True)
class TuningData:
    """What a recipe's data section becomes."""

    n_train: int
    """Rows of an epoch."""
    rows: dict[str, list[Encoded]] = field(default_factory=dict)
    """Examples by split; of running text nothing."""
    packs: dict[str, dict[str, PackedText]] = field(default_factory=dict)
    """Running text by split and kind."""
    labels: tuple[str, ...] = ()
    """Names of the classes."""
    pad: int = 0
    """Token that fills short rows; a decoder's classifier finds the end of a text by it."""
    record: dict[str, Any] = field(default_factory=dict)
    """Counts and hashes for the run's record."""
    source: Callable[[int, int], Any] = lambda batch_size, seed: None
    """From batch size and seed to an object with `batch_at(step)`."""

    def batches(self, batch_size: int, seed: int) -> Any:
        """Training batches: an object with `batch_at(step)`."""
        return self.source(batch_size, seed)


def prepare_tuning_data(recipe: AdaptRecipe, tokenizer: Any, base: Path) -> TuningData:
    """Read, divide and tokenise everything that a recipe asks for.

    Args:
        recipe: its data section is read.
        tokenizer: the model's.
        base: folder of the recipe, for relative paths.
    """
    if recipe.data.format == "text":
        return _running_text(recipe.data, tokenizer, base)
    config = recipe.data
    examples, repeats = read_examples(config, base)
    labels = config.labels or _labels_in(examples["train"])
    if config.format == "classification" and len(labels) < 2:
        raise ValueError(f"There is one label only ({', '.join(labels)}): nothing to tell apart.")
    rows, counts = {}, {}
    for split in SPLITS:
        rows[split], n_long = encode_examples(examples[split], tokenizer, config, labels)
        counts[split] = {
            "rows": len(rows[split]),
            "too_long": n_long,
            "repeats": repeats[split],
            "tokens": sum(len(row.ids) for row in rows[split]),
            "scored": sum(row.n_scored for row in rows[split]),
            "sha256": documents_hash(example.document for example in examples[split]),
        }
    training = pack_rows(rows["train"], config.seq_len) if config.packing else rows["train"]
    pad = _padding(tokenizer)
    return TuningData(
        n_train=len(training),
        rows={**rows, "train": training},
        labels=tuple(labels) if config.format == "classification" else (),
        pad=pad,
        record={"splits": counts, "licences": _licences(config)},
        source=lambda batch_size, seed: ExampleBatches(training, batch_size, seed, pad),
    )


def _running_text(config: AdaptDataConfig, tokenizer: Any, base: Path) -> TuningData:
    plain = DataConfig(
        sources=tuple(
            SourceConfig(
                kind=source.kind,
                path=source.path,
                field=None if config.text == "text" else config.text,
                split=source.split,
                region_chars=source.region_chars,
                limit=source.limit,
                licence=source.licence,
            )
            for source in config.sources
        ),
        seq_len=config.seq_len,
        splits=config.splits,
        eval_rows=config.eval_rows,
    )
    data = prepare_data(plain, tokenizer, base)
    return TuningData(
        n_train=sum(pack.n_rows for pack in data.packs["train"].values()),
        packs={split: data.packs[split] for split in SPLITS},
        record={"splits": data.record, "licences": _licences(config)},
        source=lambda batch_size, seed: data.batches("train", batch_size, seed),
    )


def _labels_in(examples: Sequence[Any]) -> tuple[str, ...]:
    return tuple(sorted({example.answer for example in examples}))


def _padding(tokenizer: Any) -> int:
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name) is not None:
            return int(getattr(tokenizer, name))
    return 0  # masked wherever it stands


def _licences(config: AdaptDataConfig) -> Mapping[str, str]:
    return {source.path: source.licence for source in config.sources}
