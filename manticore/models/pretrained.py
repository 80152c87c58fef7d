"""Run any range of a pretrained model's layers, exactly as the whole model would.

Nothing is cut for good. `run_layers` makes a view of the live base model at every call: a shallow
copy with a shorter list of the same layer objects. So whatever happens to the model (train or
eval, dtype, device, adapters, quantization, attention kernel, gradient checkpointing) is seen at
the next call, and the layers keep their absolute index, which some of them use (GPT-2 can scale
its attention by it).

Shapes: B batch, T time, d the component's width, V its vocabulary.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from manticore.models.families import (
    FAMILIES,
    Family,
    NoPositions,
    UnsupportedFamilyError,
    check_supported,
)
from manticore.models.loading import load_component
from manticore.models.stage_cache import StageCache

__all__ = [
    "FAMILIES",
    "Family",
    "UnsupportedFamilyError",
    "cache_layers",
    "check_length",
    "check_supported",
    "component_logits",
    "d_model",
    "embed_tokens",
    "enter",
    "has_float32_logits",
    "has_plain_logits",
    "has_position_table",
    "inner_model",
    "is_checkpointing",
    "is_plain_linear",
    "load_component",
    "max_positions",
    "n_layers",
    "run_layers",
    "split_causal_lm",
    "takes_cache",
]

# Config fields with one entry per layer; a view's config holds the entries of its own layers.
PER_LAYER_FIELDS = ("layer_types", "layers_block_type", "attention_layers")


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


def d_model(config: PreTrainedConfig) -> int:
    """Width of the residual stream."""
    return config.hidden_size


def n_layers(config: PreTrainedConfig) -> int:
    """Number of layers."""
    return config.num_hidden_layers


def max_positions(config: PreTrainedConfig) -> int | None:
    """Longest sequence the model was built for; None when it has no such length."""
    if check_supported(config).is_recurrent:
        return None
    return config.max_position_embeddings


def has_position_table(config: PreTrainedConfig) -> bool:
    """Whether positions come from a learned table, which no sequence can outgrow."""
    return check_supported(config).has_position_table(config)


def check_length(config: PreTrainedConfig, length: int) -> None:
    """Raise when a sequence of `length` tokens does not fit a learned position table.

    Rotary models run past `max_positions`, with worse predictions but without an error.
    """
    limit = max_positions(config)
    if has_position_table(config) and limit is not None and length > limit:
        raise ValueError(
            f"A sequence of {length} tokens does not fit: the {config.model_type} component has a "
            f"table of {limit} positions. Use at most {limit} tokens (prompt and new ones "
            "together), or a component without a position table."
        )


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


def component_logits(config: PreTrainedConfig, head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (B, T, V) of final hidden states (B, T, d), as in the component's own model."""
    logits = check_supported(config).logits(head, hidden)
    scale, cap = _logit_scale(config), getattr(config, "final_logit_softcapping", None)
    if scale != 1.0:
        logits = logits * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


def has_plain_logits(config: PreTrainedConfig, head: nn.Module) -> bool:
    """Whether logits are `hidden @ head.weight.T` and nothing more (but for their dtype)."""
    check_supported(config)
    is_capped = getattr(config, "final_logit_softcapping", None) is not None
    is_plain = not is_capped and _logit_scale(config) == 1.0
    return is_plain and is_plain_linear(head) and head.bias is None


def _logit_scale(config: PreTrainedConfig) -> float:
    """What the family multiplies its logits by (Cohere, Falcon-H1, Granite)."""
    if config.model_type == "granitemoehybrid":
        return 1.0 / config.logits_scaling
    if config.model_type == "cohere":
        return config.logit_scale
    return getattr(config, "lm_head_multiplier", 1.0)


def has_float32_logits(config: PreTrainedConfig) -> bool:
    """Whether the component's own model casts its logits to float32."""
    return check_supported(config).float32_logits


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling this module is nothing but its matrix and bias.

    Not so with an adapter, quantized weights, a parametrization, or hooks (which may have to
    bring the weights first).
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is nn.Linear and not hooked


def is_checkpointing(base: PreTrainedModel) -> bool:
    """Whether gradient checkpointing is on; some base models leave it to their layers to know."""
    layers = getattr(base, check_supported(base.config).layers)
    return len(layers) > 0 and bool(getattr(layers[0], "gradient_checkpointing", False))


def takes_cache(config: PreTrainedConfig) -> bool:
    """Whether the family can decode with a cache."""
    return check_supported(config).no_cache is None


def cache_layers(config: PreTrainedConfig) -> list[Any]:
    """Empty Hugging Face cache layers, one for each layer of the component."""
    family = check_supported(config)
    if family.no_cache is not None:
        raise ValueError(
            f"A {config.model_type} component has no cache: {family.no_cache}. Pass "
            "use_cache=False, to generate as well; every new token is then a full forward pass."
        )
    if family.own_cache_layers is not None:
        return family.own_cache_layers(n_layers(config))
    layers = DynamicCache(config=config).layers
    if len(layers) != n_layers(config):
        raise RuntimeError(f"{len(layers)} cache layers for {n_layers(config)} layers.")
    return layers


def make_view(
    base: PreTrainedModel, family: Family, lo: int, hi: int, final_norm: bool | None = None
) -> PreTrainedModel:
    """A shallow copy of the base model that has only layers `lo`..`hi - 1`.

    The final norm stays only behind the last layer. What belongs to the entry (position table,
    embedding dropout) is neutral in every view, because `enter` does it.
    """
    view = _shallow_copy(base)
    modules: dict[str, Any] = dict(base._modules)
    view.__dict__["_modules"] = modules
    modules[family.layers] = _slice_layers(modules[family.layers], lo, hi)
    if not (hi == n_layers(base.config) if final_norm is None else final_norm):
        modules[family.final_norm] = _IDENTITY
    if family.position_table is not None:
        modules[family.position_table] = _NO_POSITIONS
    if family.entry_dropout is not None:
        modules[family.entry_dropout] = _IDENTITY
    if family.entry_multiplier is not None:
        view.__dict__[family.entry_multiplier] = 1.0
    view.__dict__["config"] = _slice_config(base.config, lo, hi)
    if family.prepare_view is not None:
        family.prepare_view(view)
    return view


_IDENTITY = nn.Identity()
_NO_POSITIONS = NoPositions()


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
    depth = n_layers(base.config)
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


def _shallow_copy(thing: Any) -> Any:
    # copy.copy does the same through __reduce_ex__, at several times the price.
    copied = object.__new__(type(thing))
    copied.__dict__.update(thing.__dict__)
    return copied


def _slice_layers(layers: nn.ModuleList, lo: int, hi: int) -> "_LayerRange":
    kept = list(layers._modules.values())[lo:hi]
    sliced = object.__new__(_LayerRange)
    sliced.__dict__.update(layers.__dict__)
    sliced.__dict__["_modules"] = {str(index): layer for index, layer in enumerate(kept)}
    return sliced


class _LayerRange(nn.ModuleList):
    """Some layers of a model; taking all of them is free (Llama does at every call)."""

    def __getitem__(self, index: Any) -> Any:
        if index == slice(len(self._modules)):
            return self
        return super().__getitem__(index)


def _slice_config(config: PreTrainedConfig, lo: int, hi: int) -> PreTrainedConfig:
    # Fields are written past the config's own setters, which would validate the whole model.
    sliced = _shallow_copy(config)
    fields = sliced.__dict__
    name = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    fields[name] = hi - lo
    for name in PER_LAYER_FIELDS:
        if isinstance(fields.get(name), list | tuple):
            fields[name] = fields[name][lo:hi]
        elif isinstance(getattr(type(config), name, None), property):
            fields[f"_sliced_{name}"] = getattr(config, name)[lo:hi]
            sliced.__class__ = _with_sliced_lists(config.__class__)
    # Recording outputs would leave hooks on the shared layers.
    fields["output_hidden_states"] = fields["_output_attentions"] = False
    return sliced


@cache
def _with_sliced_lists(config_class: Any) -> type[PreTrainedConfig]:
    """A config class whose derived lists of layers are those of the slice."""

    def stored(name: str) -> property:
        return property(lambda config: config.__dict__[f"_sliced_{name}"])

    derived = [
        name for name in PER_LAYER_FIELDS if isinstance(getattr(config_class, name, None), property)
    ]
    return type(config_class.__name__, (config_class,), {name: stored(name) for name in derived})
