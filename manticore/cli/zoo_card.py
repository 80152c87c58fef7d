"""The model card of a pretrained zoo model."""

from __future__ import annotations

import yaml

from manticore.config.recipes import PretrainRecipe


def zoo_card(recipe: PretrainRecipe, record: dict) -> str:
    """Markdown with front matter: what it is, data, losses, and the command that made it."""
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["manticore", "tiny", str(recipe.model["model_type"])],
    }
    kinds = list(record["data"])
    lines = [
        f"# {recipe.name}",
        "",
        f"A {recipe.model['model_type']} of {record['parameters']:,} parameters, trained from "
        f"scratch on {record['tokens']:,} tokens of {', '.join(kinds)}. It is a component for "
        "trying out hybrids on a laptop, not a useful language model.",
        "",
        "| kind | test nats per token | bits per byte | "
        f"{recipe.ngram_order}-gram with back-off, nats |",
        "|---|---|---|---|",
        *(_row(kind, record) for kind in kinds),
        "",
        "Trained on the `pretrain` split only; weights are stored in float16. Text:",
        "",
        *(_source(kind, record["data"][kind]) for kind in kinds),
        "",
        "```",
        f"manticore run recipes/zoo/{recipe.name}.yaml",
        "```",
    ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _row(kind: str, record: dict) -> str:
    loss, bits = record["test"]["loss"][kind], record["test"]["bits_per_byte"][kind]
    ngram = record["ngram"].get(kind)
    return f"| {kind} | {loss:.3f} | {bits:.3f} | {'-' if ngram is None else f'{ngram:.3f}'} |"


def _source(kind: str, data: dict) -> str:
    files = "; ".join(f"{name} `{digest}`" for name, digest in data["sha256"].items())
    return f"- {kind} ({data['licence']}): {files}"
