"""Settings of MoRe adapters, as a configuration of PEFT.

A saved adapter names its method: `peft_type: MORE`. PEFT finds the method after
`import manticore`; without it, loading the adapter fails with `KeyError: 'MORE'`. A process that
PEFT starts itself (a worker of a data loader or of a sweep) has to import manticore as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft import PeftConfig

from manticore.adapters.monarch import LAYOUTS
from manticore.adapters.more.method import extend_peft_types, peft_type

FORMAT = 1
"""Version of what a saved adapter means; it grows when older code would misread a newer file."""

_BIASES = ("none", "all", "more_only")


@dataclass
class MoReConfig(PeftConfig):
    """Settings of a MoRe adapter.

    The defaults are the paper's: 4 blocks of rank 4. A layer of n inputs and m outputs gets
    block_rank * (n + m) parameters, whatever the number of blocks, and a change of rank up to
    nblocks * block_rank. One block is LoRA with alpha = r. There is no alpha: the learning rate
    does what it would do.

    Coming from LoRA: r is block_rank, lora_dropout is more_dropout, init_lora_weights is
    init_weights; names, patterns, layers, bias and modules_to_save mean what they mean there. DoRA,
    rsLoRA, other first weights, target_parameters and convolutions are not offered.
    """

    nblocks: int = 4
    """Blocks of either factor; 1 is LoRA."""
    block_rank: int = 4
    """Numbers that pass through each block. Below `nblocks`, a share of 1 - block_rank / nblocks of
    the weight change stays zero."""
    layout: Literal["strided", "contiguous"] = "strided"
    """Rows that an output block owns: every nblocks-th (the paper's), or a run (GraLoRA's)."""
    more_dropout: float = 0.0
    """Probability of dropout on the input of the adapter."""
    target_modules: list[str] | str | None = None
    """Endings of names of modules to adapt, a regular expression, or "all-linear". Default: those
    of LoRA for the model's type, on hybrids those that reach every layer."""
    exclude_modules: list[str] | str | None = None
    """Endings of names of modules not to adapt, or a regular expression."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other block ranks by module name or regular expression: {"down_proj": 8}."""
    nblocks_pattern: dict[str, int] = field(default_factory=dict)
    """Other numbers of blocks by module name or regular expression."""
    layers_to_transform: list[int] | int | None = None
    """Indices of the layers to adapt. Default: all."""
    layers_pattern: list[str] | str | None = None
    """Name of the list of layers, where `layers_to_transform` cannot guess it."""
    bias: Literal["none", "all", "more_only"] = "none"
    """Biases to train: none, all, or those of adapted layers."""
    modules_to_save: list[str] | None = None
    """Modules to train in full and to save with the adapter, such as a new classifier head."""
    init_weights: bool = True
    """Start at no change. False starts at random, which only tests want."""
    format_version: int = FORMAT
    """Version of a saved adapter. Not a setting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        extend_peft_types()
        self.peft_type = peft_type()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check_version()
        self._check_numbers()
        self._check_choices()

    def _check_version(self) -> None:
        if self.format_version > FORMAT:
            raise ValueError(
                f"This adapter was saved in format {self.format_version} by a newer Manticore; "
                f"this one reads up to format {FORMAT}. Run pip install -U manticore-lm."
            )

    def _check_numbers(self) -> None:
        numbers = {"nblocks": self.nblocks, "block_rank": self.block_rank}
        for name, pattern in [("rank", self.rank_pattern), ("nblocks", self.nblocks_pattern)]:
            numbers |= {f"{name}_pattern[{key!r}]": value for key, value in (pattern or {}).items()}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} has to be a whole number, at least 1.")
        if not isinstance(self.more_dropout, int | float) or not 0.0 <= self.more_dropout < 1.0:
            raise ValueError(f"more_dropout={self.more_dropout!r} has to be a number in [0, 1).")

    def _check_choices(self) -> None:
        for name, allowed in [("layout", LAYOUTS), ("bias", _BIASES)]:
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Unknown {name} {getattr(self, name)!r}. Known: {', '.join(allowed)}."
                )
        if not isinstance(self.init_weights, bool):
            raise ValueError(
                f"init_weights={self.init_weights!r} has to be True (start at no change) or False."
            )
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` cannot be used when `target_modules` is a str. "
                    "Give a list of names, or name the layers in the regular expression."
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                "When `layers_pattern` is specified, `layers_to_transform` must also be specified."
            )
