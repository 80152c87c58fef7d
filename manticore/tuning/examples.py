"""Examples to fine-tune on: rows of any format as prompts with answers, chats or labelled texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manticore.config.example_sections import AdaptDataConfig, ExampleSourceConfig
from manticore.text.corpora import read_documents
from manticore.text.documents import Document, text_hash
from manticore.text.files import corpus_files
from manticore.text.prepared import resolve_path
from manticore.text.splits import split_documents
from manticore.tuning.commonsense import CONVERSIONS
from manticore.tuning.filling import fields_of, fill, value_of
from manticore.tuning.raw_rows import is_plain_text, raw_rows
from manticore.tuning.templates import PRESETS, Preset

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One row: a prompt with its answer, a conversation, or a text with its label."""

    source: str
    """File and row, for messages."""
    group: str
    """Rows of one group stay in one split."""
    prompt: str = ""
    """What the model reads; for classification the whole text."""
    answer: str = ""
    """What the model has to say, or the name of the label."""
    reference: str = ""
    """What a generated answer is compared with."""
    messages: tuple[Mapping[str, str], ...] = field(default=())
    """A conversation, in place of prompt and answer."""

    @property
    def document(self) -> Document:
        """The row as a document, for splitting and for finding duplicates."""
        said = "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)
        return Document(said or f"{self.prompt}\n{self.answer}", "rows", self.group, self.source)


def read_examples(
    config: AdaptDataConfig, base: Path
) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Read every source and divide the rows into train, validation and test.

    Args:
        config: the recipe's data section.
        base: folder of the recipe, for relative paths.

    Returns:
        Examples by split, and by split how many were left out because a later split has them.
    """
    found: dict[str, list[Example]] = {name: [] for name in SPLITS}
    shares = {
        name: getattr(config.splits, name)
        for name in ("pretrain", "train", "architecture", "validation", "test")
        if getattr(config.splits, name) > 0
    }
    for source in config.sources:
        examples = _limited(source_examples(source, config, base), source.limit)
        if not examples:
            raise ValueError(f"{source.path} holds no usable row.")
        if source.use != "split":
            found[source.use] += examples
            continue
        by_source = {example.source: example for example in examples}
        divided = split_documents([e.document for e in examples], shares, config.splits.seed)
        for name in SPLITS:
            found[name] += [by_source[document.source] for document in divided.get(name, [])]
    found, repeats = _without_repeats(found)
    _check_splits(found)
    limits = {"train": config.train_rows, "validation": config.eval_rows, "test": config.eval_rows}
    return {name: _some(rows, limits[name]) for name, rows in found.items()}, repeats


def source_examples(
    source: ExampleSourceConfig, config: AdaptDataConfig, base: Path
) -> Iterator[Example]:
    """The rows of one source in the recipe's format."""
    if config.format == "classification" and is_plain_text(source, base):
        yield from _labelled_passages(source, config, base)
        return
    name = Path(source.path).name
    for number, row in enumerate(raw_rows(source, config.columns, base)):
        place = f"{name}, row {number + 1}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{place} is {type(row).__name__}, not an object with named fields.")
        converted = CONVERSIONS[config.convert](row, place)
        yield from _example(converted, config, place)


def _example(row: Mapping[str, Any], config: AdaptDataConfig, place: str) -> Iterator[Example]:
    if config.format == "chat":
        messages = _messages(row, config.messages, place)
        group = f"row:{text_hash(messages[0]['content'])[:20]}"
        yield Example(place, group, messages=messages)
        return
    if config.format == "classification":
        text = fill(_template(config.text), row, place)
        label = value_of(row, config.label, place)
        if text.strip():
            yield Example(place, f"row:{text_hash(text)[:20]}", text, label, label)
        return
    written = Preset(_template(config.prompt), _template(config.answer))
    preset = PRESETS.get(config.prompt, written)
    prompt = fill(preset.prompt_for(row), row, place)
    answer = fill(written.answer if config.answer != "{answer}" else preset.answer, row, place)
    reference = answer if config.reference is None else value_of(row, config.reference, place)
    if answer.strip():
        yield Example(place, _group(preset, row, prompt, place), prompt, answer, reference)


def _template(text: str) -> str:
    """A name without braces is a field's: as it stands it would be the same in every row."""
    return text if "{" in text else "{" + text + "}"


def _group(preset: Preset, row: Mapping[str, Any], prompt: str, place: str) -> str:
    """The first field of the prompt, as `manticore.text` groups rows: splits agree with its."""
    names = fields_of(preset.prompt_for(row))
    key = value_of(row, names[0], place) if names else prompt
    return f"row:{text_hash(key)[:20]}"


def _labelled_passages(
    source: ExampleSourceConfig, config: AdaptDataConfig, base: Path
) -> Iterator[Example]:
    """Passages of plain text files, labelled with the file's name."""
    root = Path(resolve_path(source.path, base))
    for file in corpus_files(root):
        label = file.name.split(".")[0]
        documents = read_documents(
            file,
            kind=label,
            document_chars=config.passage_chars,
            region_chars=max(source.region_chars, config.passage_chars),
        )
        for document in documents:
            text = document.text[: config.passage_chars]
            yield Example(document.source, document.group, text, label, label)


def _messages(row: Mapping[str, Any], key: str, place: str) -> tuple[Mapping[str, str], ...]:
    messages = row.get(key)
    good = isinstance(messages, list | tuple) and all(
        isinstance(m, Mapping)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str)
        for m in messages
    )
    if not good or not messages or not any(m["role"] == "assistant" for m in messages):
        raise ValueError(
            f"{place} has no conversation in {key!r}: a list of {{role, content}} with a turn of "
            f"the assistant is expected. The row has: {', '.join(map(str, row))}."
        )
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _some(examples: list[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples, from everywhere: those whose hashes come first."""
    if limit is None or limit >= len(examples):
        return examples
    return sorted(examples, key=lambda example: example.document.hash)[:limit]


def _limited(examples: Iterator[Example], limit: int | None) -> list[Example]:
    found: list[Example] = []
    for example in examples:
        if limit is not None and len(found) >= limit:
            break
        found.append(example)
    return found


def _without_repeats(
    found: Mapping[str, list[Example]],
) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Take rows of the test split out of the others, and rows of validation out of training.

    Public sets repeat rows across their splits; what is trained on must not be tested.
    """
    kept: dict[str, list[Example]] = {}
    later: set[str] = set()
    for name in reversed(SPLITS):
        kept[name] = [row for row in found[name] if row.document.hash not in later]
        later |= {row.document.hash for row in kept[name]}
    return (
        {name: kept[name] for name in SPLITS},
        {name: len(found[name]) - len(kept[name]) for name in SPLITS},
    )


def _check_splits(found: Mapping[str, list[Example]]) -> None:
    empty = [name for name, rows in found.items() if not rows]
    if empty:
        raise ValueError(
            f"No row is for {', '.join(empty)}. Give a source with use: {empty[0]}, or shares in "
            "data.splits."
        )
