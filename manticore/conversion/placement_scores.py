"""How much the attention of each layer matters, measured by exchanging mixers in place.

```
zero-ablation   the teacher, the output of one attention layer set to zero: how far does it fall?
restore-one     the converted model, one layer's attention put back: how far does it climb?
```

Zero-ablation asks which layers the teacher needs; restore-one asks which of them the new mixers
cannot stand in for, which is the question that a hybrid has (KL-guided layer selection,
arXiv:2512.20569, does it with a training run for each layer). Nothing is copied or trained here:
a layer's mixer is exchanged, a batch runs, and the mixer comes back.

    N scored positions, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.vocabulary import check_ids

Batch = Mapping[str, Tensor]
"""`input_ids` and `labels` (batch, seq), labels as long as the inputs; -100 is not scored."""
Measure = Literal["kl", "loss"]


@dataclass(frozen=True)
class Variant:
    """A model with other mixers in some of its layers."""

    model: ConvertedForCausalLM
    mixers: Mapping[int, nn.Module] = field(default_factory=dict)
    """Layer -> what stands in its place."""

    @contextmanager
    def in_place(self) -> Iterator[ConvertedForCausalLM]:
        """The model with those mixers in it, for as long as the context lasts."""
        layers: Any = self.model.model.layers
        own = {index: layers[index].mixer for index in self.mixers}
        try:
            for index, mixer in self.mixers.items():
                layers[index].mixer = mixer
            yield self.model
        finally:
            for index, mixer in own.items():
                layers[index].mixer = mixer


@dataclass(frozen=True)
class Fidelity:
    """How well a model does, per predicted token, in nats."""

    loss: float
    """Cross-entropy with the text."""
    kl: float
    """Kullback-Leibler divergence from the teacher's prediction to this one."""


class Silence(nn.Module):
    """A mixer that says nothing."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """Zeros in the shape of x."""
        return torch.zeros_like(x)


@torch.no_grad()
def fidelities(
    teacher: ConvertedForCausalLM, variants: Sequence[Variant], batches: Sequence[Batch]
) -> list[Fidelity]:
    """Run every variant on the same text.

    Returns:
        One for each variant, in order; means over all scored tokens of all batches.

    Raises:
        ValueError: no batch, tokens that the teacher does not have, or numbers that are not finite.
    """
    check_batches(batches, teacher.config.vocab_size)
    totals, n_scored = torch.zeros(len(variants), 2, dtype=torch.float64), 0
    for batch in batches:
        targets = batch["labels"][:, 1:]
        is_scored = targets != -100
        expected = _log_probabilities(teacher, batch, is_scored)  # (N, V)
        wanted = targets[is_scored].to(expected.device)
        n_scored += len(wanted)
        for index, variant in enumerate(variants):
            with variant.in_place() as model:
                got = _log_probabilities(model, batch, is_scored).to(expected.device)
            nats = -got.gather(1, wanted[:, None]).sum(dtype=torch.float64)
            kl = (expected.exp() * (expected - got)).sum(dtype=torch.float64)
            totals[index] += torch.stack([nats, kl]).cpu()
    means = totals / max(n_scored, 1)
    if not means.isfinite().all():
        raise ValueError(
            "The losses of the layouts are not finite. Look at the model that was given: its "
            "weights, and its dtype (float16 overflows where bfloat16 does not)."
        )
    return [Fidelity(*row) for row in means.tolist()]


def zero_ablation_scores(
    teacher: ConvertedForCausalLM, batches: Sequence[Batch], measure: Measure = "kl"
) -> list[float]:
    """What the teacher loses without each layer's attention, in nats; larger matters more."""
    layers = range(len(teacher.model.layers))
    variants = [Variant(teacher), *(Variant(teacher, {i: Silence()}) for i in layers)]
    whole, *without = (getattr(f, measure) for f in fidelities(teacher, variants, batches))
    return [one - whole for one in without]


def restore_one_scores(
    teacher: ConvertedForCausalLM,
    student: ConvertedForCausalLM,
    batches: Sequence[Batch],
    measure: Measure = "kl",
) -> list[float]:
    """What the converted model wins with each layer's attention, in nats; larger matters more."""
    layers = range(len(teacher.model.layers))
    variants = [Variant(student), *(restored(teacher, student, [i]) for i in layers)]
    none, *with_one = (getattr(f, measure) for f in fidelities(teacher, variants, batches))
    return [none - one for one in with_one]


def restored(
    teacher: ConvertedForCausalLM, student: ConvertedForCausalLM, layers: Sequence[int]
) -> Variant:
    """The converted model with the teacher's attention in some layers."""
    own: Any = teacher.model.layers
    return Variant(student, {index: own[index].mixer for index in layers})


def check_batches(batches: Sequence[Batch], vocab_size: int) -> None:
    """Raise unless there is text to score, in tokens that the model has."""
    if not any((batch["labels"][:, 1:] != -100).any() for batch in batches):
        raise ValueError("There is no token to score. Give at least one batch with labels.")
    check_ids((batch["input_ids"] for batch in batches), vocab_size)


def _log_probabilities(model: ConvertedForCausalLM, batch: Batch, is_scored: Tensor) -> Tensor:
    """Logarithms of the predictions at the scored positions, (N, V), float32."""
    device = next(model.parameters()).device
    mask = batch.get("attention_mask")
    logits = model(
        input_ids=batch["input_ids"].to(device),
        attention_mask=None if mask is None else mask.to(device),
        use_cache=False,
    ).logits
    return logits[:, :-1][is_scored.to(logits.device)].float().log_softmax(-1)
