"""The model card of a fine-tuned model: what it is, data, table, and the command that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from manticore.config import dump_yaml
from manticore.config.adapter_recipe import AdaptRecipe


def adapter_card(recipe: AdaptRecipe, result: Mapping[str, Any], table: str, row_id: str) -> str:
    """Markdown with front matter for the folder of one row's model or adapter."""
    row = next(row for row in result["rows"] if row["id"] == row_id)
    is_adapter = row["method"] != "full"
    front: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "base_model": recipe.model.path,
        "base_model_relation": "adapter" if is_adapter else "finetune",
        "tags": ["manticore", row["method"]],
    }
    if recipe.model.licence:
        front["license"] = recipe.model.licence.lower()
    lines = [
        f"# {recipe.name}: {row['label']}",
        "",
        f"{recipe.model.name or recipe.model.path} fine-tuned by {row['label']} with "
        f"{row['parameters']:,} trained parameters at learning rate {row['lr']:g}.",
        "",
        *(["Load it after `import manticore`, which teaches PEFT this method.", ""]
          if row["method"] == "more" else []),
        table,
        "",
        "Data:",
        "",
        *(f"- {path}: {licence or 'no licence named'}"
          for path, licence in result["data"]["licences"].items()),
        "",
        "```",
        result.get("command") or f"manticore adapt run recipes/more/{recipe.name}.yaml",
        "```",
        "",
        "```yaml",
        dump_yaml(recipe).rstrip(),
        "```",
    ]  # fmt: skip
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"
