"""A main job that runs in seconds: two tiny random components, a tokenizer, two kinds of text.

```
folder/  gpt2/  mamba/        components with their tokenizer; gpt2 drops out, so streams matter
         verse.jsonl  sums.jsonl
         recipe.yaml
```
"""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import yaml

from manticore.text.tokenizers import train_bpe
from tests.models.tiny import tiny

VOCAB_SIZE = 280
SEQ_LEN = 16
SENTENCE = "the old sea was cold and a man saw his red boat far out on grey water"

RECIPE: dict[str, Any] = {
    "kind": "hybrid",
    "name": "tiny",
    "components": [{"path": "./gpt2", "name": "gpt2"}, {"path": "./mamba", "name": "mamba"}],
    "data": {
        "seq_len": SEQ_LEN,
        "eval_rows": 8,
        "sources": [
            {"kind": "verse", "path": "./verse.jsonl"},
            {"kind": "sums", "path": "./sums.jsonl"},
        ],
        "splits": {"train": 0.6, "architecture": 0.1, "validation": 0.1, "test": 0.2},
    },
    "hybrid": {"num_blocks": 2},
    "projectors": {"start": "closed-form", "tokens": 600, "steps": 6},
    "search": {"method": "gaea", "steps": 6, "warmup_steps": 1, "mixture_lr": 0.2},
    "finetune": {"steps": 6, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2},
    "compare": {"component_equal_flops": False, "random_mixture": False},
    "samples": {"prompts": ["the old"], "max_new_tokens": 4},
}


def write_job(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write components, text and recipe; returns the recipe's path.

    Args:
        sections: values that replace those of a section, such as finetune={"steps": 2}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = texts()
    for name, documents in kinds.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = train_bpe([text for documents in kinds.values() for text in documents], VOCAB_SIZE)
    for name, model in tiny_components().items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return write_recipe(folder, **sections)


def write_recipe(folder: Path, **sections: Any) -> Path:
    """Write the recipe with some sections changed."""
    recipe = copy.deepcopy(RECIPE)
    for name, values in sections.items():
        old = recipe.get(name)
        recipe[name] = {**old, **values} if isinstance(old, dict) else values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def tiny_components() -> dict[str, Any]:
    """A gpt2 of three layers with dropout and a mamba of two, both random."""
    shared = {"vocab_size": VOCAB_SIZE}
    attention = tiny("gpt2", 0, n_embd=16, n_layer=3, n_head=2, resid_pdrop=0.2, **shared)
    scan = tiny("mamba", 1, hidden_size=12, num_hidden_layers=2, state_size=4, **shared)
    return {"gpt2": attention, "mamba": scan}


def texts() -> dict[str, list[str]]:
    """Documents of two kinds."""
    draw = random.Random(0)
    verse = [" ".join(draw.choices(SENTENCE.split(), k=30)) for _ in range(150)]
    sums = [_sums(draw) for _ in range(150)]
    return {"verse": verse, "sums": sums}


def _sums(draw: random.Random) -> str:
    pairs = [(draw.randrange(90), draw.randrange(90)) for _ in range(12)]
    return ", ".join(f"{a} + {b} = {a + b}" for a, b in pairs)


def partial_files(folder: Path) -> list[str]:
    """What a clean stop must not leave behind: hidden neighbours of half-written files."""
    return sorted(str(p) for p in folder.rglob(".*") if "partial" in p.name or "replaced" in p.name)
