"""The sizes in each layer of a component, from its config: what every cost follows from."""

import json
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig

from manticore.models.loading import special_floats
from manticore.models.shape_formulas import FORMULAS
from manticore.models.shape_types import LayerShape, MixerShape
from manticore.models.supported import check_supported
from manticore.models.varied_shapes import VARIED, MeasuredShape, varied_layers


def layer_shapes(
    config: PreTrainedConfig,
) -> list[LayerShape] | list[MixerShape] | list[MeasuredShape]:
    """The sizes in every layer of a component, in order."""
    model_type = check_supported(config).model_type
    if model_type == "manticore_mixers":
        norm = config.hidden_size * (1 if config.norm == "rms" else 2)
        return [MixerShape(spec, norm) for spec in config.specs()]
    if model_type == "manticore_converted":
        converted: list[MixerShape] = config.layer_shapes()  # its room knows its blocks
        return converted
    if model_type in FORMULAS:
        return [FORMULAS[model_type](config)] * config.num_hidden_layers
    return varied_layers(config) if model_type in VARIED else measured_layers(config)


def measured_layers(config: PreTrainedConfig) -> list[LayerShape]:
    """The sizes in every layer of an attention model, read off one layer without storage."""
    shape = _measured_layer(config.to_json_string(use_diff=False), config.model_type)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        # A config without kinds of layers, such as Mistral's, has its window everywhere.
        return [replace(shape, window=window)] * config.num_hidden_layers
    return [replace(shape, window=window if kind.startswith("sliding") else None) for kind in kinds]


@lru_cache(maxsize=64)
def _measured_layer(config_text: str, model_type: str) -> LayerShape:
    fields = json.loads(config_text, object_hook=special_floats) | {"dtype": None}
    kinds = fields.get("layer_types")
    fields |= {"num_hidden_layers": 1, "layer_types": kinds and kinds[:1]}
    config = CONFIG_MAPPING[model_type](**fields)
    with torch.device("meta"):
        base = AutoModel.from_config(config)
    family = check_supported(config)
    base = base if family.inner is None else getattr(base, family.inner)
    layer, norm = getattr(base, family.layers)[0], getattr(base, family.final_norm)
    dense = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    in_dense = sum(p.numel() for module in dense for p in module.parameters())
    return LayerShape(
        matrices=tuple((m.in_features, m.out_features, m.bias is not None) for m in dense),
        other_parameters=sum(p.numel() for p in layer.parameters()) - in_dense,
        final_norm=0 if norm is None else sum(p.numel() for p in norm.parameters()),
        attention_width=config.num_attention_heads * _head_size(config),
        kv_width=_kv_heads(config) * _head_size(config),
    )


def _head_size(config: PreTrainedConfig) -> int:
    size: int | None = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads


def _kv_heads(config: PreTrainedConfig) -> int:
    if config.model_type != "falcon":
        heads: int = getattr(config, "num_key_value_heads", config.num_attention_heads)
        return heads
    # Keys of one head are kept, of groups they are repeated for every head first.
    is_shared = config.multi_query and not config.new_decoder_architecture
    return 1 if is_shared else config.num_attention_heads
