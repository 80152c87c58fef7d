"""Read a run's records, check them, and put several seeds together.

A run folder holds `recipe.yaml`, `environment.json`, `metrics.jsonl` (one record a line) and
`result.json` (schema 1, checked here). Only `result.json` is required: a report of what is there
beats no report. Rows stay plain dictionaries, so that a committed table is the same thing as the
rows of a run.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

Row = dict[str, Any]

SCHEMA = 1
GROUPS = ("hybrid", "component", "ensemble", "ablation", "reference")
RESULT_KEYS = ("schema", "name", "seed", "kinds", "hybrid", "rows")
HYBRID_KEYS = ("components", "num_blocks", "mixing", "partition", "mixture")
COMPONENT_KEYS = ("name", "family", "d_model", "n_layers", "parameters")
ROW_KEYS = ("id", "label", "group", "seeds", "tokens", "parameters", "loss")
# Costs may be null where they make no sense, and are averaged over seeds.
COST_KEYS = (
    "lr", "tokens", "train_flops", "seconds", "parameters", "active_parameters",
    "inference_flops_per_token",
)  # fmt: skip
WHOLE_KEYS = ("tokens", "parameters", "active_parameters", "inference_flops_per_token")


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """Everything that a report is made from."""

    path: Path
    """The run's folder."""
    result: dict[str, Any]
    """`result.json`, checked."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The lines of `metrics.jsonl`, in order."""
    recipe: str = ""
    """The resolved recipe as text, empty when there is none."""
    environment: dict[str, Any] = field(default_factory=dict)
    """`environment.json`, empty when there is none."""


def load_run(folder: str | Path) -> RunRecords:
    """Read a run folder; complain about what a report cannot do without."""
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"No run folder at {path}. Give the folder that `manticore run` wrote.")
    if not (path / "result.json").is_file():
        raise ValueError(
            f"{path} has no result.json: the run has not finished. "
            "Run its recipe again, it continues where it stopped."
        )
    recipe = path / "recipe.yaml"
    environment = path / "environment.json"
    return RunRecords(
        path=path,
        result=check_result(read_json(path / "result.json"), where=str(path / "result.json")),
        metrics=_read_lines(path / "metrics.jsonl"),
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        environment=read_json(environment) if environment.is_file() else {},
    )


def load_rows(path: str | Path, kinds: Sequence[str]) -> list[Row]:
    """Read a committed table: a list of rows, or an object with the key `rows`."""
    document = read_json(Path(path))
    rows = document.get("rows") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise ValueError(f"{path} has no list 'rows'. Write it with `combine_seeds`.")
    return check_rows(rows, kinds, where=str(path))


def read_json(path: Path) -> Any:
    """Read one JSON file, naming it when it is missing or broken."""
    try:
        return _with_numbers(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Run the recipe again.") from error


def check_result(result: Any, where: str = "result.json") -> dict[str, Any]:
    """Return the result when it follows schema 1, else say which key is wrong and where."""
    _require(result, RESULT_KEYS, where)
    if result["schema"] != SCHEMA:
        raise ValueError(
            f"{where} has schema {result['schema']!r}; this version reads schema {SCHEMA}. "
            "Run the recipe again with this version."
        )
    kinds = result["kinds"]
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"{where}: kinds={kinds!r} is not a list of names.")
    check_rows(result["rows"], kinds, where)
    _check_hybrid(result["hybrid"], f"{where}: hybrid")
    for key, needed in (("goals", ("text", "met")), ("samples", ("prompt", "text"))):
        for index, item in enumerate(result.get(key) or []):
            _require(item, needed, f"{where}: {key}[{index}]")
    return result


def check_rows(rows: Any, kinds: Sequence[str], where: str = "rows") -> list[Row]:
    """Return the rows when each has its keys and a loss for every kind."""
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{where}: 'rows' holds no rows. A result has at least one.")
    seen: set[str] = set()
    for index, row in enumerate(rows):
        place = f"{where}: rows[{index}]"
        _require(row, ROW_KEYS, place)
        _require(row["loss"], ("mean", *kinds), f"{place} ({row['id']}): loss")
        if row["group"] not in GROUPS:
            raise ValueError(
                f"{place}: unknown group {row['group']!r}. Known: {', '.join(GROUPS)}."
            )
        if row["id"] in seen:
            raise ValueError(f"{place}: the id {row['id']!r} stands twice. Give each row its own.")
        seen.add(row["id"])
    return rows


def sorted_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows by mean loss, lowest first; what diverged or was not measured comes last."""
    return sorted(rows, key=lambda row: m if measured(m := row["loss"]["mean"]) else math.inf)


def measured(value: float | None) -> TypeGuard[float]:
    """Whether a number is there and finite."""
    return value is not None and math.isfinite(value)


def combine_seeds(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Put the results of several seeds together: one row per id, with mean, spread and seeds.

    The spread is the sample standard deviation (n - 1), None for a single seed. A row that only
    some seeds have says so in its own `seeds`. Costs are means over seeds.
    """
    if not results:
        raise ValueError("combine_seeds got no results. Give the result.json of each seed.")
    seeds = [result["seed"] for result in results]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds} repeat: the spread would be too small. Give each once.")
    kinds = [list(result["kinds"]) for result in results]
    if any(other != kinds[0] for other in kinds):
        raise ValueError(f"The results have different kinds of text: {kinds}. Combine equal runs.")
    same_id: dict[str, list[Row]] = {}
    for result in results:
        for row in check_rows(list(result["rows"]), kinds[0], f"seed {result['seed']}"):
            same_id.setdefault(row["id"], []).append(row)
    return [_combine_rows(rows) for rows in same_id.values()]


def _combine_rows(rows: list[Row]) -> Row:
    row: Row = {key: rows[0][key] for key in ("id", "label", "group")}
    row["seeds"] = len(rows)
    for key in COST_KEYS:
        row[key] = _mean([other.get(key) for other in rows])
        if key in WHOLE_KEYS and row[key] is not None:
            row[key] = round(row[key])
    lengths = rows[0].get("state_bytes") or {}
    sizes = {n: _mean([(other.get("state_bytes") or {}).get(n) for other in rows]) for n in lengths}
    row["state_bytes"] = {n: None if size is None else round(size) for n, size in sizes.items()}
    for key in ("loss", "bits_per_byte"):
        columns = rows[0].get(key) or {}
        values = {c: [(other.get(key) or {}).get(c) for other in rows] for c in columns}
        row[key] = {column: _mean(numbers) for column, numbers in values.items()}
        spread = {column: _sample_sd(numbers) for column, numbers in values.items()}
        row[f"{key}_sd"] = spread if len(rows) > 1 else None
    row["diverged_at"] = dict(at for r in rows for at in (r.get("diverged_at") or {}).items())
    row["note"] = "; ".join(dict.fromkeys(other["note"] for other in rows if other.get("note")))
    rates = sorted({other["lr"] for other in rows if other.get("lr") is not None})
    if len(rates) > 1:
        # A mean of learning rates was never run.
        row["lr"] = None
        chosen = f"learning rates {', '.join(f'{rate:g}' for rate in rates)}"
        row["note"] = "; ".join(filter(None, [row["note"], chosen]))
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) and numbers else None


def _sample_sd(values: Sequence[float | None]) -> float | None:
    mean = _mean(values)
    if mean is None or len(values) < 2:
        return None
    return math.sqrt(sum((v - mean) ** 2 for v in values if v is not None) / (len(values) - 1))


def _check_hybrid(hybrid: Any, where: str) -> None:
    _require(hybrid, HYBRID_KEYS, where)
    for index, component in enumerate(hybrid["components"]):
        _require(component, COMPONENT_KEYS, f"{where}.components[{index}]")
    blocks, width = hybrid["num_blocks"], len(hybrid["components"])
    shapes = (
        ("partition", hybrid["partition"], width, blocks),
        ("mixture", hybrid["mixture"], blocks, width),
    )
    for key, value, rows, columns in shapes:
        if len(value) != rows or any(len(row) != columns for row in value):
            raise ValueError(
                f"{where}.{key} should be {rows} x {columns} "
                f"for {width} components in {blocks} blocks; it is {value!r}."
            )
    wanted = (("loyalty", blocks + 1), ("embed_mixture", width), ("head_mixture", width))
    for key, length in wanted:
        if hybrid.get(key) is not None and len(hybrid[key]) != length:
            raise ValueError(f"{where}.{key} has {len(hybrid[key])} numbers, not {length}.")


def _require(value: Any, keys: Sequence[str], where: str) -> None:
    """Raise when `value` is no object or lacks a key; point at a near miss."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r:.60}, not an object with {', '.join(keys)}.")
    for key in keys:
        if key not in value:
            near = difflib.get_close_matches(key, [str(k) for k in value], n=1)
            hint = f" Did you mean {key!r} where it says {near[0]!r}?" if near else ""
            raise ValueError(f"{where} lacks {key!r}.{hint} Needed: {', '.join(keys)}.")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file; a line that a crash cut short is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(_with_numbers(record))
    return records


def _with_numbers(value: Any) -> Any:
    """Turn the words that stand for numbers that JSON lacks (a loss of "nan") into numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
