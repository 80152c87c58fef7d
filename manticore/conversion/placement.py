"""Which layers stay attention: five ways to choose, on one budget for the cache, in one table.

```
none            no layer
uniform         evenly spaced, as many as fit
first-middle    layers 1 and L/2 - 1, as XATL has them (arXiv:2404.02684), where they fit
zero-ablation   those without whose attention the teacher falls furthest
restore-one     those whose attention helps the converted model most
```

The budget is what one sequence may hold in memory while it is generated: keys and values of the
layers that stay, and the states of the others. Every choice is then tried on text of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from transformers import PreTrainedModel

from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.mixer_choice import Layer
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.placement_budget import (
    CacheBudget,
    LayerBytes,
    check_budget,
    evenly_spaced,
    fill,
    first_and_middle,
)
from manticore.conversion.placement_scores import (
    Batch,
    Measure,
    check_batches,
    fidelities,
    restore_one_scores,
    restored,
    zero_ablation_scores,
)
from manticore.conversion.reading import read_source
from manticore.conversion.transfer import converted_config, identity, transfer
from manticore.models.loading import load_component

METHODS = ("none", "uniform", "first-middle", "zero-ablation", "restore-one")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One choice of layers, and how the converted model does with it before any training."""

    method: str
    """How it was chosen."""
    attention: tuple[int, ...]
    """Layers that stay attention, for `transfer(..., keep=...)`."""
    cache_bytes: int
    """Of one sequence at the budget's context."""
    loss: float
    """Cross-entropy on the test text, nats per token."""
    kl: float
    """Divergence from the teacher on the test text, nats per token."""
    scores: tuple[float, ...] | None = None
    """Of every layer, in nats; None where nothing was measured to choose."""
    scoring_tokens: int = 0
    """Tokens that went through a model to get the scores."""


def compare_placements(
    source: PreTrainedModel | str | os.PathLike[str],
    target: Layer | Sequence[Layer],
    batches: Sequence[Batch],
    budget: CacheBudget,
    *,
    test_batches: Sequence[Batch] | None = None,
    methods: Sequence[str] = METHODS,
    measure: Measure = "kl",
    student: ConvertedForCausalLM | None = None,
    copy: str | Sequence[str] = "all",
    seed: int = 0,
) -> list[Placement]:
    """Choose the layers that stay attention in several ways, and try each choice.

    Args:
        source: the teacher; a model, folder or name, as for `transfer`.
        target: what the other layers become, as for `transfer`; none of it may be attention.
        batches: text that layers are scored on, as `BatchSource.batch_at` gives it.
        test_batches: text that the choices are compared on; None: the same, which flatters the
            choices that were made on it.
        measure: what the scores are differences of: divergence from the teacher, or loss.
        student: the source with all layers converted, best after its layers were aligned;
            None: a fresh one, calibrated on the first batch.
        copy, seed: of a fresh student. Without queries, keys and values its mixers look at
            nothing in particular, and restoring says little.

    Returns:
        One placement for each method, in the order asked for; all of them within the budget.

    Raises:
        ValueError: a budget that even the model without attention exceeds, or bad arguments.
    """
    _check_arguments(methods, measure)
    model = source if isinstance(source, PreTrainedModel) else load_component(source)
    config = converted_config(read_source(model), target)
    _check_converted(config, student)
    sizes = LayerBytes.of(config, budget)
    check_budget(sizes, budget)
    check_batches(batches, config.vocab_size)
    teacher = identity(model)
    if student is None:
        calibration = batches[0]["input_ids"]
        student, _ = transfer(model, target, copy=copy, calibration=calibration, seed=seed)
    chosen = [_choose(m, teacher, student, batches, measure, sizes, budget) for m in methods]
    return _tried(chosen, teacher, student, test_batches or batches, sizes)


def placement_lines(placements: Sequence[Placement]) -> list[str]:
    """The table as aligned text."""
    numbers = f"{'cache bytes':>14} {'loss':>8} {'kl':>8} {'scored on':>14}"
    lines = [f"{'method':14} {numbers}  attention layers"]
    for p in placements:
        kept = ", ".join(map(str, p.attention)) or "none"
        tokens = f"{p.scoring_tokens:,} tokens" if p.scoring_tokens else "-"
        numbers = f"{p.cache_bytes:>14,} {p.loss:>8.4f} {p.kl:>8.4f} {tokens:>14}"
        lines.append(f"{p.method:14} {numbers}  {kept}")
    return lines


def placement_record(placements: Sequence[Placement], budget: CacheBudget) -> dict[str, Any]:
    """Plain values for a record."""
    return {
        "budget": {
            "max_bytes": budget.max_bytes,
            "context": budget.context,
            "dtype": str(budget.dtype).removeprefix("torch."),
        },
        "placements": [
            {
                **vars(p),
                "attention": list(p.attention),
                "scores": None if p.scores is None else list(p.scores),
            }
            for p in placements
        ],
    }


@dataclass(frozen=True)
class _Choice:
    method: str
    attention: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    tokens: int = 0


def _choose(
    method: str,
    teacher: ConvertedForCausalLM,
    student: ConvertedForCausalLM,
    batches: Sequence[Batch],
    measure: Measure,
    sizes: LayerBytes,
    budget: CacheBudget,
) -> _Choice:
    n_layers = len(sizes.kept)
    if method == "none":
        return _Choice(method, ())
    if method == "uniform":
        layouts = (evenly_spaced(n_layers, count) for count in range(n_layers, -1, -1))
        fitting = (layout for layout in layouts if sizes.total(layout) <= budget.max_bytes)
        return _Choice(method, next(fitting))
    if method == "first-middle":
        return _Choice(method, fill(first_and_middle(n_layers), sizes, budget))
    if method == "zero-ablation":
        scores = zero_ablation_scores(teacher, batches, measure)
    else:
        scores = restore_one_scores(teacher, student, batches, measure)
    # The teacher's predictions, the model as it was, and one variant for each layer.
    tokens = (n_layers + 2) * sum(batch["input_ids"].numel() for batch in batches)
    order = sorted(range(n_layers), key=lambda index: -scores[index])
    return _Choice(method, fill(order, sizes, budget), tuple(scores), tokens)


def _tried(
    choices: Sequence[_Choice],
    teacher: ConvertedForCausalLM,
    student: ConvertedForCausalLM,
    batches: Sequence[Batch],
    sizes: LayerBytes,
) -> list[Placement]:
    layouts = list(dict.fromkeys(choice.attention for choice in choices))
    variants = [restored(teacher, student, layout) for layout in layouts]
    found = dict(zip(layouts, fidelities(teacher, variants, batches), strict=True))
    return [
        Placement(
            method=choice.method,
            attention=choice.attention,
            cache_bytes=sizes.total(choice.attention),
            loss=found[choice.attention].loss,
            kl=found[choice.attention].kl,
            scores=choice.scores,
            scoring_tokens=choice.tokens,
        )
        for choice in choices
    ]


def _check_arguments(methods: Sequence[str], measure: str) -> None:
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods={list(methods)} must be some of {', '.join(METHODS)}.")
    if measure not in get_args(Measure):
        raise ValueError(f"measure={measure!r} must be kl or loss.")


def _check_converted(config: ConvertedConfig, student: ConvertedForCausalLM | None) -> None:
    kept = [i for i, layer in enumerate(config.layers) if layer["mixer"] == "attention"]
    if kept:
        raise ValueError(
            f"target keeps attention in layer {kept[0]}, but which layers stay is to be chosen "
            "here. Name what every layer would become."
        )
    if student is not None and student.config.layers != config.layers:
        raise ValueError(
            "The student's layers are not what target says: "
            f"{[layer['mixer'] for layer in student.config.layers]}. Give one with every layer "
            "converted to target."
        )
