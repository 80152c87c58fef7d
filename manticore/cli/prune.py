"""Make a hybrid smaller: drop branches of little weight and what nobody runs any more.

The pruned hybrid is written whole or not at all, with its tokenizer and a card. A hybrid whose
path now switches component needs --data: its projectors are then refitted in closed form on the
recipe's training text.

Example:
    manticore prune runs/quickstart/model --threshold 0.05 --out runs/quickstart/pruned
    manticore prune runs/quickstart/model --one-hot --data recipes/hybrids/quickstart.yaml --out x
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from manticore.cli.options import add_dry_run, add_out
from manticore.runs import atomic_folder, write_json, write_text

RECORD = "prune.json"
THRESHOLD = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore prune`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a hybrid")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"weights below it become zero, the largest of a row never ({THRESHOLD})",
    )
    how.add_argument("--one-hot", action="store_true", help="keep the largest weight of each row")
    parser.add_argument("--data", metavar="RECIPE", help="text for refitting the projectors")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="key.sub=value",
        help="replaces a value of that recipe",
    )
    parser.add_argument(
        "--refit-tokens", type=int, default=16384, help="tokens that the refit sees (16384)"
    )
    add_out(parser, what="folder for the pruned hybrid")
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Prune, write the smaller hybrid, and print what was dropped."""
    if args.out is None:
        raise ValueError("--out is missing: name the folder for the pruned hybrid.")
    if args.overrides and not args.data:
        raise ValueError("--set is for --data. Leave it out, or give --data.")
    from manticore.cli.model_folder import check_output_folder, load_folder_tokenizer, load_hybrid
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    replaces = check_output_folder(args.out, RECORD, source=args.model)
    hybrid = load_hybrid(args.model)
    tokenizer = load_folder_tokenizer(args.model)
    dropped = dropped_weights(hybrid, args.threshold, args.one_hot)
    print("\n".join(f"drops {line}" for line in dropped))
    if args.dry_run:
        print(f"parameters now: {hybrid.num_parameters():,}")
        print(f"would {'replace' if replaces else 'write'} {args.out}")
        return 0
    batches = refit_batches(args, tokenizer) if args.data else None
    smaller = hybrid.prune(args.threshold, one_hot=args.one_hot, batches=batches)
    record = prune_record(args, hybrid, smaller, dropped)
    save(smaller, tokenizer, record, args)
    print("\n".join(describe(record)))
    if batches is None and switches(smaller):
        print(
            "note: a path now switches component and its projectors were not refitted; with "
            "--data RECIPE they are.",
            file=sys.stderr,
        )
    print(f"{'replaced' if replaces else 'wrote'} {args.out}")
    return 0


def dropped_weights(hybrid: Any, threshold: float, one_hot: bool) -> list[str]:
    """The weights that become zero, in words; nothing to drop raises."""
    from manticore.hybrids.pruning import sparsify

    if not 0 <= threshold < 1:
        raise ValueError(f"--threshold {threshold:g}: give a weight from 0 to below 1.")
    rows, found, kept = hybrid.backbone.rows, [], []
    named = [(f"block {b + 1}", row) for b, row in enumerate(rows.weights.detach())]
    if rows.embed is not None:
        named.insert(0, ("the embeddings", rows.log_embed_row().exp().detach()))
    if rows.head is not None:
        named.append(("the heads", rows.log_head_row(0).exp().detach()))
    for title, row in named:
        after = sparsify(row, threshold, one_hot)
        for k, (old, new) in enumerate(zip(row.tolist(), after.tolist(), strict=True)):
            if old > 0 and new == 0:
                tie = ", chosen among equals" if old == row.max() else ""
                found.append(f"component {k} in {title} (weight {old:.4f}{tie})")
            elif 0 < old < 1:
                kept.append(old)
    if not found:
        advice = "Every row is one-hot already."
        if kept:
            advice = f"The smallest is {min(kept):.4f}: give a larger threshold, or --one-hot."
        raise ValueError(f"No weight is below {threshold:g}: nothing to drop. {advice}")
    return found


def refit_batches(args: argparse.Namespace, tokenizer: Any) -> Any:
    """Training text of the recipe for the closed form."""
    from manticore.cli.eval import read_data_recipe
    from manticore.config.recipes import ProjectorConfig
    from manticore.hybrids.assembly import fit_batches
    from manticore.text.prepared import prepare_data

    recipe, base = read_data_recipe(args.data, args.overrides)
    data = prepare_data(recipe.data, tokenizer, base)
    return fit_batches(ProjectorConfig(tokens=args.refit_tokens), data, recipe.seed)


def switches(hybrid: Any) -> bool:
    """Whether a component somewhere begins from other streams alone."""
    rows, blocks = hybrid.backbone.rows, range(hybrid.config.num_blocks)
    if hybrid.config.mixing != "streams":
        return any(set(rows.active(b)) != set(rows.active(0)) for b in blocks)
    sources = [rows.active_embed(), *(rows.active(b) for b in blocks)]
    readers = [*sources[1:], rows.active_head(len(blocks) - 1)]
    return any(set(reads) - set(has) for has, reads in zip(sources, readers, strict=True))


def prune_record(
    args: argparse.Namespace, hybrid: Any, smaller: Any, dropped: list[str]
) -> dict[str, Any]:
    """What was done, as plain values: it marks the folder as ours."""

    def layers(model: Any) -> int:
        return sum(component.num_hidden_layers for component in model.config.components)

    return {
        "verb": "prune",
        "model": str(args.model),
        "threshold": None if args.one_hot else args.threshold,
        "one_hot": args.one_hot,
        "refit_on": args.data,
        "dropped": dropped,
        "parameters": [hybrid.num_parameters(), smaller.num_parameters()],
        "layers": [layers(hybrid), layers(smaller)],
        "components": [hybrid.config.num_components, smaller.config.num_components],
        **smaller.backbone.rows.as_lists(),
    }


def describe(record: dict[str, Any]) -> list[str]:
    """Sizes before and after."""
    return [
        f"{name}: {record[name][0]:,} -> {record[name][1]:,}"
        for name in ("components", "layers", "parameters")
    ]


def save(smaller: Any, tokenizer: Any, record: dict[str, Any], args: argparse.Namespace) -> None:
    """Write hybrid, tokenizer, card and record; the folder is there whole or not at all."""
    from manticore.hybrids.card import model_card, read_front_matter

    card = args.model / "README.md"
    front = read_front_matter(card.read_text(encoding="utf-8")) if card.is_file() else {}
    how = "one-hot" if record["one_hot"] else f"weights below {record['threshold']:g}"
    before, after = record["parameters"]
    refit = ", projectors refitted in closed form" if record["refit_on"] else ""
    note = f"Pruned ({how}{refit}) from {before:,} to {after:,} parameters and not tuned since."
    with atomic_folder(args.out) as target:
        smaller.save_pretrained(target)
        tokenizer.save_pretrained(target)
        text = model_card(smaller, license=front.get("license"), limits=[note])
        write_text(target / "README.md", text)
        write_json(target / RECORD, record)
