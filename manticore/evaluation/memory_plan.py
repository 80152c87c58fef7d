"""How much memory training, evaluation and cached generation take, by part, without any weights.

The step that a real run would make is made in a `Shadow` and every tensor's birth and end is
counted, so nothing is guessed: what autograd saves, what an operator returns and drops, gradients
as they appear while activations go. Not counted are the scratch space inside one kernel, the
allocator's rounding and fragmentation, the program itself (about half a gigabyte for each process)
and a GPU's context; kernels are chosen as on a CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manticore.evaluation.language import mean_of_logits
from manticore.evaluation.memory_shadow import Shadow, Tally, bytes_of
from manticore.training.batches import split_batch

MakeBatch = Callable[[], Mapping[str, Any]]
LossFunction = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by part at the moment when they are most."""

    weights: int = 0
    """Parameters and buffers, shared ones once."""
    gradients: int = 0
    """Those that exist at that moment."""
    optimizer: int = 0
    """AdamW's two moments of everything that is trained."""
    activations: int = 0
    """All else: saved for the backward pass, results on the way, the batch."""
    cache: int = 0
    """Keys, values and states of generation."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        """Parts and total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run whose memory is told by itself."""

    name: str
    """Such as fine-tuning hybrid."""
    measure: Callable[[], Memory]
    """Runs the stage in a shadow; takes seconds."""
    depends: str = ""
    """All that its memory depends on, as text: stages of one name that agree here take the same.
    Empty: not known."""


def training_memory(
    shadow: Shadow,
    model: nn.Module,
    make_batch: MakeBatch,
    loss_fn: LossFunction,
    *,
    pieces: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    trained: Sequence[nn.Parameter] | None = None,
) -> Memory:
    """Memory of a training step once AdamW has its moments.

    Args:
        model: built in this shadow, on the way that the run would build it.
        make_batch: the whole batch of a step; called in the shadow.
        loss_fn: mean loss of a batch.
        pieces: parts that the batch is computed in (gradient accumulation).
        precision: bf16 runs matrix products in bfloat16, as `TrainConfig` does.
        trained: what the gradient is asked for; default all that require gradients. Gradients of
            others are not computed, though what autograd saves for them is saved.
    """
    model.train(model.training or trained is None)
    own = [p for p in model.parameters() if p.requires_grad] if trained is None else list(trained)
    with shadow.counting(model) as tally:
        # After two pieces nothing new happens: gradients exist, activations come and go.
        for piece in split_batch(dict(make_batch()), pieces)[:2]:
            with _autocast(precision):
                loss = loss_fn(model, piece)
            loss.backward(inputs=own)
            del loss
        gradients = [p.grad for p in own if p.grad is not None]
        at_peak, in_the_end = tally.bytes_at_peak(gradients), bytes_of(gradients)
        peak = max(tally.peak, in_the_end)
        at_peak = at_peak if peak == tally.peak else in_the_end
    for parameter in own:
        parameter.grad = None
    return Memory(
        weights=bytes_of([*model.parameters(), *model.buffers()]),
        gradients=at_peak,
        optimizer=moments(own),
        activations=peak - at_peak,
    )


def text_batch(rows: int, seq_len: int) -> dict[str, Tensor]:
    """A batch of running text as `BatchSource` makes it."""
    ids = torch.zeros(rows, seq_len, dtype=torch.long)
    return {"input_ids": ids, "labels": ids.clone()}


def evaluation_work(seq_len: int, rows: int = 32) -> Callable[[nn.Module], Tensor]:
    """What `losses_by_kind` does with a batch, for `forward_memory`."""

    def work(model: nn.Module) -> Tensor:
        ids = text_batch(rows, seq_len)["input_ids"]
        rule = mean_of_logits([model(input_ids=ids, use_cache=False).logits[:, :-1]])
        return rule.gather(-1, ids[:, 1:].unsqueeze(-1)).double().sum()

    return work


def moments(trained: Sequence[nn.Parameter]) -> int:
    """Bytes of AdamW's state: two moments like each parameter, and a count of steps."""
    return 2 * bytes_of(trained) + 4 * len(trained)


def forward_memory(
    shadow: Shadow, model: nn.Module, work: Callable[[nn.Module], Any], *, is_training: bool = False
) -> Memory:
    """Memory of work without gradients, such as an evaluation.

    Args:
        work: called with the model, in eval mode.
        is_training: it happens in the middle of a training, whose gradients and moments wait.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), shadow.counting(model) as tally:
        result = work(model)
        del result
    model.train(was_training)
    trained = [p for p in model.parameters() if p.requires_grad] if is_training else []
    return Memory(
        weights=bytes_of([*model.parameters(), *model.buffers()]),
        gradients=bytes_of(trained),
        optimizer=moments(trained),
        activations=tally.peak,
    )


def generation_memory(
    shadow: Shadow,
    model: nn.Module,
    *,
    batch_size: int,
    prompt_tokens: int,
    new_tokens: int,
) -> Memory:
    """Memory of generation with a cache: of the prompt or of the last token, whichever is more.

    The last token's step starts from a cache of everything before it, filled in one pass.
    """
    whole = prompt_tokens + new_tokens - 1
    prompt = _step(shadow, model, batch_size, prompt_tokens)
    last = _step(shadow, model, batch_size, whole, then_one=True) if new_tokens > 1 else prompt
    held, peak = max(prompt, last, key=lambda found: found[1])
    weights = bytes_of([*model.parameters(), *model.buffers()])
    return Memory(weights=weights, activations=peak - held, cache=held)


def _step(
    shadow: Shadow, model: nn.Module, batch_size: int, seq_len: int, then_one: bool = False
) -> tuple[int, int]:
    """(bytes that the cache holds, peak) of a prompt, or of one token behind it."""
    model.eval()
    few = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(model) else {}
    with torch.no_grad(), shadow.counting(model) as tally:
        ids = torch.zeros(batch_size, seq_len, dtype=torch.long)
        mask = torch.ones_like(ids)
        before = tally.live
        output = model(input_ids=ids, attention_mask=mask, use_cache=True, **few)
        name = "past_key_values" if "past_key_values" in _arguments(model) else "cache_params"
        cache = output[name]
        del output
        held = tally.live - before
        if then_one:
            mask = torch.ones(batch_size, seq_len + 1, dtype=torch.long)
            _restart(tally)
            model(input_ids=ids[:, :1], attention_mask=mask, use_cache=True, **{name: cache}, **few)
        return held, tally.peak


def _restart(tally: Tally) -> None:
    tally.peak = tally.live


def _arguments(model: nn.Module) -> Mapping[str, Any]:
    inner: Any = model
    if hasattr(model, "get_base_model"):  # PEFT's forward takes anything
        inner = inner.get_base_model()
    return inspect.signature(inner.forward).parameters


def _autocast(precision: str) -> AbstractContextManager[Any]:
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", dtype=torch.bfloat16)
