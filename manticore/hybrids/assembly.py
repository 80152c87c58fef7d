"""From a recipe to the hybrid before any training: load, align, fit projectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manticore.config.recipes import ComponentConfig, HybridRecipe, ProjectorConfig
from manticore.evaluation.language import causal_loss
from manticore.hybrids.closed_form import Fit, fit_projectors
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.models.loading import load_component
from manticore.seeds import derive_seed, torch_generator
from manticore.text.prepared import PreparedData, resolve_path
from manticore.text.tokenizers import load_tokenizer
from manticore.training import TrainConfig, train

FIT_ROWS = 32  # rows in a batch of the closed-form start


def load_tokenizers(recipe: HybridRecipe, base: Path) -> tuple[Any, list[Any] | None]:
    """The hybrid's tokenizer, and one for each component if any has its own."""
    host_component = recipe.components[recipe.hybrid.host]
    host_path = recipe.data.tokenizer or host_component.tokenizer or host_component.path
    host = load_tokenizer(resolve_path(host_path, base))
    if not any(component.tokenizer for component in recipe.components):
        return host, None
    others = [
        host if k == recipe.hybrid.host else _own_tokenizer(component, host, base)
        for k, component in enumerate(recipe.components)
    ]
    return host, others


def _own_tokenizer(component: ComponentConfig, host: Any, base: Path) -> Any:
    if component.tokenizer is None:
        return host
    return load_tokenizer(resolve_path(component.tokenizer, base))


def load_components(recipe: HybridRecipe, base: Path) -> list[Any]:
    """The pretrained models of a recipe, in float32."""
    loaded = []
    for component in recipe.components:
        path = resolve_path(component.path, base)
        loaded.append(load_component(path, dtype=torch.float32))
        _check_finite(loaded[-1], path)
    return loaded


def _check_finite(model: nn.Module, path: str) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(
                f"The weight {name} of {path} holds values that are not finite, so every output "
                "would be NaN. Fetch or save the checkpoint again, or use another one."
            )


def component_names(recipe: HybridRecipe) -> list[str]:
    """What tables call the components."""
    return [c.name or Path(c.path).name for c in recipe.components]


def build_hybrid(
    recipe: HybridRecipe, base: Path, tokenizers: list[Any] | None = None, host: Any = None
) -> ManticoreForCausalLM:
    """The recipe's hybrid with plain projectors and its start mixture."""
    settings = recipe.hybrid
    start = recipe.projectors.start
    if tokenizers is None and host is not None:
        tokenizers = [host] * len(recipe.components)
    hybrid = ManticoreForCausalLM.from_components(
        load_components(recipe, base),
        num_blocks=settings.num_blocks,
        partition=plain_partition(settings.partition),
        mixing=settings.mixing,
        loyalty=settings.loyalty,
        learn_loyalty=settings.learn_loyalty,
        router=settings.router,
        tokenizers=tokenizers,
        host=settings.host,
        embeddings=settings.embeddings,
        projectors="random" if start == "closed-form" else start,
        seed=derive_seed(recipe.seed, "projectors") % 2**31,
    )
    set_start_mixture(hybrid, recipe)
    return hybrid


def set_start_mixture(hybrid: ManticoreForCausalLM, recipe: HybridRecipe) -> None:
    """The recipe's start mixture, uniform by default, with a head row of its own if asked for."""
    count = len(recipe.components)
    rows = recipe.hybrid.mixture or ((1 / count,) * count,) * recipe.hybrid.num_blocks
    own_head = recipe.hybrid.own_head_mixture and recipe.hybrid.mixing == "streams"
    hybrid.set_mixture(torch.tensor(rows), head=torch.tensor(rows[-1]) if own_head else None)


def plain_partition(partition: Any) -> list[list[list[int]]] | None:
    """A recipe's partition as the lists that a config holds."""
    if partition is None:
        return None
    return [[list(block) for block in ranges] for ranges in partition]


def fit_start(
    hybrid: ManticoreForCausalLM, settings: ProjectorConfig, data: PreparedData, seed: int
) -> list[Fit]:
    """Closed-form projectors, if the recipe asks for them; nothing else is changed."""
    if settings.start != "closed-form" or hybrid.config.num_components == 1:
        return []
    return fit_projectors(hybrid, fit_batches(settings, data, seed), settings.ridge)


def fit_batches(
    settings: ProjectorConfig, data: PreparedData, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Training text for the closed form, kinds mixed as in training."""
    source = data.batches("train", FIT_ROWS, derive_seed(seed, "closed form"))
    for step in range(max(1, math.ceil(settings.tokens / source.tokens_per_batch))):
        yield {"input_ids": source.batch_at(step)["input_ids"]}


def train_projectors(
    hybrid: ManticoreForCausalLM,
    settings: ProjectorConfig,
    data: PreparedData,
    *,
    batch_size: int,
    seed: int,
    folder: Path | None = None,
    checkpoint_every: int = 50,
    log: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    progress: bool = True,
) -> int:
    """Train projectors alone, at mixtures drawn anew for every step; returns tokens.

    Components and mixture stay frozen. A flat Dirichlet draw keeps the projectors useful at any
    mixture that a search may visit; afterwards the mixture is what it was.
    """
    if settings.steps == 0:
        return 0
    rows = hybrid.backbone.rows
    source = data.batches("train", batch_size, derive_seed(seed, "projector batches"))

    def batch_at(step: int) -> dict[str, Any]:
        draw = dirichlet_rows(rows.blocks.shape, torch_generator(seed, "dirichlet", step))
        return {**source.batch_at(step), "mixture": draw.tolist()}

    result = train(
        hybrid,
        batch_at,
        TrainConfig(
            steps=settings.steps,
            lr=settings.lr,
            warmup_steps=min(10, settings.steps),
            checkpoint_every=checkpoint_every,
        ),
        parameters=hybrid.projector_parameters(),
        loss_fn=_loss_at_drawn_mixture,
        folder=folder,
        name="projectors",
        log=log,
        on_start=on_start,
        progress=progress,
        seed=seed,
    )
    return result.tokens


def dirichlet_rows(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Rows drawn from the flat Dirichlet distribution: normalised exponential variables."""
    draws = -torch.rand(shape, generator=generator).clamp(min=1e-6).log()
    return draws / draws.sum(dim=-1, keepdim=True)


def _loss_at_drawn_mixture(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    hybrid: Any = getattr(model, "module", model)  # under DDP the hybrid is wrapped
    blocks = hybrid.backbone.rows.blocks
    before = blocks.detach().clone()
    with torch.no_grad():
        blocks.copy_(torch.tensor(batch["mixture"]).log())
    loss = causal_loss(model, batch)
    with torch.no_grad():
        # At once: a checkpoint takes note of frozen parameters, and must find them again.
        blocks.copy_(before)
    return loss
