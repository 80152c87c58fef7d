"""The rows of a source of examples, as they stand in files, tables and saved data sets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from manticore.config.example_sections import ExampleSourceConfig
from manticore.text.corpora import HUB_PREFIX, check_there
from manticore.text.files import TEXT_SUFFIXES, corpus_files, format_of, read_text
from manticore.text.prepared import resolve_path
from manticore.text.rows import hub_rows, is_saved_dataset, read_rows, saved_rows

TABLES = {".tsv": "\t", ".csv": ","}


def raw_rows(source: ExampleSourceConfig, columns: Sequence[str], base: Path) -> Iterable[Any]:
    """The rows of a file, a folder or a data set, as they are there.

    Args:
        columns: names for tables without a header; empty: the first line has them.
        base: folder of the recipe, for relative paths.
    """
    if source.path.startswith(HUB_PREFIX):
        return hub_rows(source.path.removeprefix(HUB_PREFIX), source.split)
    path = resolve_path(source.path, base)
    check_there(path)
    local = Path(path).expanduser()
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


def is_plain_text(source: ExampleSourceConfig, base: Path) -> bool:
    """Whether a source is text without rows, whose files are labels."""
    if source.path.startswith(HUB_PREFIX):
        return False
    local = Path(resolve_path(source.path, base))
    if local.is_dir() and not is_saved_dataset(local):
        return all(format_of(file) in TEXT_SUFFIXES for file in corpus_files(local))
    return local.is_file() and format_of(local) in TEXT_SUFFIXES
