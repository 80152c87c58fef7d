"""Configuration of the small models that are built from mixers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from manticore.mixers.interface import MixerSpec
from manticore.mixers.table import mixer_spec

NORMS = ("rms", "layer")
POSITIONS = ("none", "learned", "sinusoidal")
COMPATS = ("fixed", "mad-lab")
Layer = str | dict[str, Any]


class MixerLMConfig(PreTrainedConfig):
    """Configuration of `MixerModel` and its heads.

    Args:
        layers: names of mixers, or {"mixer": name, ...its settings}; each is a residual line
            x + mixer(norm(x)) of its own, in this order.
        d_model: width of the residual stream.
        vocab_size: rows of the token table and of the head.
        norm: "rms" or "layer", before every mixer and before the head.
        norm_eps: added to the variance in the norms.
        positions: "none", "learned" (a table of `max_position_embeddings` rows) or "sinusoidal",
            added to the embeddings.
        max_position_embeddings: longest sequence, needed for learned positions and for the
            autoencoder; None: no limit.
        tie_word_embeddings: let the token table be the head's matrix.
        head_bias: give the head a bias.
        compat: "fixed", or "mad-lab" for the first weights of athms/mad-lab where ours differ
            (its autoencoder draws every matrix from N(0, 0.02) and zeroes every bias, the one of
            Mamba's time step included).
        initializer_range: standard deviation of the token table's first weights.
    """

    model_type = "manticore_mixers"
    attribute_map = {"d_model": "hidden_size"}  # noqa: RUF012 (Hugging Face's protocol)
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (Hugging Face's protocol)

    def __init__(
        self,
        layers: Sequence[Layer] = (),
        d_model: int = 128,
        vocab_size: int = 16,
        norm: str = "rms",
        norm_eps: float = 1e-5,
        positions: str = "none",
        max_position_embeddings: int | None = None,
        tie_word_embeddings: bool = False,
        head_bias: bool = True,
        compat: str = "fixed",
        initializer_range: float = 0.02,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.layers = [as_layer(layer) for layer in layers]
        self.hidden_size = kwargs.pop("hidden_size", d_model)
        self.num_hidden_layers = len(self.layers)
        self.vocab_size = vocab_size
        self.norm, self.norm_eps = norm, norm_eps
        self.positions = positions
        self.max_position_embeddings = max_position_embeddings
        self.head_bias = head_bias
        self.compat = compat
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        kwargs.pop("num_hidden_layers", None)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.check()
        # Whoever holds a config may hand it to an Auto class next, so that has to know the models.
        from manticore.models.mixer_registration import load_models

        load_models()

    def specs(self) -> list[MixerSpec]:
        """The specification of every layer, in order.

        Raises:
            ValueError: an unknown mixer or setting, or settings that contradict.
        """
        return [layer_spec(layer, self.hidden_size) for layer in self.layers]

    def check(self) -> None:
        """Check everything that can be checked before a weight exists."""
        for name, allowed in (("norm", NORMS), ("positions", POSITIONS), ("compat", COMPATS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known. Known: {', '.join(allowed)}."
                )
        for name in ("hidden_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(
                f"positions='sinusoidal' needs an even d_model, not {self.hidden_size}: half "
                "of the channels are sines, half cosines."
            )
        if self.positions == "learned" and not self.max_position_embeddings:
            raise ValueError(
                "positions='learned' needs max_position_embeddings, the longest sequence; or "
                "choose positions='none' or 'sinusoidal'."
            )
        self.specs()


def as_layer(layer: Layer) -> dict[str, Any]:
    """A layer as a dictionary whose key "mixer" is its name."""
    if isinstance(layer, str):
        return {"mixer": layer}
    if not isinstance(layer, dict) or not isinstance(layer.get("mixer"), str):
        raise ValueError(
            f"A layer is a mixer's name or a dictionary with one, not {layer!r}. For example "
            '"mh-attention" or {"mixer": "mh-attention", "n_heads": 4}.'
        )
    if "d_model" in layer:
        raise ValueError(
            f"Layer {layer['mixer']!r} sets d_model, which all layers share. "
            "Set the model's d_model."
        )
    return dict(layer)


def layer_spec(layer: Layer, d_model: int) -> MixerSpec:
    """The specification of a layer at this width."""
    settings = as_layer(layer)
    name = settings.pop("mixer")
    return mixer_spec(name, d_model=d_model, **settings)
