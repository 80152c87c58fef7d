"""The model card of a pretrained zoo model."""

from __future__ import annotations

import yaml

from manticore.config.pretrain_recipe import PretrainRecipe


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
        f"scratch on {record['tokens']:,} tokens of {' and '.join(kinds)}. It is a component for "
        "trying out hybrids on a laptop, not a useful language model.",
        "",
        *_table(recipe, record),
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


def _table(recipe: PretrainRecipe, record: dict) -> list[str]:
    """Losses by kind, beside those of the n-gram model where there was one."""
    heads = ["kind", "test nats per token", "bits per byte"]
    columns = [list(record["data"]), *_measures(record)]
    if recipe.ngram_order:
        heads.append(f"{recipe.ngram_order}-gram with back-off, nats")
        columns.append([f"{record['ngram'][kind]:.3f}" for kind in record["data"]])
    rows = [heads, ["---"] * len(heads), *zip(*columns, strict=True)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _measures(record: dict) -> list[list[str]]:
    by_kind = (record["test"][key] for key in ("loss", "bits_per_byte"))
    return [[f"{values[kind]:.3f}" for kind in record["data"]] for values in by_kind]


def _source(kind: str, data: dict) -> str:
    files = "; ".join(f"{name} `{digest}`" for name, digest in data["sha256"].items())
    return f"- {kind} ({data['licence']}): {files}"
