"""Write a model so that plain transformers loads it, where one of its classes computes the same.

A hybrid that was pruned to one component leaves as that component's class. A converted model leaves
as Llama, Mistral, Qwen, OLMo, Phi, GPT-NeoX, GPT-2 or GPT-J, or as a hybrid: Granite, Bamba, Jamba,
Falcon-H1, OLMo-Hybrid, Qwen3-Next, LFM2. A model of mixers leaves as Mamba, Mamba-2, Nemotron-H, or
what its blocks of a mixer and an MLP are; docs/export.md has the table. Anything else leaves as it
is, and its card says why and that loading it takes `import manticore`. Tokenizer and generation
settings travel along.

--layout fla writes a model for flash-linear-attention instead: retention, GLA, (gated) DeltaNet,
linear attention, RWKV-6, attention, hybrids of one of them and attention, or a Mamba; what its
classes do not compute is refused by name. A folder of that library is read, too, and leaves as our
class.

--check loads the folder in a process that cannot import Manticore and compares logits and generated
tokens; a folder for flash-linear-attention is read back by Manticore. Exit status 0: written; 1:
the check failed and nothing was written; 2: bad input.

Example:
    manticore export runs/quickstart/pruned --out exported --check
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.cli.options import add_dry_run, add_out
from manticore.runs import atomic_folder, write_json, write_text

if TYPE_CHECKING:
    from manticore.cli.export_model import Export

RECORD = "export.json"
_EXIT_CHECK_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore export`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model")
    parser.add_argument(
        "--layout",
        choices=("transformers", "fla"),
        default="transformers",
        help="library whose classes load it; fla: flash-linear-attention (default: %(default)s)",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the source in a process of its own"
    )
    add_out(parser, what="folder for the exported model")
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Find the class, write the folder, and say what it takes to load it."""
    if args.out is None:
        raise ValueError("--out is missing: name the folder for the exported model.")
    from manticore.cli.export_check import CheckFailedError
    from manticore.cli.export_model import read_export
    from manticore.cli.model_folder import check_output_folder
    from manticore.cli.quiet import quiet_transformers

    quiet_transformers()
    if check_output_folder(args.out, RECORD, source=args.model):
        raise ValueError(f"--out {args.out} holds an earlier export. Choose a new or empty folder.")
    export = read_export(args.model, args.layout)
    print("\n".join(describe(export)))
    tokenizer = read_tokenizer(args.model)
    if args.dry_run:
        print(f"would write {args.out}")
        return 0
    try:
        findings = write_export(export, tokenizer, args)
    except CheckFailedError as error:
        print(f"manticore: the check failed: {error}. Nothing was written.", file=sys.stderr)
        return _EXIT_CHECK_FAILED
    if findings is not None:
        print(
            f"check: logits within {findings['difference']:.2g}, the same "
            f"{findings['new_tokens']} generated tokens"
            f"{how_checked(export)}"
        )
    print(f"wrote {args.out}")
    return 0


def describe(export: Export) -> list[str]:
    """The class that is written, and why it is not a stock one."""
    if export.fla is not None:
        return [f"class: {export.class_name} of flash-linear-attention; loads with `import fla`"]
    if export.reason is None:
        return [f"class: {export.class_name} of transformers; loads without Manticore"]
    return [
        f"class: {export.class_name}, Manticore's own; loading it takes `import manticore`",
        f"why: {export.reason}",
    ]


def how_checked(export: Export) -> str:
    """What is worth knowing about the check."""
    if export.fla is not None:
        return "; read back by Manticore"
    return "" if export.reason else "; Manticore was never imported"


def read_tokenizer(folder: Path) -> Any | None:
    """The tokenizer beside the model; without one the export has none either, and says so."""
    if not (folder / "tokenizer.json").is_file():
        print(f"note: {folder} holds no tokenizer.json, so none is exported.", file=sys.stderr)
        return None
    from manticore.cli.model_folder import load_folder_tokenizer

    return load_folder_tokenizer(folder)


def write_export(
    export: Export, tokenizer: Any | None, args: argparse.Namespace
) -> dict[str, Any] | None:
    """Write model, tokenizer, card and record, whole or not at all; returns the check's findings.

    The check sees the finished files, and when it fails they are gone.
    """
    from manticore.cli.export_card import export_card
    from manticore.cli.export_check import check_export

    with atomic_folder(args.out) as target:
        export.save(target)
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
        write_text(target / "README.md", export_card(export, args.model))
        findings = None
        if args.check:
            findings = check_export(target, export.source, export.loader)
        record = {
            "verb": "export",
            "model": args.model.resolve().name,  # a folder to share: no paths of this machine
            "class": export.class_name,
            "layout": args.layout,
            "needs_manticore": export.reason is not None,
            "why": export.reason,
            "check": findings,
        }
        write_json(target / RECORD, record)
    return findings
