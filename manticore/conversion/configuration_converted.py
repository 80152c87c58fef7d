"""Configuration of a converted model: the source's blocks, and a mixer for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from manticore.conversion.block_spec import BlockSpec
from manticore.conversion.mixer_choice import Layer, as_layer, layer_block, layer_spec
from manticore.mixers.interface import MixerSpec

if TYPE_CHECKING:
    from manticore.conversion.layer_costs import ConvertedShape


class ConvertedConfig(PreTrainedConfig):
    """Configuration of `ConvertedModel` and its head.

    Args:
        block: the fields of a `BlockSpec`, read from the source.
        layers: one mixer for each layer: a name, or {"mixer": name, ...its settings}.
        source: the source's `model_type`, for readers.
        max_position_embeddings: positions that the source was made for; with a learned table, its
            rows. Without one it limits nothing, and an export carries it on.
        initializer_range: standard deviation of the first weights of a table that is not copied.
    """

    model_type = "manticore_converted"
    attribute_map = {"d_model": "hidden_size"}  # noqa: RUF012 (Hugging Face's protocol)
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (Hugging Face's protocol)

    def __init__(
        self,
        block: dict[str, Any] | None = None,
        layers: Sequence[Layer] = (),
        source: str | None = None,
        max_position_embeddings: int | None = None,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        # Hugging Face compares a config with the one that no arguments give.
        self.block = (BlockSpec.from_dict(block) if block else _EMPTY).to_dict()
        spec = self.block_spec
        self.layers = [as_layer(layer) for layer in layers]
        self.source = source
        self.hidden_size = spec.hidden_size
        self.num_hidden_layers = spec.n_layers
        self.vocab_size = kwargs.pop("vocab_size", spec.vocab_size)
        self.num_attention_heads = spec.n_heads
        self.max_position_embeddings = spec.learned_positions or max_position_embeddings
        self.positions = "none" if spec.learned_positions is None else "learned"
        self.head_bias = spec.head_bias
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        for name in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "positions", "head_bias",
            "tie_word_embeddings",
        ):  # fmt: skip
            kwargs.pop(name, None)
        super().__init__(tie_word_embeddings=spec.tied, **kwargs)
        if len(self.layers) != spec.n_layers:
            raise ValueError(
                f"layers names {len(self.layers)} mixers for {spec.n_layers} blocks. "
                "Give one for each."
            )
        self.specs()
        self.layer_blocks()
        # Whoever holds a config may hand it to an Auto class next, so that has to know the models.
        from manticore.conversion.registration import load_models

        load_models()

    @property
    def block_spec(self) -> BlockSpec:
        """The blocks."""
        return BlockSpec.from_dict(self.block)

    def specs(self) -> list[MixerSpec]:
        """The specification of every layer's mixer, in order.

        Raises:
            ValueError: an unknown mixer or setting, or settings that contradict.
        """
        block = self.block_spec
        return [layer_spec(layer, block, index) for index, layer in enumerate(self.layers)]

    def layer_blocks(self) -> list[BlockSpec]:
        """The block around every layer's mixer: the source's, but for a topology of its own."""
        block = self.block_spec
        return [layer_block(layer, block) for layer in self.layers]

    def layer_shapes(self) -> list[ConvertedShape]:
        """The sizes in every layer, for `manticore.models.costs`."""
        # Not at the top: transformers imports this module while it is itself being imported.
        from manticore.conversion.layer_costs import ConvertedShape

        block = self.block_spec
        return [ConvertedShape(block, spec) for spec in self.specs()]


_EMPTY = BlockSpec(
    hidden_size=1, n_layers=0, vocab_size=1, topology="sequential", norm="rms", norm_eps=1e-6,
    n_heads=1, n_kv_heads=1, head_dim=1, qkv_bias=False, output_bias=False, score_scales=(),
    windows=(), channel_mixer="mlp", intermediate_size=1, activation="gelu", mlp_bias=False,
    tied=False,
)  # fmt: skip
