"""What a wrong recipe raises, and the search for what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ConfigError(ValueError):
    """A recipe or an override that says something that is not allowed."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `given`, else "".

    Names are compared by their last part too (`lr` finds `finetune.lr`), and by initials
    (`learning_rate` finds `lr`).
    """
    close = _nearest(given, list(dict.fromkeys(known)))
    return f" Did you mean '{close}'?" if close else ""


def _nearest(given: str, known: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.7)
    if close:
        return close[0]
    leaf = _leaf(given)
    # Siblings first: a key is misspelt more often than it is misplaced.
    parent = given.removesuffix(leaf)
    for name in sorted(known, key=lambda name: not name.startswith(parent)):
        if leaf in (_leaf(name), _initials(_leaf(name))) or _initials(leaf) == _leaf(name):
            return name
    by_leaf = {_leaf(name): name for name in known}
    close = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7)
    if close:
        return by_leaf[close[0]]
    # One word of a name of several, where no other name has it (`longest` finds `longest_memory`).
    found = [name for name in known if leaf in _leaf(name).split("_")]
    return found[0] if len(found) == 1 else None


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _initials(name: str) -> str:
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else name
