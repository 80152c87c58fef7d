"""Names of recipes and ids of rows: what tables, goals and folders know them by."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(name: str) -> None:
    """Raise where the name of a recipe is no name for its run's folder."""
    if not name.strip() or name in (".", "..") or set(name) & {"/", "\\"}:
        raise ValueError(
            f"name={name!r} names the run's folder, too: leave out slashes, as in my-run. "
            "--out tells where that folder is."
        )


def check_ids(what: str, ids: Sequence[str], taken: Sequence[str] = ()) -> None:
    """Raise where an id comes twice, is taken, or is no name for a folder.

    Args:
        what: whose ids they are, in the plural, such as rows.
        taken: what other rows are called; an entry that ends in "*" stands for all that begin so.
    """
    if len(set(ids)) < len(ids):
        raise ValueError(f"{what} need ids, each once; given: {', '.join(ids)}.")
    for name in ids:
        if not _ID.fullmatch(name):
            raise ValueError(
                f"The id {name!r} among {what} names a folder, too: use letters, digits, '.', '_' "
                "and '-', as in more-quarter."
            )
        if any(name == one or (one[-1] == "*" and name.startswith(one[:-1])) for one in taken):
            raise ValueError(
                f"The id {name!r} among {what} is taken. Choose one that is not {', '.join(taken)}."
            )
