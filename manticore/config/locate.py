"""Where recipes live, and which kind of run a recipe describes."""

from __future__ import annotations

import difflib
from pathlib import Path

from manticore.config.errors import ConfigError, did_you_mean
from manticore.config.strict_yaml import parse_yaml

_PACKAGE = Path(__file__).resolve().parent.parent


def recipes_root() -> Path:
    """Return the folder of the recipes: inside an installed package, or at the checkout's top."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def find_recipe(path: str | Path) -> Path:
    """Return the file that `path` means, the working folder first, then the recipes that we ship.

    `recipes/hybrids/quickstart.yaml` and `hybrids/quickstart.yaml` name the shipped one anywhere.
    """
    path = Path(path)
    shipped = recipes_root() / path
    if path.parts[:1] == ("recipes",):
        shipped = recipes_root().joinpath(*path.parts[1:])
    for candidate in (path, shipped):
        if candidate.is_file():
            return candidate
    what = "is a folder, not a recipe" if path.is_dir() else "does not exist"
    raise ConfigError(f"Recipe '{path}' {what}.{_nearby(path)}")


def read_recipe_file(path: str | Path) -> dict:
    """Return the plain content of a recipe, checked only to be a mapping."""
    found = find_recipe(path)
    try:
        text = found.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"Recipe '{path}' is not a text file in UTF-8.") from None
    plain = parse_yaml(text, str(path))
    if plain is None:
        plain = {}
    if not isinstance(plain, dict):
        raise ConfigError(f"Recipe '{path}' must hold 'key: value' lines, not {plain!r:.60}.")
    return plain


def recipe_kind(path: str | Path, known: tuple[str, ...] = ()) -> str:
    """Return the `kind` of a recipe, which says what job it describes.

    Args:
        path: the recipe.
        known: kinds that the caller can run; none means any.
    """
    kind = read_recipe_file(path).get("kind")
    allowed = f" Known: {', '.join(sorted(known))}." if known else ""
    if kind is None:
        raise ConfigError(f"Recipe '{path}' does not say its kind: add a line 'kind: '.{allowed}")
    if known and kind not in known:
        raise ConfigError(
            f"Unknown kind '{kind}' in '{path}'.{did_you_mean(str(kind), known)}{allowed}"
        )
    return str(kind)


def _nearby(path: Path) -> str:
    """Name a few recipes that were perhaps meant."""
    folder = path if path.is_dir() else path.parent
    here = sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
    shipped = sorted(recipes_root().rglob("*.y*ml")) if recipes_root().is_dir() else []
    seen = {file.resolve() for file in here}
    shipped = [file for file in shipped if file.resolve() not in seen]
    names = [str(file) for file in here]
    names += [f"recipes/{file.relative_to(recipes_root())}" for file in shipped]
    if not names:
        return " No recipe is near it."
    stems = {Path(name).stem: name for name in reversed(names)}
    close = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.5)
    meant = f" Did you mean '{stems[close[0]]}'?" if close else ""
    return f"{meant} Nearby: {', '.join(names[:8])}."
