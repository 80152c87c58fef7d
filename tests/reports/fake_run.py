"""Run folders as a finished run would leave them, with numbers that are easy to recognise."""

import json
import math
import random
from pathlib import Path
from typing import Any

from manticore.reports.records import combine_seeds

NAMES = ("novels-neox", "maths-mamba", "stories-llama", "code-gpt2", "fifth", "sixth")
FAMILIES = ("gpt_neox", "mamba", "llama", "gpt2", "gpt_neo", "mamba")
KINDS = ("prose", "maths")
# id, label, group, (prose, maths) loss, tokens, learning rate, compute as a multiple of the first
ROWS: list[tuple[str, str, str, tuple[float, float], int, float | None, float]] = [
    ("component-0", "NeoX alone", "component", (3.824, 3.745), 409600, 3e-3, 1.0),
    ("component-1", "Mamba alone", "component", (4.191, 3.107), 409600, 3e-3, 0.8),
    ("component-1-long", "Mamba, equal compute", "component", (3.961, 3.046), 983040, 3e-3, 2),
    ("logit-ensemble", "Logit ensemble of both", "ensemble", (3.870, 3.186), 409600, None, 1.8),
    ("probability-ensemble", "Probability ensemble", "ensemble", (3.862, 3.212), 409600, None, 1.8),
    ("hybrid", "Hybrid (searched mixture)", "hybrid", (3.733, 3.047), 409600, 2e-3, 2.4),
    ("no-cross-talk", "Hybrid, no cross-talk", "ablation", (3.735, 3.041), 409600, 2e-3, 2.2),
    ("uniform", "Uniform mixture", "ablation", (3.741, 3.055), 409600, 2e-3, 2.4),
    ("random", "Random mixture", "ablation", (3.790, 3.094), 409600, 2e-3, 2.4),
    ("ngram", "5-gram with back-off", "reference", (4.903, 3.871), 3900000, None, 0.001),
]


def fake_rows(seed: int = 0) -> list[dict[str, Any]]:
    """The rows of one seed: the numbers above, moved by a few thousandths."""
    noise = random.Random(seed)
    rows = []
    for name, label, group, losses, tokens, rate, compute in ROWS:
        kinds = {k: v + noise.gauss(0, 0.004) for k, v in zip(KINDS, losses, strict=True)}
        kinds = {"mean": sum(kinds.values()) / 2, **kinds}
        parameters = round(1.3e6 * max(compute, 0.5))
        rows.append({
            "id": name, "label": label, "group": group, "seeds": 1, "lr": rate, "tokens": tokens,
            "train_flops": 3.1e12 * compute, "seconds": 48.0 * compute, "parameters": parameters,
            "active_parameters": parameters, "inference_flops_per_token": 2 * parameters,
            "state_bytes": {"1024": round(2**20 * compute), "32768": round(2**25 * compute)},
            "loss": kinds, "loss_sd": None,
            "bits_per_byte": {k: v / math.log(2) / 3.4 for k, v in kinds.items()},
            "note": "2.4 times the tokens" if name.endswith("long") else "",
        })  # fmt: skip
    return rows


def fake_hybrid(num_components: int = 2, num_blocks: int = 2, mixing: str = "streams") -> dict:
    """A hybrid whose mixture tilts from the first component to the last one."""
    depth = max(4, num_blocks)
    parts = [[b * depth // num_blocks, (b + 1) * depth // num_blocks] for b in range(num_blocks)]
    return {
        "components": [
            {"name": NAMES[k], "family": FAMILIES[k], "d_model": 128 - 16 * k, "n_layers": depth,
             "parameters": 1_320_000 - 200_000 * k, "licence": "Apache-2.0", "vocab_size": 2048}
            for k in range(num_components)
        ],
        "num_blocks": num_blocks, "mixing": mixing, "partition": [parts] * num_components,
        "mixture": [tilted((b + 1) / num_blocks, num_components) for b in range(num_blocks)],
        "embed_mixture": tilted(0.0, num_components), "head_mixture": tilted(1.0, num_components),
        "loyalty": [2.0] * (num_blocks + 1), "router": True, "projector_parameters": 73_728,
        "projector_flops_share": 0.05,
        "fit": [
            {"boundary": b + 1, "source": j, "target": k, "r2": 0.48 - 0.05 * b / num_blocks}
            for b in range(num_blocks + 1)
            for j in range(num_components) for k in range(num_components) if j != k
        ],
    }  # fmt: skip


def tilted(position: float, count: int) -> list[float]:
    """Weights of `count` components that move from the first to the last one."""
    raw = [math.exp(1.6 * (k - (count - 1) / 2) * (position - 0.5)) for k in range(count)]
    return [value / sum(raw) for value in raw]


def fake_result(seed: int = 0, **hybrid: Any) -> dict[str, Any]:
    """A result of schema 1."""
    return {
        "schema": 1, "name": "quickstart", "seed": seed,
        "command": "manticore run recipes/hybrids/quickstart.yaml", "kinds": list(KINDS),
        "data": {
            "prose": {"tokens": 2900000, "bytes": 9860000, "sha256": "ab" * 32,
                      "licence": "public domain"},
            "maths": {"tokens": 1000000, "bytes": 3400000, "sha256": "cd" * 32, "licence": "MIT"},
        },
        "hybrid": fake_hybrid(**hybrid), "rows": fake_rows(seed),
        "goals": [
            {"text": "better than the best component by more than two standard deviations",
             "met": True, "detail": "3.390 against 3.649, sd 0.003"},
            {"text": "each kind within 2 % of the specialist", "met": False,
             "detail": "maths: 3.047 against 2.980 is 2.2 % more"},
            {"text": "better than the best component at equal FLOPs", "met": None, "detail": ""},
        ],
        "samples": [
            {"prompt": "It was the", "settings": {"temperature": 0.8, "top_p": 0.95, "seed": 1},
             "text": " best of the morning, and Mr. Copperfield had gone to the door\nwith a face"
                     " of great concern, when the old gentleman said that he was not to be moved."},
            {"prompt": "Question: Anna has 3 apples and buys 4 more. ", "settings": "greedy",
             "text": "How many apples does she have?\nAnswer: She has 3 + 4 = 7 apples.\n#### 7"},
        ],
        "phases": [
            {"name": "projectors", "seconds": 6.2, "tokens": 16384, "flops": 4.1e10},
            {"name": "search", "seconds": 31.0, "tokens": 81920, "flops": 1.5e12},
            {"name": "finetune", "seconds": 109.5, "tokens": 409600, "flops": 7.4e12},
            {"name": "evaluate", "seconds": 22.8, "tokens": 131072, "flops": 4.4e11},
        ],
    }  # fmt: skip


def fake_metrics(num_components: int = 2, num_blocks: int = 2, steps: int = 200) -> list[dict]:
    """Curves that fall to the losses of the rows, and a mixture that tilts as it is searched."""
    noise = random.Random(1)
    records: list[dict[str, Any]] = []
    for step in range(0, 61, 2):
        moved = step / 60
        blocks = [tilted(0.5 + moved * ((b + 1) / num_blocks - 0.5), num_components)
                  for b in range(num_blocks)]  # fmt: skip
        records.append({
            "stage": "search", "row": "hybrid", "step": step, "loss": 4.4 - 0.5 * moved,
            "arch_loss": 4.45 - 0.4 * moved, "mixture": blocks,
            "head": tilted(0.5 + moved / 2, num_components),
            "embed": tilted(0.5 - moved / 2, num_components),
        })  # fmt: skip
    trained = [row for row in ROWS if row[5] is not None]
    for name, _, _, losses, tokens, rate, _ in trained:
        end, last = sum(losses) / 2, steps * tokens // 409600
        for step in range(1, last + 1):
            loss = end + (0.9 if "component" not in name else 2.4) * math.exp(-5 * step / last)
            records.append({
                "stage": "finetune", "row": name, "step": step, "lr": rate, "tokens": step * 2048,
                "loss": loss + noise.gauss(0, 0.08),
            })  # fmt: skip
            if step % 20 == 0:
                kinds = {k: v + loss - end for k, v in zip(KINDS, losses, strict=True)}
                records.append({"stage": "validate", "row": name, "step": step, "loss": kinds})
    return records


def make_run(folder: Path, committed: bool = True, steps: int = 200, **hybrid: Any) -> Path:
    """Write a run folder, and beside it the committed table of three seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {key: value for key, value in hybrid.items() if key != "mixing"}
    lines = [json.dumps(record) for record in fake_metrics(steps=steps, **shape)]
    environment = {"python": "3.11.9", "versions": {"torch": "2.13.0", "transformers": "5.23.0"}}
    (folder / "result.json").write_text(json.dumps(fake_result(**hybrid)))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text("name: quickstart\nseed: 0\nfinetune:\n  steps: 200\n")
    (folder / "environment.json").write_text(json.dumps(environment))
    if committed:
        rows = combine_seeds([fake_result(seed) for seed in (11, 12, 13)])
        (folder / "expected.json").write_text(json.dumps({"rows": rows}))
    return folder
