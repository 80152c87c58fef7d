"""Corpora: text files, folders, JSON lines, Parquet and Hugging Face datasets as documents.

    documents = read_documents("novels/", kind="prose")
    documents = read_documents("gsm8k.jsonl.xz", kind="maths", field="{question}\\n{answer}")
    documents = read_documents("hf:owner/name@config", kind="web", split="train", limit=1000)

Plain text is cut at blank lines, and neighbours share a group, so that a split never tests on
the next paragraph of a page that it trained on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from manticore.text.documents import Document
from manticore.text.files import (
    ROW_SUFFIXES,
    TEXT_SUFFIXES,
    corpus_files,
    file_hash,
    format_of,
    read_text,
)
from manticore.text.rows import (
    hub_rows,
    is_saved_dataset,
    read_rows,
    rows_to_documents,
    saved_rows,
)

HUB_PREFIX = "hf:"
SEPARATORS = ("\n", " ")


def read_documents(
    path: str | Path,
    *,
    kind: str,
    field: str | Sequence[str] | None = None,
    group_field: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    document_chars: int = 2000,
    region_chars: int = 12000,
) -> list[Document]:
    """Read a corpus as documents.

    Args:
        path: a file (.txt, .jsonl, .json, each also .xz or .gz; .parquet), a folder of them, a
            folder that `datasets` saved, or "hf:owner/name[@config]" for the hub.
        kind: the name under which losses on this text are reported.
        field: for rows: the field with the text ("text" by default), a list of fields (joined by
            newlines) or a template such as "{question}\\n{answer}".
        group_field: for rows: the field whose equal values stay in one split.
        split: for Hugging Face datasets: which of their splits.
        limit: keep the first so many documents.
        document_chars: for plain text: documents are whole paragraphs up to so many characters;
            a paragraph longer than twice that is cut at a line end or a space.
        region_chars: for plain text: neighbours within so many characters share a group.

    Raises:
        ValueError: missing, empty or binary source, an unknown field (those that exist are named).
    """
    _check_numbers(limit, document_chars, region_chars)
    rows = {"kind": kind, "field": field, "group_field": group_field}
    if isinstance(path, str) and path.startswith(HUB_PREFIX):
        name = path.removeprefix(HUB_PREFIX)
        found = rows_to_documents(hub_rows(name, split), name=path, **rows)  # type: ignore[arg-type]
    else:
        local = _existing(path)
        if is_saved_dataset(local):
            found = rows_to_documents(saved_rows(local, split), name=local.name, **rows)  # type: ignore[arg-type]
        else:
            _refuse_split(split, path)
            found = (
                document
                for file in corpus_files(local)
                for document in _file_documents(file, rows, document_chars, region_chars)
            )
    documents = list(itertools.islice(found, limit))
    if not documents:
        raise ValueError(f"The corpus {path} is empty: no row or paragraph holds text.")
    return documents


def check_there(path: str | Path) -> None:
    """Raise ValueError where a corpus is neither a file or folder here nor one of the hub's."""
    if not str(path).startswith(HUB_PREFIX):
        _existing(path)


def source_hashes(path: str | Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a local corpus by name, for records; {} for the hub."""
    if isinstance(path, str) and path.startswith(HUB_PREFIX):
        return {}
    local = _existing(path)
    if is_saved_dataset(local):
        files = sorted(file for file in local.rglob("*.arrow") if file.is_file())
    else:
        files = corpus_files(local)
    root = local if local.is_dir() else local.parent
    return {file.relative_to(root).as_posix(): file_hash(file) for file in files}


def cut_text(
    text: str, *, name: str, kind: str, document_chars: int, region_chars: int
) -> Iterator[Document]:
    """Yield documents of about `document_chars` characters, cut at blank lines.

    The group is the file's name and the number of its region. Regions depend on the text and
    `region_chars` alone, so another document size moves nothing to another split.
    """
    pieces = _pieces(text, limit=min(document_chars * 2, region_chars))
    for region, members in itertools.groupby(pieces, key=lambda piece: piece[0] // region_chars):
        group = f"{name}#{region:04d}"
        for number, body in enumerate(_joined(members, document_chars)):
            yield Document(body, kind, group, f"{group}.{number}")


def _file_documents(
    file: Path, rows: dict, document_chars: int, region_chars: int
) -> Iterator[Document]:
    suffix = format_of(file)
    if suffix in ROW_SUFFIXES:
        return rows_to_documents(read_rows(file), name=file.name, **rows)
    if suffix not in TEXT_SUFFIXES:
        raise ValueError(
            f"{file} is of no known format. Known: {', '.join((*TEXT_SUFFIXES, *ROW_SUFFIXES))}, "
            f"each also compressed as .xz or .gz (Parquet excepted)."
        )
    # The name without folders: a file read alone has the groups that it has in its folder.
    return cut_text(
        read_text(file),
        name=file.name.split(".")[0],
        kind=rows["kind"],
        document_chars=document_chars,
        region_chars=region_chars,
    )


def _pieces(text: str, limit: int) -> Iterator[tuple[int, str, str]]:
    """Yield (offset, joiner, piece): paragraphs, and parts of those longer than `limit`.

    `joiner` is what stood before the piece: a blank line, or nothing inside a paragraph.
    """
    for match in re.finditer(r"\S.*?(?=\n[ \t]*\n|\Z)", text, re.DOTALL):
        start, end = match.start(), match.end()
        # Keep the indentation of a first line: it tells verse and code from prose.
        while start > 0 and text[start - 1] in " \t":
            start -= 1
        joiner = "\n\n"
        while end - start > limit:
            cut = _cut_before(text, start, start + limit)
            yield start, joiner, text[start:cut]
            start, joiner = cut, ""
        yield start, joiner, text[start:end].rstrip()


def _cut_before(text: str, start: int, end: int) -> int:
    """Return the place after the last line end in text[start:end], else space, else `end`."""
    for separator in SEPARATORS:
        found = text.rfind(separator, start + 1, end)
        if found > start:
            return found + 1
    return end


def _joined(pieces: Iterator[tuple[int, str, str]], document_chars: int) -> Iterator[str]:
    body = ""
    for _, joiner, piece in pieces:
        if body and len(body) + len(piece) > document_chars:
            yield body
            body = ""
        body = body + joiner + piece if body else piece
    if body.strip():
        yield body


def _existing(path: str | Path) -> Path:
    local = Path(path).expanduser()
    if not local.exists():
        raise ValueError(
            f"There is no file or folder {path}. Give a path that exists, or "
            f"'{HUB_PREFIX}owner/name' for a dataset of the Hugging Face hub."
        )
    return local


def _refuse_split(split: str | None, path: str | Path) -> None:
    if split is not None:
        raise ValueError(
            f"split={split!r} is for Hugging Face datasets; {path} is none. Leave it out: "
            f"files are split by `fractions`."
        )


def _check_numbers(limit: int | None, document_chars: int, region_chars: int) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} keeps no document. Choose 1 or more, or leave it out.")
    if not 1 <= document_chars <= region_chars:
        raise ValueError(
            f"document_chars={document_chars} must be from 1 to region_chars={region_chars}: "
            f"a document lies in one region."
        )
