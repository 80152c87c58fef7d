"""Remove layers from a base model for good, so that it saves and loads as a shallower one."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from manticore.models.layer_views import PER_LAYER_FIELDS
from manticore.models.supported import check_supported

INDEX_NAMES = ("layer_idx", "layer_id")


def keep_layers(base: PreTrainedModel, indices: Sequence[int]) -> bool:
    """Keep only these layers of a base model, in place, and renumber them.

    Args:
        base: changed in place: its list of layers, their indices, its config.
        indices: layers to keep, ascending.

    Returns:
        False, and nothing is changed, when the family's mathematics depends on the absolute
        index of a layer that would be renumbered (GPT-2 with scaling by inverse index).
    """
    indices = list(indices)
    renumbered = indices != list(range(len(indices)))
    if renumbered and getattr(base.config, "scale_attn_by_inverse_layer_idx", False):
        return False
    family = check_supported(base.config)
    layers = getattr(base, family.layers)
    kept = [layers[index] for index in indices]
    setattr(base, family.layers, nn.ModuleList(kept))
    for new_index, layer in enumerate(kept):
        _renumber(layer, new_index)
    _shorten_config(base, indices)
    return True


def _renumber(layer: nn.Module, index: int) -> None:
    for module in layer.modules():
        for name in INDEX_NAMES:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, index)


def _shorten_config(base: PreTrainedModel, indices: list[int]) -> None:
    config = base.config
    fields = config.__dict__
    depth = config.num_hidden_layers
    for name in PER_LAYER_FIELDS:
        if isinstance(fields.get(name), list | tuple) and len(fields[name]) == depth:
            fields[name] = [fields[name][index] for index in indices]
    if "attention_types" in fields:  # GPT-Neo derives its list of layers from this one
        fields["attention_types"] = [[[kind], 1] for kind in fields["attention_layers"]]
    name = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    fields[name] = len(indices)
    # Every layer shares the model's config object; a fast path may hold its own reference.
    base.config = config
