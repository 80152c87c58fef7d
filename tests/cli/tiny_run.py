"""A whole project in a folder, made in a second: two tiny models, a tokenizer, text, a recipe."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from manticore.text.tokenizers import train_bpe
from tests.models.tiny import tiny

VOCAB_SIZE = 300
WORDS = ("the", "old", "man", "saw", "a", "grey", "sea", "and", "his", "boat", "went", "home")
RECIPE = """\
kind: hybrid
name: small
components:
  - {path: ../neox, name: neox, licence: MIT}
  - {path: ../mamba, name: mamba, licence: Apache-2.0}
data:
  seq_len: 24
  eval_rows: 4
  sources:
    - {kind: tales, path: ../tales.jsonl, licence: MIT}
    - {kind: sums, path: ../sums.jsonl, licence: MIT}
  splits: {train: 0.7, architecture: 0.1, validation: 0.1, test: 0.1}
projectors: {tokens: 512}
search: {steps: 2, warmup_steps: 1, train_weights: false}
finetune: {steps: 2, batch_size: 4, warmup_steps: 1}
samples: {prompts: [the old], max_new_tokens: 3}
"""
# The hybrid and one baseline: what most tests need.
FEW_ROWS = (
    "compare.component_equal_flops=false",
    "compare.no_cross_talk=false",
    "compare.uniform_mixture=false",
    "compare.random_mixture=false",
)


def make_project(folder: Path) -> Path:
    """Write models, text and `recipes/small.yaml` into a folder; returns the recipe."""
    texts = {"tales": [_tale(n) for n in range(100)], "sums": [_sum(n) for n in range(100)]}
    for kind, lines in texts.items():
        rows = [json.dumps({"text": line}) for line in lines]
        (folder / f"{kind}.jsonl").write_text("\n".join(rows) + "\n")
        (folder / f"{kind}.txt").write_text("\n\n".join(lines))
    tokenizer = train_bpe([line for lines in texts.values() for line in lines], VOCAB_SIZE)
    sizes = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    for name, family, variant in (("neox", "gpt_neox", 0), ("mamba", "mamba", 1)):
        tiny(family, variant=variant, **sizes).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    recipe = folder / "recipes" / "small.yaml"
    recipe.parent.mkdir()
    recipe.write_text(RECIPE)
    return recipe


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file of a folder: the hash of its content and its time of change."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            # Opening a run checks the log's end and writes the report: the same content again.
            0 if path.name in ("metrics.jsonl", "report.html") else path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def _tale(number: int) -> str:
    draw = random.Random(number)
    return f"Tale {number}. " + " ".join(draw.choice(WORDS) for _ in range(40)) + "."


def _sum(number: int) -> str:
    draw = random.Random(1000 + number)
    pairs = [(draw.randrange(100), draw.randrange(100)) for _ in range(8)]
    return f"Sums {number}: " + "; ".join(f"{a} + {b} = {a + b}" for a, b in pairs)
