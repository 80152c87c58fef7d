"""Examples to fine-tune on: rows of any format as prompts with answers, chats or labelled texts."""

from __future__ import annotations

import csv
import io
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manticore.config.example_sections import AdaptDataConfig, ExampleSourceConfig
from manticore.text.corpora import HUB_PREFIX, read_documents
from manticore.text.documents import Document, text_hash
from manticore.text.files import TEXT_SUFFIXES, corpus_files, format_of, read_text
from manticore.text.prepared import resolve_path
from manticore.text.rows import hub_rows, is_saved_dataset, read_rows, saved_rows
from manticore.text.splits import split_documents
from manticore.tuning.commonsense import CONVERSIONS
from manticore.tuning.templates import PRESETS, Preset

SPLITS = ("train", "validation", "test")
TABLES = {".tsv": "\t", ".csv": ","}


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
    if config.format == "classification" and _is_plain_text(source, base):
        yield from _labelled_passages(source, config, base)
        return
    name = Path(source.path).name
    for number, row in enumerate(_rows(source, config.columns, base)):
        place = f"{name}, row {number + 1}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{place} is {type(row).__name__}, not an object with named fields.")
        converted = CONVERSIONS[config.convert](row, place)
        yield from _example(converted, config, place)


def fill(template: str, row: Mapping[str, Any], place: str) -> str:
    """A template such as '{question}\\n' with the row's values; numbers are written out."""
    values = {key: _value(row, key, place) for key in fields_of(template)}
    return template.format_map(values)


def fields_of(template: str) -> list[str]:
    """The fields that a template names."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"The template {template!r} has a brace that never closes: {error}. Write {{{{ for a "
            "brace."
        ) from error
    # A row is data, not an object to look into: "{question.__class__}" is refused.
    if not all(name.replace("-", "_").isidentifier() for name in names):
        raise ValueError(f"The template {template!r} may name plain fields only, as in {{text}}.")
    return names


def _example(row: Mapping[str, Any], config: AdaptDataConfig, place: str) -> Iterator[Example]:
    if config.format == "chat":
        messages = _messages(row, config.messages, place)
        group = f"row:{text_hash(messages[0]['content'])[:20]}"
        yield Example(place, group, messages=messages)
        return
    if config.format == "classification":
        template = config.text if "{" in config.text else "{" + config.text + "}"
        text, label = fill(template, row, place), _value(row, config.label, place)
        if text.strip():
            yield Example(place, f"row:{text_hash(text)[:20]}", text, label, label)
        return
    preset = PRESETS.get(config.prompt, Preset(config.prompt, config.answer))
    prompt = fill(preset.prompt_for(row), row, place)
    answer = fill(config.answer if config.answer != "{answer}" else preset.answer, row, place)
    reference = answer if config.reference is None else _value(row, config.reference, place)
    if answer.strip():
        yield Example(place, _group(preset, row, prompt, place), prompt, answer, reference)


def _group(preset: Preset, row: Mapping[str, Any], prompt: str, place: str) -> str:
    """The first field of the prompt, as `manticore.text` groups rows: splits agree with its."""
    names = fields_of(preset.prompt_for(row))
    key = _value(row, names[0], place) if names else prompt
    return f"row:{text_hash(key)[:20]}"


def _rows(source: ExampleSourceConfig, columns: Sequence[str], base: Path) -> Iterable[Any]:
    if source.path.startswith(HUB_PREFIX):
        return hub_rows(source.path.removeprefix(HUB_PREFIX), source.split)
    local = Path(resolve_path(source.path, base)).expanduser()
    if not local.exists():
        raise ValueError(
            f"There is no file or folder {local}. Give a path that exists, or hf:NAME."
        )
    if is_saved_dataset(local):
        return saved_rows(local, source.split)
    files = [local] if local.is_file() else corpus_files(local)
    return (row for file in files for row in _file_rows(file, columns))


def _file_rows(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    separator = TABLES.get(format_of(file))
    if separator is None:
        yield from read_rows(file)
        return
    # Quotes are text in TSV, as GLUE's files have it.
    stream = io.StringIO(read_text(file))
    if separator == "\t":
        lines = csv.reader(stream, delimiter=separator, quoting=csv.QUOTE_NONE)
    else:
        lines = csv.reader(stream)
    header = list(columns) or next(lines, [])
    for number, line in enumerate(lines, start=1):
        if line and len(line) != len(header):
            raise ValueError(
                f"Row {number} of {file.name} has {len(line)} columns, not {len(header)} "
                f"({', '.join(header)}). Set data.columns to the names, or mend the file."
            )
        if line:
            yield dict(zip(header, line, strict=True))


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


def _is_plain_text(source: ExampleSourceConfig, base: Path) -> bool:
    if source.path.startswith(HUB_PREFIX):
        return False
    local = Path(resolve_path(source.path, base))
    if local.is_dir() and not is_saved_dataset(local):
        return all(format_of(file) in TEXT_SUFFIXES for file in corpus_files(local))
    return local.is_file() and format_of(local) in TEXT_SUFFIXES


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


def _value(row: Mapping[str, Any], key: str, place: str) -> str:
    if key not in row:
        raise ValueError(
            f"{place} has no field {key!r}. It has: {', '.join(map(str, row)) or 'none'}."
        )
    value = row[key]
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise ValueError(f"The field {key!r} of {place} is {type(value).__name__}, not text.")
    return str(value)


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
