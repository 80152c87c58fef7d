"""What the blocks of a transformer are made of, whatever family it comes from.

A converted model has the source's blocks with another mixer in them, so this is all that it needs
to know of the source: a copied MLP gets the inputs that it was trained on only if the residual
lines, the norms and the biases around it are the same.

```
parallel     y = x + mixer(n1 x) + mlp(n2 x)          GPT-NeoX; Phi and GPT-J with n2 = n1
sequential   h = x + mixer(n1 x)      y = h + mlp(n2 h)           Llama, GPT-2, Qwen
post-norm    h = x + n1 mixer(x)      y = h + n2 mlp(h)           OLMo-2
```
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

TOPOLOGIES = ("parallel", "sequential", "post-norm")
QK_NORMS = ("none", "head-rms", "head-layer", "width-rms")
QKNorm = Literal["none", "head-rms", "head-layer", "width-rms"]


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """The blocks of a transformer, as plain values."""

    hidden_size: int
    """Width of the residual stream."""
    n_layers: int
    """Blocks."""
    vocab_size: int
    """Rows of the token table."""
    topology: Literal["parallel", "sequential", "post-norm"]
    """How mixer and MLP share the residual stream."""
    shared_norm: bool = False
    """Parallel blocks: mixer and MLP read one norm."""
    norm: Literal["rms", "layer"]
    """Kind of every norm of the stream; those of kind layer have a bias."""
    norm_eps: float
    """Added to the variance in the norms of the stream."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Heads of keys and values."""
    head_dim: int
    """Channels of a head."""
    qkv_bias: bool
    """Whether queries, keys and values have a bias."""
    output_bias: bool
    """Whether attention's output has a bias."""
    qk_norm: QKNorm = "none"
    """Norm of queries and keys: of each head (head-), or of all heads together (width-rms)."""
    rotary_frequencies: tuple[float, ...] = ()
    """Angle per position of each pair of channels (i, i + R/2); none: no rotation."""
    rotary_amplitude: float = 1.0
    """Factor on rotated queries and keys (YaRN)."""
    score_scales: tuple[float, ...]
    """Factor on the scores of each layer, such as head_dim ** -0.5."""
    windows: tuple[int | None, ...]
    """Positions that each layer sees, itself included; None: all before it."""
    channel_mixer: Literal["mlp", "gated"]
    """mlp: down(act(up x)); gated: down(act(gate x) * up x)."""
    intermediate_size: int
    """Inner width of the channel mixer."""
    activation: str
    """Its activation, by the name that transformers gives it."""
    mlp_bias: bool
    """Whether its maps have biases."""
    learned_positions: int | None = None
    """Rows of a learned table of positions; None: no table."""
    tied: bool
    """Whether the token table is also the head's matrix."""
    head_bias: bool = False
    """Whether the head has a bias."""

    def __post_init__(self) -> None:
        if self.topology not in TOPOLOGIES or self.qk_norm not in QK_NORMS:
            raise ValueError(
                f"topology={self.topology!r}, qk_norm={self.qk_norm!r}: known are "
                f"{', '.join(TOPOLOGIES)} and {', '.join(QK_NORMS)}."
            )
        for name in ("score_scales", "windows"):
            if len(getattr(self, name)) != self.n_layers:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {self.n_layers} layers. "
                    "Give one for each."
                )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_kv_heads} key heads do not divide {self.n_heads} heads.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a config."""
        plain = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> BlockSpec:
        """The specification that `to_dict` wrote."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(plain) - known)
        if unknown:
            raise ValueError(f"A block has no {unknown[0]!r}. Its fields: {', '.join(known)}.")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
        }
        return cls(**values)
