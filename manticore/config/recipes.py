"""The recipes: everything that decides a run, as strict dataclasses that only check numbers.

Paths that begin with `./` or `../` are relative to the recipe's own file; anything else is a
name on the model hub or a path as given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from manticore.config.data_sections import DataConfig
from manticore.config.ids import check_name
from manticore.config.numbers import check_least, check_rates, check_within

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    steps: int
    """Optimizer steps."""
    batch_size: int = 16
    """Rows in a batch, all kinds together."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Of matrices; vectors and biases are not decayed."""
    beta2: float = 0.95
    """Second-moment decay of AdamW; the first is 0.9."""
    clip: float = 1.0
    """Largest gradient norm."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the learning rate does after the warm-up."""
    checkpoint_every: int = 50
    """Steps between checkpoints; a killed run loses at most this many."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs matrix products in bfloat16; weights stay as they are."""
    grad_accumulation: int = 1
    """Pieces that each batch is computed in, to save memory; the numbers stay the same."""
    gradient_checkpointing: bool = False
    """Compute each layer twice instead of keeping what its backward pass needs."""

    def __post_init__(self) -> None:
        check_least({"steps": (self.steps, 1)})
        self.check_numbers()

    def check_numbers(self) -> None:
        """All but the steps, which may also be said in another way."""
        least = {"batch_size": 1, "warmup_steps": 0, "checkpoint_every": 0, "grad_accumulation": 1}
        check_least({key: (getattr(self, key), value) for key, value in least.items()})
        check_rates("lr", [self.lr])
        check_within({key: (getattr(self, key), 0, math.inf) for key in ("weight_decay", "clip")})
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2={self.beta2:g}: give a number of at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    path: str
    """Folder or hub name of a pretrained causal language model (safetensors)."""
    name: str | None = None
    """Name in tables; default the last part of the path."""
    tokenizer: str | None = None
    """Folder or name of its tokenizer, when it differs from the host's."""
    lr: float | None = None
    """Its own best learning rate when fine-tuned alone; default that of `finetune`."""
    licence: str = ""
    """Shown in the model card."""

    def __post_init__(self) -> None:
        check_rates("lr", [self.lr] if self.lr is not None else [])


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    num_blocks: int = 2
    """Blocks B into which every component is cut."""
    partition: tuple[tuple[tuple[int, int], ...], ...] | None = None
    """Layer ranges [first, last) by component and block; default as even as possible."""
    mixing: Literal["streams", "shared"] = "streams"
    """streams: every component keeps its own stream; shared: one stream (the paper)."""
    loyalty: float = 2.0
    """How much a stream prefers itself; .inf means no cross-talk."""
    learn_loyalty: bool = False
    """Make the loyalties parameters."""
    router: bool = True
    """Weigh the heads anew for each token."""
    own_head_mixture: bool = True
    """Give the heads a mixture row of their own instead of the last block's."""
    host: int = 0
    """Component whose tokenizer the hybrid uses."""
    embeddings: Literal["own", "new"] = "own"
    """own: the pretrained tables; new: fresh ones (the paper)."""
    mixture: Rows | None = None
    """Start mixture, one row for each block; default uniform."""


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    start: Literal["closed-form", "identity", "random"] = "closed-form"
    """Ridge regression on the components' own streams, or a plain start."""
    tokens: int = 16384
    """Tokens that the closed form sees."""
    ridge: float = 1e-4
    """Its penalty, as a share of the mean variance."""
    steps: int = 0
    """Steps of projector-only training at Dirichlet mixtures, components frozen."""
    lr: float = 1e-3
    """Learning rate of that training."""

    def __post_init__(self) -> None:
        check_least({"tokens": (self.tokens, 1), "steps": (self.steps, 0)})
        check_within({"ridge": (self.ridge, 0, math.inf)})
        check_rates("lr", [self.lr])


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    method: Literal["none", "darts-bilevel", "gaea"] = "gaea"
    """none keeps the start mixture."""
    steps: int = 40
    """Steps; each takes one batch for the weights and one for the mixture."""
    lr: float = 2e-3
    """Learning rate of the weights during the search."""
    mixture_lr: float = 0.05
    """Learning rate of the mixture; it has an optimizer of its own, without decay."""
    mixture_clip: float = 1.0
    """Largest gradient norm of the mixture."""
    warmup_steps: int = 10
    """Steps during which the mixture stays frozen."""
    train_weights: bool = True
    """False searches the mixture of the frozen hybrid."""
    finish: Literal["soft", "prune", "one-hot"] = "soft"
    """Keep the mixture, drop small branches, or keep one component in each block."""
    threshold: float = 0.02
    """For prune: weights below it become zero."""

    def __post_init__(self) -> None:
        check_least({"steps": (self.steps, 1), "warmup_steps": (self.warmup_steps, 0)})
        check_rates("lr", [self.lr])
        check_rates("mixture_lr", [self.mixture_lr])
        check_within(
            {"mixture_clip": (self.mixture_clip, 0, math.inf), "threshold": (self.threshold, 0, 1)}
        )


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    id: str
    """Short name, such as shared-random."""
    label: str
    """What the table calls it."""
    overrides: tuple[str, ...]
    """Changes as on the command line: hybrid.mixing=shared, projectors.start=random."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    component_equal_tokens: bool = True
    """Each component fine-tuned alone on the hybrid's batches."""
    component_equal_flops: bool = True
    """Each component fine-tuned alone for as many tokens as the hybrid's FLOPs would buy."""
    ensembles: bool = True
    """Logit and probability ensembles of the fine-tuned components."""
    no_cross_talk: bool = True
    """The hybrid with infinite loyalty: jointly tuned, routed, translators unused."""
    uniform_mixture: bool = True
    """The hybrid at the uniform mixture."""
    random_mixture: bool = True
    """The hybrid at a mixture drawn from the flat Dirichlet distribution."""
    variants: tuple[VariantConfig, ...] = ()
    """More hybrids, each the recipe's own with some keys changed."""
    lr_factors: tuple[float, ...] = (1.0,)
    """Learning rates to try for every row, as factors; validation chooses. Three or more grow where
    the best lies at their end; two are tried as they are."""
    row_lr: dict[str, float] = field(default_factory=dict)
    """Learning rate of a row by its id, in place of the recipe's."""

    def __post_init__(self) -> None:
        check_least({"the number of lr_factors": (len(self.lr_factors), 1)})
        check_rates("lr_factors", self.lr_factors)
        for row, rate in self.row_lr.items():
            check_rates(f"row_lr.{row}", [rate])


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    prompts: tuple[str, ...] = ()
    """Texts to continue."""
    max_new_tokens: int = 60
    """Length of a continuation."""
    temperature: float = 0.8
    """Sampling temperature; 0 is greedy."""
    top_p: float = 0.95
    """Nucleus of the sampling."""

    def __post_init__(self) -> None:
        check_least({"max_new_tokens": (self.max_new_tokens, 1)})
        check_within({"temperature": (self.temperature, 0, math.inf), "top_p": (self.top_p, 0, 1)})
        if self.top_p == 0:
            raise ValueError("top_p=0 leaves no token to choose. Give a share above 0, up to 1.")


@dataclass(frozen=True, kw_only=True)
class HybridRecipe:
    kind: Literal["hybrid"] = "hybrid"
    """Which pipeline reads this file."""
    name: str
    """Name of the hybrid and of its run."""
    seed: int = 0
    """Of everything that is drawn; named streams are derived from it."""
    components: tuple[ComponentConfig, ...]
    """The pretrained models."""
    data: DataConfig
    """What to fine-tune on."""
    hybrid: HybridConfig = HybridConfig()
    """How the components are put together."""
    projectors: ProjectorConfig = ProjectorConfig()
    """Phase A."""
    search: SearchConfig = SearchConfig()
    """Phase B."""
    finetune: OptimizerConfig
    """Phase C; the baselines see the same batches."""
    compare: CompareConfig = CompareConfig()
    """Phase D: the other rows of the table."""
    samples: SampleConfig = field(default_factory=SampleConfig)
    """Text that the report shows."""

    def __post_init__(self) -> None:
        check_name(self.name)
