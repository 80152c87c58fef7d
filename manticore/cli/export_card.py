"""The model card of an export: how to load it, and why it is or is not a stock class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from manticore.hybrids.card import model_card, plain, read_front_matter
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM

if TYPE_CHECKING:
    from manticore.cli.export_model import Export

# What of an earlier card's front matter holds for the export as well.
_KEPT_FIELDS = ("license", "base_model", "base_model_relation", "language", "datasets")


def export_card(export: Export, folder: Path) -> str:
    """The card, as Markdown.

    Args:
        export: what is written.
        folder: the model's own; its card's licence and origin are kept.
    """
    card = folder / "README.md"
    front = read_front_matter(card.read_text(encoding="utf-8")) if card.is_file() else {}
    if isinstance(export.source, ManticoreForCausalLM) and export.reason is not None:
        return model_card(export.source, license=front.get("license"), limits=[_why(export.reason)])
    sections = [
        _front_matter(export, front),
        f"# {export.class_name}",
        _summary(export),
        "## Use\n\n```python\n" + "\n".join(_loading(export)) + "\n```",
    ]
    limits = _limits(export)
    if limits:
        sections.append("## Limits\n\n" + "\n".join(f"- {plain(line)}" for line in limits))
    return "\n\n".join(sections) + "\n"


def _front_matter(export: Export, front: dict[str, Any]) -> str:
    library = "transformers" if export.fla is None else "fla"
    fields: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    fields |= {key: front[key] for key in _KEPT_FIELDS if key in front}
    fields.setdefault("license", "other")
    fields["tags"] = ["manticore", export.model_type]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _summary(export: Export) -> str:
    made = f"A {export.model_type} model of {export.model.num_parameters():,} "
    if export.reason is not None:
        return made + "parameters, made with Manticore (`pip install manticore-lm`)."
    library = "transformers" if export.fla is None else "flash-linear-attention"
    return (
        made + f"parameters, exported from a {plain(type(export.source).__name__)} of Manticore. "
        f"It is of a class of {library}, and every tool that knows that class loads it."
    )


def _loading(export: Export) -> list[str]:
    ours = "import manticore  # makes the model known to transformers; no remote code"
    theirs = "import fla  # pip install flash-linear-attention; its kernels need a GPU"
    return [
        *([] if export.reason is None else [ours]),
        *([] if export.fla is None else [theirs]),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("path/or/name")',
        'tokenizer = AutoTokenizer.from_pretrained("path/or/name")',
    ]


def _limits(export: Export) -> list[str]:
    if export.reason is not None:
        return [_why(export.reason)]
    ours, theirs = (m.config.to_dict() for m in (export.source, export.model))
    if "max_position_embeddings" in theirs and ours.get("max_position_embeddings", 0) is None:
        # Rotary angles have no last position, so a model may say none.
        return ["max_position_embeddings in config.json is the default of the class."]
    return []


def _why(reason: str) -> str:
    return f"Loading it takes an import of manticore. {reason}"
