"""A base model with a range of its layers: a shallow copy that shares every module it keeps.

Made anew for every call (`pretrained.run_layers`), so it is cheap: dictionaries are copied, no
module is built, and the layers keep their absolute index.
"""

from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from manticore.models.family import Family
from manticore.models.no_positions import NoPositions
from manticore.models.rotary_lengths import RowRotary, longrope_border


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
    if not (hi == base.config.num_hidden_layers if final_norm is None else final_norm):
        modules[family.final_norm] = _IDENTITY
    if family.position_table is not None:
        modules[family.position_table] = _NO_POSITIONS
    if family.entry_dropout is not None:
        modules[family.entry_dropout] = _IDENTITY
    border = longrope_border(base.config)
    if border is not None and family.rotary is not None:
        modules[family.rotary] = RowRotary(modules[family.rotary], border)
    if family.entry_dropout_rate is not None:
        view.__dict__[family.entry_dropout_rate] = 0.0
    if family.entry_multiplier is not None:
        view.__dict__[family.entry_multiplier] = 1.0
    view.__dict__["config"] = _slice_config(base.config, lo, hi)
    if family.prepare_view is not None:
        family.prepare_view(view)
    return view


_IDENTITY = nn.Identity()
_NO_POSITIONS = NoPositions()


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


# Config fields with one entry per layer; a view's config holds the entries of its own layers.
PER_LAYER_FIELDS = ("layer_types", "layers_block_type", "attention_layers")


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
    recorded = ("output_hidden_states", "output_router_logits", "_output_attentions")
    fields |= dict.fromkeys(recorded, False)
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


def _shallow_copy(thing: Any) -> Any:
    # copy.copy does the same through __reduce_ex__, at several times the price.
    copied = object.__new__(type(thing))
    copied.__dict__.update(thing.__dict__)
    return copied
