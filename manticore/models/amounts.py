"""What is counted: floating point operations, parameters, bytes of cache; amounts can be added."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating point operations by kind."""

    matmul: int = 0
    convolution: int = 0
    attention: int = 0
    scan: int = 0
    mixer: int = 0
    """Of whole mixers, counted by their own formulas."""

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.matmul + self.convolution + self.attention + self.scan + self.mixer

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(**_added(self, other))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters, and FLOPs per token at one sequence length; costs of parts can be added."""

    embedding_parameters: int = 0
    """Token and position tables, and the head unless it is the token table."""
    layer_parameters: int = 0
    """Everything else, the final norm included."""
    forward: Flops = Flops()
    """Per token, averaged over a sequence without cache."""
    training: Flops = Flops()
    """Per token, forward and backward."""

    @property
    def parameters(self) -> int:
        """All parameters, shared ones once."""
        return self.embedding_parameters + self.layer_parameters

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**_added(self, other))


@dataclass(frozen=True, kw_only=True)
class CacheBytes:
    """Memory that one sequence needs while it is generated."""

    state: int = 0
    """Recurrent and convolution states, the same at every length."""
    kv: int = 0
    """Keys and values, growing with the length."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.state + self.kv

    def __add__(self, other: "CacheBytes") -> "CacheBytes":
        return CacheBytes(**_added(self, other))


def _added(a: Any, b: Any) -> dict[str, Any]:
    return {field.name: getattr(a, field.name) + getattr(b, field.name) for field in fields(a)}
