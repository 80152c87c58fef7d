"""The stages of a hybrid recipe whose memory `manticore plan` tells, each built without weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from manticore.adapters.targets import default_targets
from manticore.config.recipes import HybridRecipe
from manticore.evaluation.language import causal_loss, mean_of_logits
from manticore.evaluation.memory_plan import (
    Memory,
    Stage,
    evaluation_work,
    forward_memory,
    generation_memory,
    text_batch,
    training_memory,
)
from manticore.evaluation.memory_shadow import Shadow
from manticore.hybrids.assembly import FIT_ROWS, component_names, load_tokenizers, set_start_mixture
from manticore.hybrids.checks import recipe_config
from manticore.hybrids.closed_form import accumulate_grams
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.loyalty import Loyalty
from manticore.hybrids.mixture import Mixture
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.models.fast_paths import bind_fast_paths
from manticore.models.recomputing import recompute_activations

LORA_RANK = 8


def hybrid_stages(recipe: HybridRecipe, base: Path, adapters: bool = False) -> list[Stage]:
    """All stages, in the order of the run; `compare.variants` are recipes of their own.

    Args:
        adapters: fine-tune by LoRA on every linear layer instead of all weights.
    """
    plan = _HybridPlan(recipe, base, adapters)
    names = component_names(recipe)
    stages = []
    if recipe.projectors.start == "closed-form" and len(names) > 1:
        stages.append(Stage(name="closed-form start", measure=plan.closed_form))
    if recipe.projectors.steps:
        stages.append(Stage(name="training of projectors", measure=plan.projectors))
    if recipe.search.method != "none":
        stages.append(Stage(name="search", measure=plan.search))
    stages.append(Stage(name="fine-tuning hybrid", measure=plan.finetune))
    compare = recipe.compare
    if compare.component_equal_tokens or compare.component_equal_flops:
        stages += [
            Stage(name=f"fine-tuning {name}", measure=lambda k=k: plan.component(k))  # type: ignore[misc]
            for k, name in enumerate(names)
        ]
    stages.append(Stage(name="evaluation", measure=plan.evaluation))
    if compare.ensembles and len(names) > 1:
        stages.append(Stage(name="evaluation of ensembles", measure=plan.ensembles))
    if recipe.samples.prompts:
        stages.append(Stage(name="samples", measure=plan.samples))
    return stages


class _HybridPlan:
    """Measures the stages of one recipe."""

    def __init__(self, recipe: HybridRecipe, base: Path, adapters: bool) -> None:
        self.recipe, self.base, self.adapters = recipe, base, adapters
        self.config = recipe_config(recipe, base)
        own_head = recipe.hybrid.own_head_mixture and recipe.hybrid.mixing == "streams"
        self.config.own_head_mixture = own_head

    def closed_form(self) -> Memory:
        shadow = Shadow()
        hybrid = shadow.build(self._hybrid)
        size, rows = sum(self.config.widths) + 1, (FIT_ROWS, self.recipe.data.seq_len)
        # As few batches as it needs to have seen enough tokens; the others repeat them.
        batches = range(min(math.ceil(size / math.prod(rows)), self.recipe.projectors.tokens))

        def work(model: Any) -> Any:
            return accumulate_grams(model.model, [text_batch(*rows) for _ in batches])

        return forward_memory(shadow, hybrid, work)

    def projectors(self) -> Memory:
        shadow = Shadow()
        hybrid = shadow.build(self._hybrid)
        trained = hybrid.projector_parameters()
        hybrid.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        return training_memory(shadow, hybrid.train(), self._batch, causal_loss)

    def search(self) -> Memory:
        """The larger of the two halves of a step; the weights' moments wait during the other."""
        shadow = Shadow()
        hybrid = shadow.build(self._hybrid)
        mixture = hybrid.mixture_parameters()
        for parameter in mixture:
            parameter.requires_grad_(True)
        hybrid.train(self.recipe.search.train_weights)

        def half(trained: list[nn.Parameter]) -> Memory:
            return training_memory(shadow, hybrid, self._batch, causal_loss, trained=trained)

        moved = half(mixture)
        if not self.recipe.search.train_weights:
            return moved
        own = {id(p) for p in mixture}
        weights = half([p for p in hybrid.parameters() if id(p) not in own])
        moved = dataclasses.replace(moved, optimizer=moved.optimizer + weights.optimizer)
        return max(weights, moved, key=lambda memory: memory.total)

    def finetune(self) -> Memory:
        def make() -> nn.Module:
            hybrid = self._hybrid()
            hybrid.freeze_mixture()
            return with_lora(hybrid) if self.adapters else hybrid

        return self._training(make)

    def component(self, k: int) -> Memory:
        def make() -> nn.Module:
            model = self._component(k)
            return with_lora(model) if self.adapters else model

        return self._training(make)

    def evaluation(self) -> Memory:
        shadow = Shadow()
        hybrid = shadow.build(self._hybrid)
        return forward_memory(shadow, hybrid, evaluation_work(self.recipe.data.seq_len))

    def ensembles(self) -> Memory:
        shadow = Shadow()
        count = range(len(self.recipe.components))
        models = shadow.build(lambda: nn.ModuleList([self._component(k) for k in count]))

        def work(members: Any) -> Tensor:
            ids = text_batch(32, self.recipe.data.seq_len)["input_ids"]
            logits = [m(input_ids=ids, use_cache=False).logits[:, :-1] for m in members]
            return mean_of_logits(logits).gather(-1, ids[:, 1:].unsqueeze(-1)).double().sum()

        return forward_memory(shadow, models, work)

    def samples(self) -> Memory:
        tokenizer, _ = load_tokenizers(self.recipe, self.base)
        settings, shadow = self.recipe.samples, Shadow()
        longest = max(len(tokenizer(prompt).input_ids) for prompt in settings.prompts)
        return generation_memory(
            shadow,
            shadow.build(self._hybrid),
            batch_size=1,
            prompt_tokens=max(1, longest),
            new_tokens=settings.max_new_tokens,
        )

    def _training(self, make: Any) -> Memory:
        shadow, settings = Shadow(), self.recipe.finetune
        model = shadow.build(make)
        if settings.gradient_checkpointing:
            recompute_activations(model)
        return training_memory(
            shadow,
            model,
            self._batch,
            causal_loss,
            pieces=settings.grad_accumulation,
            precision=settings.precision,
        )

    def _batch(self) -> dict[str, Tensor]:
        return text_batch(self.recipe.finetune.batch_size, self.recipe.data.seq_len)

    def _hybrid(self) -> ManticoreForCausalLM:
        # A model keeps its config, so each gets one of its own.
        hybrid = ManticoreForCausalLM(ManticoreConfig.from_dict(self.config.to_dict()))
        hybrid.float()  # as components are loaded, whatever their files hold
        self._with_numbers(hybrid)
        return hybrid

    def _with_numbers(self, hybrid: ManticoreForCausalLM) -> None:
        """Give the few numbers that decide what runs: mixture rows and loyalties."""
        config, backbone = hybrid.config, hybrid.model
        with torch.device("cpu"):
            backbone.rows = Mixture(
                config.num_blocks,
                config.num_components,
                config.own_embed_mixture,
                config.own_head_mixture,
            )
            if config.mixing == "streams":
                backbone.loyalty = Loyalty(config.loyalty_values(), config.learn_loyalty)
            set_start_mixture(hybrid, self.recipe)

    def _component(self, k: int) -> PreTrainedModel:
        config = type(self.config.components[k]).from_dict(self.config.components[k].to_dict())
        if any(component.tokenizer for component in self.recipe.components):
            config.vocab_size = self.config.vocab_size  # it gets the hybrid's tables
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        bind_fast_paths(model.base_model)
        return model


def with_lora(model: Any) -> nn.Module:
    """LoRA on every layer that can take it."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=LORA_RANK, target_modules=default_targets(model)))
