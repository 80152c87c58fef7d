"""Splits that stay apart: grouped, deduplicated, and the same on every machine.

A group's split follows from its own hash and the seed. So it depends neither on the order of
the documents nor on the others: what was training text before a corpus grew is so afterwards.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from manticore.text.documents import Document, documents_hash


def split_documents(
    documents: Sequence[Document], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Document]]:
    """Divide documents among named splits.

    Args:
        documents: exact duplicates (but for whitespace) are kept once.
        fractions: share of the groups for each split, in order; they sum to 1.
        seed: another seed gives another division.

    Returns:
        The documents of each split, in the order given. The shares are expectations: with n
        groups, a share p comes out as p plus or minus sqrt(p (1 - p) / n).
    """
    _check_fractions(fractions)
    splits: dict[str, list[Document]] = {name: [] for name in fractions}
    for document in deduplicate(documents):
        splits[_split_of(document.group, fractions, seed)].append(document)
    empty = [name for name, members in splits.items() if not members and fractions[name] > 0]
    if empty:
        n_groups = len({document.group for document in documents})
        raise ValueError(
            f"No document fell into: {', '.join(empty)}. There are {len(documents)} documents in "
            f"{n_groups} groups. Give more text, a larger fraction, smaller groups "
            f"(region_chars) or another seed."
        )
    check_disjoint(splits)
    return splits


def deduplicate(documents: Iterable[Document]) -> list[Document]:
    """Keep one copy of each text: that in the first group by name, whatever the order."""
    documents = list(documents)
    kept: dict[str, int] = {}
    for index, document in enumerate(documents):
        other = kept.get(document.hash)
        if other is None or document.group < documents[other].group:
            kept[document.hash] = index
    return [documents[index] for index in sorted(kept.values())]


def check_disjoint(splits: Mapping[str, Sequence[Document]]) -> None:
    """Raise ValueError if two splits share a text (but for whitespace) or a group."""
    for what in ("hash", "group"):
        owner: dict[str, tuple[str, Document]] = {}
        for name, members in splits.items():
            for document in members:
                other, first = owner.setdefault(getattr(document, what), (name, document))
                if other != name:
                    shared = "text" if what == "hash" else f"group {document.group!r}"
                    raise ValueError(
                        f"The splits {other!r} and {name!r} share a {shared}: {first.source} and "
                        f"{document.source}. Split both together with `split_documents`."
                    )


def check_unseen(documents: Iterable[Document], seen_hashes: Iterable[str], what: str) -> None:
    """Raise ValueError if a document is among the hashes of earlier training (`what`)."""
    seen = frozenset(seen_hashes)
    found = [document.source for document in documents if document.hash in seen]
    if found:
        raise ValueError(
            f"{len(found)} documents were already in {what}, first {found[0]}. "
            f"Use the same fractions and seed for both, or other text."
        )


def split_record(splits: Mapping[str, Sequence[Document]]) -> dict[str, dict[str, int | str]]:
    """Return counts, bytes and one hash of each split, for a run's record."""
    return {
        name: {
            "documents": len(members),
            "groups": len({document.group for document in members}),
            "bytes": sum(document.n_bytes for document in members),
            "sha256": documents_hash(members),
        }
        for name, members in splits.items()
    }


def _split_of(group: str, fractions: Mapping[str, float], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    edge = 0.0
    for name, fraction in fractions.items():
        edge += fraction
        if place < edge:
            return name
    # The sum of the fractions may fall short of 1 by rounding.
    return next(name for name in reversed(list(fractions)) if fractions[name] > 0)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    total = math.fsum(fractions.values())
    if any(not 0 <= value <= 1 for value in fractions.values()) or abs(total - 1) > 1e-9:
        raise ValueError(
            f"fractions={dict(fractions)} sum to {total:g}. Give numbers from 0 to 1 that sum to 1."
        )
