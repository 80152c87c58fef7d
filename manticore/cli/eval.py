"""Measure a model on text: nats per token and bits per byte, by kind of text.

MODEL is the folder of a hybrid or of any supported causal language model. The text comes from a
recipe's data section (--data; its test split unless --split says otherwise) or from files and
folders (--text), each of which is a kind of its own.

Example:
    manticore eval runs/quickstart/model --data recipes/hybrids/quickstart.yaml
    manticore eval models/pythia --text novel.txt letters/ --seq-len 256 --out losses.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from manticore.cli.options import add_dry_run, add_out, add_quiet
from manticore.runs import write_json

SPLITS = ("train", "architecture", "validation", "test")
SEQ_LEN = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore eval`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--data", metavar="RECIPE", help="recipe whose data section names the text")
    text.add_argument("--text", nargs="+", metavar="FILE", help="files or folders of text")
    parser.add_argument("--split", choices=SPLITS, help="of the recipe's data (default test)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="key.sub=value",
        help="replaces a value of the recipe, as in data.eval_rows=50",
    )
    parser.add_argument("--field", help="with --text: field of JSON lines or Parquet")
    parser.add_argument("--seq-len", type=int, help=f"with --text: tokens in a row ({SEQ_LEN})")
    parser.add_argument("--batch-size", type=int, default=32, help="rows at a time (32)")
    parser.add_argument("--tokenizer", help="folder or file, when the model's folder has none")
    parser.add_argument("--device", help="such as cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_out(parser, what="JSON file for the losses")
    add_dry_run(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print; nothing is written without --out."""
    check_arguments(args)
    from manticore.cli import model_folder
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    model_folder.check_output_file(args.out, "eval")
    config = model_folder.read_config(args.model)
    tokenizer = model_folder.load_folder_tokenizer(args.model, args.tokenizer)
    model_folder.check_vocabulary(config, tokenizer)
    packs = packs_of(args, tokenizer)
    seq_len = next(iter(packs.values())).seq_len
    model_folder.check_lengths(config, seq_len)
    if args.dry_run:
        print(model_folder.describe_model(config, seq_len))
        tokens = sum(pack.n_tokens for pack in packs.values())
        print(f"would read {tokens:,} tokens of {', '.join(packs)}")
        print(f"would write {args.out}" if args.out else "would write nothing")
        return 0
    model = model_folder.load_model(args.model, args.device)
    record = evaluate(model, packs, args.batch_size, progress=not args.quiet)
    record = {"verb": "eval", "model": str(args.model), **source_of(args), **record}
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record, indent=2) if args.json else "\n".join(loss_table(record)))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """No option that would be ignored."""
    for option, value, needs, there in (
        ("--split", args.split, "--data", args.data),
        ("--set", args.overrides, "--data", args.data),
        ("--field", args.field, "--text", args.text),
        ("--seq-len", args.seq_len, "--text", args.text),
    ):
        if value and not there:
            raise ValueError(f"{option} is for {needs}. Leave it out, or give {needs}.")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size} is no batch. Choose 1 or more.")


def source_of(args: argparse.Namespace) -> dict[str, Any]:
    """Where the text came from, for the record."""
    if args.text:
        return {"text": args.text}
    return {"data": args.data, "set": args.overrides, "split": args.split or "test"}


def packs_of(args: argparse.Namespace, tokenizer: Any) -> dict[str, Any]:
    """The text that is asked for, packed: kind -> rows."""
    if args.text:
        return packs_of_files(args.text, tokenizer, args.seq_len or SEQ_LEN, args.field)
    from manticore.text.prepared import prepare_split

    recipe, base = read_data_recipe(args.data, args.overrides)
    return prepare_split(recipe.data, tokenizer, base, args.split or "test")


def read_data_recipe(path: str, overrides: list[str]) -> tuple[Any, Path]:
    """A recipe with a data section, of any kind, and the folder of its file."""
    from manticore.config import find_recipe, load_recipe, recipe_kind
    from manticore.config.pretrain_recipe import PretrainRecipe
    from manticore.config.recipes import HybridRecipe

    classes: dict[str, Any] = {"hybrid": HybridRecipe, "pretrain": PretrainRecipe}
    cls = classes[recipe_kind(path, tuple(classes))]
    return load_recipe(cls, path, overrides), find_recipe(path).parent


def packs_of_files(
    paths: list[str], tokenizer: Any, seq_len: int, field: str | None
) -> dict[str, Any]:
    """Files and folders as one kind of text each, named after them."""
    from manticore.text.corpora import read_documents
    from manticore.text.packing import pack

    names = [Path(path).name.split(".")[0] or path for path in paths]
    if len(set(names)) < len(names):
        names = paths
    if len(set(names)) < len(names):
        raise ValueError(f"--text names a file twice: {', '.join(paths)}. Give each once.")
    return {
        name: pack(read_documents(path, kind=name, field=field), tokenizer, seq_len)
        for name, path in zip(names, paths, strict=True)
    }


def evaluate(model: Any, packs: dict[str, Any], batch_size: int, progress: bool) -> dict[str, Any]:
    """Losses by kind, with a bar that counts batches."""
    from tqdm import tqdm

    from manticore.evaluation.language import losses_by_kind

    total = sum(-(-pack.n_rows // batch_size) for pack in packs.values())
    shown = progress and sys.stderr.isatty()
    with tqdm(total=total, unit="batch", desc="evaluating", disable=not shown) as bar:

        def count(*_: object) -> None:
            bar.update()

        hook = model.register_forward_hook(count)
        losses = losses_by_kind(model, packs, batch_size)
        hook.remove()
    return {
        **losses,
        "tokens": {kind: pack.n_predicted for kind, pack in packs.items()},
        "bytes": {kind: pack.n_bytes for kind, pack in packs.items()},
        "seq_len": next(iter(packs.values())).seq_len,
    }


def loss_table(record: dict[str, Any]) -> list[str]:
    """The losses as text, one line for each kind and one for their mean."""
    kinds = list(record["tokens"])
    width = max(len(name) for name in [*kinds, "mean"])
    lines = [f"{'':{width}}  nats/token  bits/byte      tokens"]
    for kind in kinds + (["mean"] if len(kinds) > 1 else []):
        loss, bits = record["loss"][kind], record["bits_per_byte"][kind]
        tokens = record["tokens"].get(kind)
        counted = f"{tokens:12,}" if tokens is not None else ""
        lines.append(f"{kind:{width}}  {loss:10.4f}  {bits:9.4f}{counted}")
    return lines
