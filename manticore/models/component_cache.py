"""Which components decode with a cache, and what it is made of."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

from manticore.models.family import RefusedError
from manticore.models.supported import check_supported


def takes_cache(config: PreTrainedConfig) -> bool:
    """Whether the family can decode with a cache."""
    return check_supported(config).no_cache is None


def cache_layers(config: PreTrainedConfig) -> list[Any]:
    """Empty Hugging Face cache layers, one for each layer of the component."""
    family = check_supported(config)
    if family.no_cache is not None:
        raise RefusedError(
            f"A {config.model_type} component has no cache: {family.no_cache}. Pass "
            "use_cache=False, to generate as well; every new token is then a full forward pass."
        )
    if family.own_cache_layers is not None:
        return family.own_cache_layers(config.num_hidden_layers)
    layers = DynamicCache(config=config).layers
    if len(layers) != config.num_hidden_layers:
        raise RuntimeError(f"{len(layers)} cache layers for {config.num_hidden_layers} layers.")
    return layers
