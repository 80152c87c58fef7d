"""From a recipe's `data` section to packed text: read, split, check, tokenise, pack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.config.data_sections import DataConfig, SourceConfig
from manticore.text.batches import BatchSource
from manticore.text.corpora import read_documents, source_hashes
from manticore.text.documents import Document
from manticore.text.packing import PackedText, pack
from manticore.text.splits import check_disjoint, split_documents, split_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class PreparedData:
    """Packed text of every split and kind, and where it came from."""

    packs: dict[str, dict[str, PackedText]]
    """Split name -> kind -> rows."""
    weights: dict[str, float]
    """Share of each kind in a batch."""
    record: dict[str, dict[str, Any]]
    """For each kind: tokens and bytes by split, hashes, licence."""

    @property
    def kinds(self) -> list[str]:
        """Names of the kinds of text, in the recipe's order."""
        return list(self.weights)

    def batches(self, split: str, batch_size: int, seed: int) -> BatchSource:
        """Batches of one split, kinds mixed by weight."""
        return BatchSource(self.packs[split], self.weights, batch_size, seed)


def resolve_path(path: str, base: Path) -> str:
    """Read `./x` and `../x` relative to the recipe's folder; leave names and other paths alone."""
    return str((base / path).resolve()) if path.startswith(("./", "../")) else path


def prepare_data(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, base: Path
) -> PreparedData:
    """Read and pack everything a recipe asks for.

    Args:
        config: the recipe's data section.
        tokenizer: the hybrid's tokenizer.
        base: folder of the recipe, for relative paths.
    """
    splits = _split_all(config, base)
    packs = {name: _packs_of(name, splits, tokenizer, config) for name in split_fractions(config)}
    record = {
        source.kind: _record(source, splits[source.kind], packs, base) for source in config.sources
    }
    return PreparedData(packs, {s.kind: s.weight for s in config.sources}, record)


def prepare_split(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, base: Path, name: str
) -> dict[str, PackedText]:
    """One split of what `prepare_data` reads, by kind; the others are not tokenised."""
    fractions = split_fractions(config)
    if name not in fractions:
        raise ValueError(f"The data has no {name} split. It has: {', '.join(fractions)}.")
    return _packs_of(name, _split_all(config, base), tokenizer, config)


def split_fractions(config: DataConfig) -> dict[str, float]:
    """Names and shares of the splits that are not empty."""
    values = dataclasses.asdict(config.splits)
    values.pop("seed")
    return {name: share for name, share in values.items() if share > 0}


def _split_all(config: DataConfig, base: Path) -> dict[str, dict[str, list[Document]]]:
    """Documents by kind and split; no text is in two splits."""
    fractions = split_fractions(config)
    splits = {s.kind: _split_source(s, fractions, config.splits.seed, base) for s in config.sources}
    check_disjoint({name: [d for s in splits.values() for d in s[name]] for name in fractions})
    return splits


def _packs_of(
    name: str,
    splits: Mapping[str, Mapping[str, list[Document]]],
    tokenizer: PreTrainedTokenizerFast,
    config: DataConfig,
) -> dict[str, PackedText]:
    return {
        kind: _packed(documents[name], tokenizer, config, name)
        for kind, documents in splits.items()
    }


def _split_source(
    source: SourceConfig, fractions: Mapping[str, float], seed: int, base: Path
) -> dict[str, list[Document]]:
    documents = read_documents(
        resolve_path(source.path, base),
        kind=source.kind,
        field=source.field,
        group_field=source.group_field,
        split=source.split,
        limit=source.limit,
        region_chars=source.region_chars,
    )
    return split_documents(documents, fractions, seed=seed)


def _packed(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast, config: DataConfig, split: str
) -> PackedText:
    packed = pack(documents, tokenizer, config.seq_len)
    held_out = split in ("architecture", "validation", "test")
    return packed.take(config.eval_rows) if held_out and config.eval_rows else packed


def _record(
    source: SourceConfig,
    splits: dict[str, list[Document]],
    packs: dict[str, dict[str, PackedText]],
    base: Path,
) -> dict[str, Any]:
    by_split = split_record(splits)
    for name, entry in by_split.items():
        entry["tokens"] = packs[name][source.kind].n_tokens
    return {
        "tokens": sum(int(entry["tokens"]) for entry in by_split.values()),
        "bytes": sum(int(entry["bytes"]) for entry in by_split.values()),
        "sha256": source_hashes(resolve_path(source.path, base)),
        "licence": source.licence,
        "splits": by_split,
    }
