"""Configuration of a pretrained hybrid: its components, its blocks and its way of mixing."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from manticore.hybrids.component_configs import as_config, is_tied, with_vocabulary
from manticore.hybrids.partition import Partition, check_num_blocks, check_partition, even_partition
from manticore.hybrids.registration import load_models

MIXINGS = ("streams", "shared")


class ManticoreConfig(PreTrainedConfig):
    """Configuration of `ManticoreModel` and its task heads.

    Args:
        components: one Hugging Face config (or its dictionary) for each component. They are kept
            as sub-configs `component_0` .. `component_{K-1}`, so that
            `attn_implementation={"component_0": "eager"}` reaches a single one.
        num_blocks: blocks B into which every component is cut, at least 1.
        partition: `partition[k][b] = [first, last]`, layers `first`..`last - 1` of component k
            in block b. Default: as even as possible.
        mixing: "streams" (every component keeps its own residual stream) or "shared" (the paper).
        loyalty: s_b >= 0, how much a stream prefers itself; one number, or B + 1 of them (the
            last one for the heads). `inf` means no cross-talk. Only for streams.
        learn_loyalty: make the loyalties parameters.
        router: add per-token head weights from the final streams. Only for streams.
        shared_width: width D of the shared stream, default that of the widest component; a hybrid
            that lost its widest component by pruning keeps the old one. Only for shared.
        vocab_size: rows of every table; default the smallest of the components.
        own_embed_mixture, own_head_mixture: embeddings or heads have mixture rows of their own.
        host: index of the component whose tokenizer and special tokens the hybrid uses.
    """

    model_type = "manticore"
    is_composition = True
    has_no_defaults_at_init = True

    def __init__(
        self,
        components: Sequence[PreTrainedConfig | dict[str, Any]] | None = None,
        num_blocks: int = 1,
        partition: Partition | None = None,
        mixing: str = "streams",
        loyalty: float | Sequence[float | str] | str = 2.0,
        learn_loyalty: bool = False,
        router: bool = True,
        shared_width: int | None = None,
        vocab_size: int | None = None,
        own_embed_mixture: bool = False,
        own_head_mixture: bool = False,
        host: int = 0,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        configs = [as_config(c) for c in components or _pop_components(kwargs)]
        self.vocab_size = vocab_size or min((c.vocab_size for c in configs), default=0)
        configs = [with_vocabulary(config, self.vocab_size) for config in configs]
        for index, config in enumerate(configs):
            setattr(self, f"component_{index}", config)
        depths = [config.num_hidden_layers for config in configs]
        # With a given partition a component may have fewer layers than blocks: some were pruned.
        check_num_blocks(num_blocks, () if partition else depths)
        self.num_components = len(configs)
        self.num_blocks = num_blocks
        self.mixing = mixing
        self.loyalty = _loyalty_list(loyalty, num_blocks)
        self.learn_loyalty = learn_loyalty
        self.router = router
        self.shared_width = shared_width
        self.own_embed_mixture = own_embed_mixture
        self.own_head_mixture = own_head_mixture
        self.host = host
        self.initializer_range = initializer_range
        self.partition = partition or [even_partition(depth, num_blocks) for depth in depths]
        # Without a wish of the caller every component keeps its attention kernel; transformers
        # would reset it to None, and a mask made for no kernel hides nothing.
        kernels = {f"component_{k}": c._attn_implementation for k, c in enumerate(configs)}
        kwargs.setdefault("attn_implementation", kernels)
        super().__init__(**_without_derived(kwargs))
        if configs:
            self.validate()
        # Whoever holds a config may hand it to an Auto class next, so that has to know the models.
        load_models()

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        """Names and classes of the components' configs (Hugging Face reads this)."""
        names = [f"component_{index}" for index in range(self.__dict__.get("num_components", 0))]
        return {name: type(getattr(self, name)) for name in names}

    @property
    def components(self) -> list[PreTrainedConfig]:
        """The components' configs in order."""
        return [getattr(self, f"component_{index}") for index in range(self.num_components)]

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether any head is its component's table; the components' configs say which."""
        return any(is_tied(config) for config in self.components)

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        # transformers sets a default, and peft what it finds at the host: both know too little.
        pass

    @property
    def widths(self) -> list[int]:
        """Hidden size d_k of every component."""
        return [config.hidden_size for config in self.components]

    @property
    def hidden_size(self) -> int:
        """Width D of the shared stream, or of all streams side by side."""
        if self.mixing == "shared":
            return self.shared_width or max(self.widths)
        return sum(self.widths)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of all components together; the hybrid's cache has as many."""
        return sum(config.num_hidden_layers for config in self.components)

    def validate(self) -> None:
        """Check everything that can be checked before a weight is read."""
        if self.mixing not in MIXINGS:
            raise ValueError(f"Unknown mixing {self.mixing!r}. Known: {', '.join(MIXINGS)}.")
        if len(self.partition) != self.num_components:
            raise ValueError(
                f"partition has {len(self.partition)} entries for {self.num_components} "
                "components. Give one list of [first, last] ranges for each component."
            )
        for index, (ranges, config) in enumerate(zip(self.partition, self.components, strict=True)):
            check_partition(ranges, config.num_hidden_layers, self.num_blocks, index)
        if self.shared_width is not None and self.shared_width < max(self.widths):
            raise ValueError(
                f"shared_width={self.shared_width} is less than the widest component's "
                f"{max(self.widths)}. Give at least that, or leave it out."
            )
        if not 0 <= self.host < self.num_components:
            raise ValueError(f"host={self.host}: allowed are 0 to {self.num_components - 1}.")

    def loyalty_values(self) -> list[float]:
        """The B + 1 loyalties as numbers, infinity included."""
        return [float(value) for value in self.loyalty]


def _pop_components(kwargs: dict[str, Any]) -> list[Any]:
    names = sorted(
        (key for key in kwargs if key.startswith("component_")), key=lambda key: int(key[10:])
    )
    return [kwargs.pop(name) for name in names]


def _without_derived(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without what a saved config repeats of its components."""
    derived = {
        "num_components",
        "tie_word_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "widths",
    }
    return {key: value for key, value in kwargs.items() if key not in derived}


def _loyalty_list(
    loyalty: float | str | Sequence[float | str], num_blocks: int
) -> list[float | str]:
    values = [loyalty] * (num_blocks + 1) if isinstance(loyalty, int | float | str) else loyalty
    values = list(values)
    if len(values) != num_blocks + 1:
        raise ValueError(
            f"loyalty has {len(values)} values for {num_blocks} blocks. Give one number, or "
            f"{num_blocks + 1}: one before each block and one before the heads."
        )
    # Strict JSON has no infinity, so the config keeps the word.
    return ["inf" if math.isinf(number) else number for number in map(_as_loyalty, values)]


def _as_loyalty(value: float | str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 0:
        raise ValueError(f"loyalty={value!r}: a loyalty is at least 0 (or inf: no cross-talk).")
    return number
