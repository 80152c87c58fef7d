"""Files of a corpus: finding them, opening compressed ones, refusing what is not text."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

TEXT_SUFFIXES = (".txt", ".md", ".text")
ROW_SUFFIXES = (".jsonl", ".json", ".parquet")
OPENERS: dict[str, Callable[[bytes], bytes]] = {".xz": lzma.decompress, ".gz": gzip.decompress}
NOTES = ("readme", "license", "licence", "notice", "copying", "source")
"""Files of these names in a folder tell about the corpus and are not part of it."""


def format_of(path: Path) -> str:
    """Return the suffix of a file without its compression: ".txt" for "novel.txt.xz"."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in OPENERS else path.suffix.lower()


def corpus_files(path: Path) -> list[Path]:
    """Return the files that `path` names: itself, or the text and row files below a folder.

    Hidden files and notes (README, LICENSE, NOTICE, SOURCE) in a folder are passed over.
    """
    if path.is_file():
        return [path]
    known = (*TEXT_SUFFIXES, *ROW_SUFFIXES)
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and format_of(file) in known
        and file.name.split(".")[0].lower() not in NOTES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise ValueError(
            f"The folder {path} holds no corpus file. Known: {', '.join(known)}, "
            f"each also with {' or '.join(OPENERS)} (Parquet excepted)."
        )
    return found


def read_text(path: Path) -> str:
    """Return the text of a file, decompressed, with lines that end in one newline character."""
    data = _decompressed(path)
    if not data.strip():
        raise ValueError(f"The file {path} is empty. Give a file with text in it.")
    zero = data.find(b"\0")
    if zero >= 0:
        raise ValueError(
            f"The file {path} is binary: it holds a zero byte at {zero}. Give UTF-8 text "
            f"(plain, .xz or .gz), JSON lines or Parquet."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The file {path} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}. "
            f"Convert it, for example with `iconv -f latin1 -t utf-8`, or leave it out."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as they lie on disk."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        return data
    try:
        return opener(data)
    except (lzma.LZMAError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"The file {path} is not a whole {path.suffix} file ({error}). Fetch it again."
        ) from error
