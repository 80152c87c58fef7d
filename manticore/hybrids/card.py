"""The model card of a hybrid: what it is made of, how to load it, what it was measured at.

Names, licences, numbers and recipes come from outside, so every one of them is escaped: the front
matter goes through `yaml.safe_dump`, cells of tables lose what Markdown would act on, and a
recipe stands in a fence longer than any inside it.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import PreTrainedConfig

from manticore.models.component_lengths import longest_sequence

if TYPE_CHECKING:
    from manticore.hybrids.modeling_base import ManticorePreTrainedModel

Row = Mapping[str, Any]
CARD_NAME = "README.md"
# Classes by the end of their name -> task on the hub, and the Auto class that loads them.
TASKS = {
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
}
# From the freest on: a work made of several of these can be given under the last one present.
PERMISSIVE = ("cc0-1.0", "unlicense", "mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
GENERIC_SENTENCE = "transformers model that has been pushed on the Hub"


def model_card(
    hybrid: "ManticorePreTrainedModel",
    *,
    name: str = "path/or/name",
    component_licenses: Sequence[str | None] = (),
    license: str | None = None,
    recipe: str | Mapping[str, Any] | None = None,
    data: Sequence[Row] = (),
    results: Sequence[Row] = (),
    limits: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        name: what a reader passes to `from_pretrained`.
        component_licenses: one for each component, None where unknown.
        license: of the hybrid; default the strictest of the components' when all are permissive,
            otherwise "other".
        recipe: the resolved recipe, as a mapping or as YAML text.
        data: one row for each corpus, for example name, licence, documents, sha256.
        results: one row for each measured model, the same keys in each.
        limits: sentences beside those that follow from the components.
        tags: more tags for the hub.
    """
    licenses = [*component_licenses, *[None] * hybrid.config.num_components]
    licenses = licenses[: hybrid.config.num_components]
    sections = [
        front_matter(hybrid, license or joint_license(licenses), tags),
        f"# {plain(Path(name).name) if name != 'path/or/name' else 'A Manticore hybrid'}",
        _summary(hybrid),
        _loading(hybrid, name),
        "## Components\n\n" + table(_component_rows(hybrid, licenses)),
        "## Mixture\n\n" + table(_mixture_rows(hybrid)),
        "## Results\n\n" + table(results) if results else "",
        "## Data\n\n" + table(data) if data else "",
        "## Recipe\n\n" + fenced(recipe) if recipe else "",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(hybrid, limits)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def write_card(
    folder: str | os.PathLike[str], hybrid: "ManticorePreTrainedModel", **details: Any
) -> Path:
    """Write the card into a saved hybrid's folder, over an earlier one; details as above."""
    path = Path(folder) / CARD_NAME
    path.write_text(model_card(hybrid, **details), encoding="utf-8")
    return path


def save_missing_card(folder: str | os.PathLike[str], hybrid: "ManticorePreTrainedModel") -> None:
    """Write a card beside saved weights unless somebody has written one."""
    path = Path(folder) / CARD_NAME
    if not path.exists():
        path.write_text(hybrid.card_text or model_card(hybrid), encoding="utf-8")


def replace_generic_card(
    folder: str | os.PathLike[str], hybrid: "ManticorePreTrainedModel"
) -> None:
    """Put the hybrid's card in the place of the template that transformers uploads."""
    path = Path(folder) / CARD_NAME
    text = path.read_text(encoding="utf-8") if path.exists() else GENERIC_SENTENCE
    if GENERIC_SENTENCE in text:
        tags = read_front_matter(text).get("tags") or []
        card = hybrid.card_text or model_card(hybrid, tags=[str(tag) for tag in tags])
        path.write_text(card, encoding="utf-8")


def front_matter(hybrid: "ManticorePreTrainedModel", license: str, tags: Sequence[str] = ()) -> str:
    """The block between `---` that the hub reads."""
    config = hybrid.config
    families = [component.model_type for component in config.components]
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "license": license,
        "tags": list(dict.fromkeys(["manticore", "hybrid", *families, *tags])),
    }
    task = _task(hybrid)
    if task is not None:
        fields["pipeline_tag"] = task[0]
    names = [hub_name(component) for component in config.components]
    if any(names):
        fields["base_model"] = list(dict.fromkeys(n for n in names if n))
        fields["base_model_relation"] = "merge"
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def read_front_matter(text: str) -> dict[str, Any]:
    """The fields of a card's front matter; empty when there is none that parses."""
    match = re.match(r"---\n(.*?)\n---", text, flags=re.DOTALL)
    try:
        fields = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError:
        fields = None
    return fields if isinstance(fields, dict) else {}


def joint_license(licenses: Sequence[str | None]) -> str:
    """The strictest of several permissive licences; "other" where that is not ours to say."""
    lowered = [(license or "").lower() for license in licenses]
    if len(set(lowered)) == 1 and lowered[0]:
        return lowered[0]
    if all(license in PERMISSIVE for license in lowered):
        return max(lowered, key=PERMISSIVE.index)
    return "other"


def hub_name(config: PreTrainedConfig) -> str | None:
    """A component's name on the hub; None for a local folder, whose path is nobody's business."""
    name = str(getattr(config, "_name_or_path", "") or "")
    return name if HUB_NAME.fullmatch(name) and not os.path.exists(name) else None


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; the columns are all keys in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[plain(column) for column in columns], ["---"] * len(columns)]
    lines += [[plain(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plain(value: Any) -> str:
    """A value as text on one line that Markdown and HTML leave alone."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str("" if value is None else value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def fenced(recipe: str | Mapping[str, Any]) -> str:
    """A recipe as a YAML block that its own text cannot close."""
    text = recipe if isinstance(recipe, str) else yaml.safe_dump(dict(recipe), sort_keys=False)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.strip()}\n{fence}"


def _task(hybrid: "ManticorePreTrainedModel") -> tuple[str, str] | None:
    return next((t for end, t in TASKS.items() if type(hybrid).__name__.endswith(end)), None)


def _summary(hybrid: "ManticorePreTrainedModel") -> str:
    config = hybrid.config
    blocks = "1 block" if config.num_blocks == 1 else f"{config.num_blocks} blocks"
    projectors = sum(p.numel() for p in hybrid.projector_parameters())
    families = " and a ".join(plain(c.model_type) for c in config.components)
    return (
        f"A pretrained hybrid of a {families}, cut into {blocks} and mixed by "
        f"`{config.mixing}`: {hybrid.num_parameters():,} parameters, {projectors:,} of them in "
        f"the maps between components. Vocabulary {config.vocab_size:,}. Made with Manticore "
        "(`pip install manticore-lm`)."
    )


def _loading(hybrid: "ManticorePreTrainedModel", name: str) -> str:
    task = _task(hybrid)
    auto = task[1] if task else "AutoModel"
    lines = [
        "import manticore  # makes the model known to transformers; no remote code",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f"model = {auto}.from_pretrained({json.dumps(name)})",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)})",
    ]
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _component_rows(
    hybrid: "ManticorePreTrainedModel", licenses: Sequence[str | None]
) -> list[Row]:
    return [
        {
            "component": k,
            "family": config.model_type,
            "from": hub_name(config) or "local weights",
            "licence": license or "unknown",
            "width": config.hidden_size,
            "layers": config.num_hidden_layers,
            "parameters": f"{sum(p.numel() for p in hybrid.component_parameters(k)):,}",
        }
        for k, (config, license) in enumerate(zip(hybrid.config.components, licenses, strict=True))
    ]


def _mixture_rows(hybrid: "ManticorePreTrainedModel") -> list[Row]:
    return [
        {"block": block + 1} | {f"component {k}": f"{w:.3f}" for k, w in enumerate(weights)}
        for block, weights in enumerate(hybrid.mixture.tolist())
    ]


def _limits(hybrid: "ManticorePreTrainedModel", more: Sequence[str]) -> list[str]:
    lines = [
        "It inherits the limits, biases and licences of its components.",
        "Its cache cannot be rolled back: assisted and prompt-lookup decoding refuse.",
    ]
    for k, config in enumerate(hybrid.config.components):
        limit = longest_sequence(config)
        if limit is not None:
            lines.append(
                f"Component {k} takes at most {limit} positions: longer sequences are refused."
            )
    return lines + [plain(line) for line in more]
