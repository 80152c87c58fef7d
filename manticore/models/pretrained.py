"""Run any range of a pretrained model's layers, exactly as the whole model would.

Nothing is cut for good. `run_layers` makes a view of the live base model at every call: a shallow
copy with a shorter list of the same layer objects. So whatever happens to the model (train or
eval, dtype, device, adapters, quantization, attention kernel, gradient checkpointing) is seen at
the next call, and the layers keep their absolute index, which some of them use (GPT-2 can scale
its attention by it).

Shapes: B batch, T time, d the component's width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manticore.models.family import Family
from manticore.models.layer_views import make_view
from manticore.models.stage_cache import StageCache
from manticore.models.supported import check_supported


def split_causal_lm(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module]:
    """The base model (embedding, layers, final norm) and the language model head."""
    check_supported(model.config)
    base, head = model.base_model, model.get_output_embeddings()
    if not isinstance(base, PreTrainedModel) or base is model or head is None:
        raise ValueError(
            f"{type(model).__name__} has no language model head. Load the component with "
            "AutoModelForCausalLM, or with manticore's load_component."
        )
    return inner_model(base), head


def inner_model(base: PreTrainedModel) -> PreTrainedModel:
    """The part of transformers' base model that has the layers: itself in most families."""
    inner = check_supported(base.config).inner
    return base if inner is None else getattr(base, inner)


def embed_tokens(base: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Token embeddings (B, T, d), without positions."""
    embedded = base.get_input_embeddings()(input_ids)
    family = check_supported(base.config)
    if family.entry_multiplier is None:
        return embedded
    return embedded * getattr(base, family.entry_multiplier)


def enter(base: PreTrainedModel, hidden: Tensor, position_ids: Tensor) -> Tensor:
    """What a model does to its embeddings before the first layer.

    Args:
        hidden: (B, T, d) embeddings, or whatever stands for them.
        position_ids: (B, T) or (1, T).

    Returns:
        (B, T, d): plus the learned positions, through the embedding dropout.
    """
    family = check_supported(base.config)
    if family.position_table is not None:
        positions = family.positions(base, position_ids)
        hidden = hidden + positions.to(device=hidden.device, dtype=hidden.dtype)
    if family.entry_dropout is not None:
        hidden = getattr(base, family.entry_dropout)(hidden)
    if family.entry_dropout_rate is not None:
        rate = getattr(base, family.entry_dropout_rate)
        hidden = nn.functional.dropout(hidden, rate, base.training)
    return hidden


def run_layers(
    base: PreTrainedModel,
    hidden: Tensor,
    lo: int,
    hi: int,
    *,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    cache: StageCache | None = None,
    final_norm: bool | None = None,
) -> Tensor:
    """Run layers `lo`..`hi - 1`, and the final norm if `hi` is the number of layers.

    An empty range returns `hidden` as it is.

    Args:
        hidden: (B, T, d).
        attention_mask: (B, past + T), 1 for tokens and 0 for padding, or None: no padding.
        position_ids: (B, T) or (1, T), absolute.
        cache: the view of these layers' cache; it is filled in place.
        final_norm: end with the final norm or not, whatever the range (a component whose last
            layers were pruned ends its stream without it).

    Returns:
        (B, T, d) in the dtype of `hidden`.
    """
    if lo == hi:
        return hidden
    family = check_supported(base.config)
    _check_call(base, lo, hi, cache)
    view = make_view(base, family, lo, hi, final_norm)
    if cache is None or hidden.shape[1] == 1 or not _must_step(base, family, cache):
        return _run_view(view, family, hidden, attention_mask, position_ids, cache)
    return _run_one_by_one(view, family, hidden, attention_mask, position_ids, cache)


def is_checkpointing(base: PreTrainedModel) -> bool:
    """Whether gradient checkpointing is on; some base models leave it to their layers to know."""
    layers = getattr(base, check_supported(base.config).layers)
    return len(layers) > 0 and bool(getattr(layers[0], "gradient_checkpointing", False))


def _run_view(
    view: PreTrainedModel,
    family: Family,
    hidden: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    cache: StageCache | None,
) -> Tensor:
    arguments: dict[str, Any] = dict(family.layer_arguments(hidden, attention_mask, position_ids))
    if family.no_cache is None:
        arguments["cache_params" if family.is_recurrent else "past_key_values"] = cache
    # The class's forward, not a call: hooks on the base model, and a forward that accelerate put
    # on the instance, are about the whole of it.
    output = type(view).forward(
        view, inputs_embeds=hidden, use_cache=cache is not None, return_dict=True, **arguments
    )
    # Mamba keeps its residual stream in float32 when asked to; the next stage expects our dtype.
    return output.last_hidden_state.to(hidden.dtype)


def _run_one_by_one(
    view: PreTrainedModel,
    family: Family,
    hidden: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    cache: StageCache,
) -> Tensor:
    seq_len, outputs = hidden.shape[1], []
    if attention_mask is not None and not family.is_recurrent:
        _refuse_padding(attention_mask[:, -seq_len:])
    for t in range(seq_len):
        end = t + 1 - seq_len
        mask = attention_mask if attention_mask is None or end == 0 else attention_mask[:, :end]
        step = (hidden[:, t : t + 1], mask, position_ids[:, t : t + 1])
        outputs.append(_run_view(view, family, *step, cache))
    return torch.cat(outputs, dim=1)


def _refuse_padding(mask: Tensor) -> None:
    # A single token comes without a mask in these families, so that its padding would be seen.
    if not mask.all():
        raise ValueError(
            "Padding among several tokens behind a filled cache, and transformers' Mamba layers. "
            "Call manticore.models.fast_paths.bind_fast_paths(model) first, as a hybrid does."
        )


def _must_step(base: PreTrainedModel, family: Family, cache: StageCache) -> bool:
    return family.continues_one_by_one(base) and cache.has_previous_state()


def _check_call(base: PreTrainedModel, lo: int, hi: int, cache: StageCache | None) -> None:
    depth = base.config.num_hidden_layers
    if not 0 <= lo < hi <= depth:
        raise ValueError(
            f"Layers {lo} to {hi} of a component with {depth} layers: give 0 <= lo <= hi <= "
            f"{depth}; layers lo to hi - 1 are run."
        )
    if cache is None:
        return
    if (cache.lo, len(cache.layers)) != (lo, hi - lo):
        raise ValueError(
            f"The cache covers layers {cache.lo} to {cache.lo + len(cache.layers)}, but layers "
            f"{lo} to {hi} are run. Pass StageCache(layers[{lo}:{hi}], {lo}, seen_tokens)."
        )
    if base.training and is_checkpointing(base):
        # Checkpointed layers drop the cache they are given, and the past with it.
        raise ValueError(
            "A cache does not go with gradient checkpointing in training mode. Pass "
            "use_cache=False, or call eval() or gradient_checkpointing_disable() first."
        )
