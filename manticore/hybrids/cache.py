"""One cache for a hybrid: the caches of all components and a single token counter."""

from collections.abc import Sequence

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from manticore.models.component_cache import cache_layers
from manticore.models.stage_cache import StageCache


class ManticoreCache(Cache):
    """Cache layers of every component, flat, so that beam search and `generate` handle them.

    A branch that is never run never fills its layers, and empty layers hold no memory. The number
    of tokens seen is counted here once for all components, because a recurrent layer knows none
    and a skipped attention layer would report zero.
    """

    def __init__(self, component_configs: Sequence[PreTrainedConfig]) -> None:
        self.component_layers = [cache_layers(config) for config in component_configs]
        super().__init__(layers=[layer for layers in self.component_layers for layer in layers])
        self.seen_tokens = 0
        self._stages: dict[tuple[int, int, int], StageCache] = {}

    def stage(self, component: int, first: int, last: int) -> StageCache:
        """The view of one component's layers `first`..`last - 1`."""
        key = (component, first, last)
        if key not in self._stages:
            layers = self.component_layers[component][first:last]
            self._stages[key] = StageCache(layers, first, self.seen_tokens)
        self._stages[key].seen_tokens = self.seen_tokens
        return self._stages[key]

    def advance(self, num_tokens: int) -> None:
        """Count the tokens of a forward pass, after its last block."""
        self.seen_tokens += num_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, whichever layer is asked for."""
        return self.seen_tokens

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.seen_tokens = 0

    @property
    def is_compileable(self) -> bool:
        # An all-recurrent flat cache would call itself compileable, and `generate` would then pass
        # a dictionary of 4-D masks, which the components do not take.
        return False

    @property
    def is_croppable(self) -> bool:
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: a recurrent state cannot be rolled back."""
        raise ValueError(
            "A hybrid's cache cannot be cropped: recurrent states hold no past tokens. "
            "Use a decoding method that never rolls back (greedy, sampling, beam search)."
        )
