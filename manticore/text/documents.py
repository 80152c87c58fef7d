"""A document: a piece of text that is never cut between two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One piece of text, with what is needed to keep it in one split."""

    text: str
    kind: str
    """What sort of text this is ("prose", "maths"); losses are reported by kind."""
    group: str
    """Documents of one group always land in the same split."""
    source: str
    """Where it was read, for messages: file name and place."""

    @property
    def hash(self) -> str:
        """Return the SHA-256 of the text with every run of whitespace made one space."""
        return text_hash(self.text)

    @property
    def n_bytes(self) -> int:
        """Return the length of the text in UTF-8 bytes."""
        return len(self.text.encode())


def text_hash(text: str) -> str:
    """Return the SHA-256 of `text`, in which only the words count and not their spacing."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def documents_hash(documents: Iterable[Document]) -> str:
    """Return one SHA-256 for a set of documents, whatever their order: for run records."""
    hashes = sorted(document.hash for document in documents)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
