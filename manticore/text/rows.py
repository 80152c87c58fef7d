"""Corpora that come as rows with named fields: JSON, Parquet, Hugging Face datasets."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manticore.text.documents import Document, text_hash
from manticore.text.files import format_of, read_text

Row = Mapping[str, Any]
PROMPT_FIELDS = ("prompt", "question", "instruction")


def rows_to_documents(
    rows: Iterable[Row],
    *,
    name: str,
    kind: str,
    field: str | Sequence[str] | None,
    group_field: str | None,
) -> Iterator[Document]:
    """Yield one document per row that has text.

    The group is the content of `group_field`; without it the first of several fields, else a
    field named prompt, question or instruction, else the text. Rows that share a prompt then
    share a split, in whatever file they lie.
    """
    template, fields = _template(field)
    for number, row in enumerate(rows):
        place = f"{name}, row {number + 1}"
        wanted = [*fields, *([group_field] if group_field else [])]
        values = {key: _value(row, key, place) for key in wanted}
        text = template.format_map(values)
        if not text.strip():
            continue
        key = group_field or _group_key(row, fields)
        group = str(row[key]) if key else text
        yield Document(text, kind, f"row:{text_hash(group)[:20]}", place)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a .jsonl, .json or .parquet file."""
    if format_of(path) == ".parquet":
        yield from _parquet_rows(path)
    elif format_of(path) == ".json":
        yield from _json_list(path)
    else:
        yield from _json_lines(path)


def hub_rows(name: str, split: str | None) -> Iterable[Row]:
    """Return the rows of a dataset of the Hugging Face hub, "owner/name" or "owner/name@config"."""
    datasets = _datasets(f"the dataset hf:{name}")
    repository, _, configuration = name.partition("@")
    try:
        loaded = datasets.load_dataset(repository, configuration or None)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"hf:{name} could not be loaded: {error} Check the name, the configuration after '@' "
            f"and the network, or give a folder written by `save_to_disk`."
        ) from error
    return _one_split(loaded, split, f"hf:{name}")


def saved_rows(path: Path, split: str | None) -> Iterable[Row]:
    """Return the rows of a folder that `datasets` wrote with `save_to_disk`."""
    datasets = _datasets(f"the saved dataset {path}")
    return _one_split(datasets.load_from_disk(str(path)), split, str(path))


def is_saved_dataset(path: Path) -> bool:
    """Tell whether a folder was written by `datasets`' `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _template(field: str | Sequence[str] | None) -> tuple[str, list[str]]:
    """Return a format string and the fields in it; several fields are joined by a newline."""
    if field is None:
        field = "text"
    if not isinstance(field, str):
        field = "\n".join("{" + name + "}" for name in field)
    if "{" not in field:
        field = "{" + field + "}"
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(field) if name is not None]
    except ValueError:  # a brace that never closes
        fields = []
    # A row is data, not an object to look into: "{question.__class__}" is refused.
    if not fields or not all(name.replace("-", "_").isidentifier() for name in fields):
        raise ValueError(
            f"field={field!r} names no plain fields. Give a name like 'text', a list of names, "
            f"or a template like '{{question}}\\n{{answer}}'."
        )
    return field, fields


def _group_key(row: Row, fields: list[str]) -> str | None:
    if len(fields) > 1:
        return fields[0]
    return next((key for key in PROMPT_FIELDS if isinstance(row.get(key), str)), None)


def _value(row: Row, key: str, place: str) -> str:
    if not isinstance(row, Mapping):
        raise ValueError(f"{place} is {type(row).__name__}, not an object with named fields.")
    if key not in row:
        raise ValueError(
            f"{place} has no field {key!r}. It has: {', '.join(map(str, row)) or 'none'}. "
            f"Set `field` to one of them, or to a template like '{{question}}\\n{{answer}}'."
        )
    if not isinstance(row[key], str):
        raise ValueError(
            f"The field {key!r} of {place} is {type(row[key]).__name__}, not text. "
            f"Choose a field that holds a string."
        )
    return row[key]


def _json_lines(path: Path) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold characters that it takes for line ends.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"Line {number} of {path} is not JSON ({error}). One object per line is "
                    f"expected; name a file that holds one list `.json`."
                ) from error


def _json_list(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {type(rows).__name__}, not a list of objects.")
    yield from rows


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(_missing("pyarrow", f"the Parquet file {path}")) from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}).") from error


def _one_split(loaded: Any, split: str | None, name: str) -> Iterable[Row]:
    if not isinstance(loaded, Mapping):
        if split is not None:
            raise ValueError(f"{name} has no splits, but split={split!r} is given. Leave it out.")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise ValueError(
            f"{name} has no split {split!r}. Set `split` to one of: {', '.join(loaded)}."
        )
    return loaded[split]


def _datasets(wanted: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(_missing("datasets", wanted)) from error
    return datasets


def _missing(package: str, wanted: str) -> str:
    return (
        f"To read {wanted}, the package {package!r} is needed. "
        f"Install it with `pip install 'manticore-lm[eval]'`."
    )
