"""The tuner: puts MoRe layers into a model, for `peft.get_peft_model` and for loading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, get_quantization_kwargs
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn

from manticore.adapters.more.config import MoReConfig
from manticore.adapters.more.embedding import MoReEmbedding
from manticore.adapters.more.layer import MoReLayer
from manticore.adapters.more.linear import MoReLinear
from manticore.adapters.more.loading import refuse_other_shapes
from manticore.adapters.more.rows import adapter_names_by_row
from manticore.adapters.more.targets import check_targets, closest_names, shape_of
from manticore.adapters.more.weighted import adapted_by, set_weighted_sum, weighted_config
from manticore.adapters.targets import DEFAULT_TARGETS, default_targets
from manticore.adapters.uncovered import warn_uncovered


class MoReModel(BaseTuner):
    """Adds MoRe adapters to the targeted modules of a model."""

    prefix: str = "more_"
    tuner_layer_cls = MoReLayer
    # LoRA's choice for a type of model, except where it would miss most layers.
    target_module_mapping: ClassVar = {
        **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        **{family: list(names) for family, names in DEFAULT_TARGETS.items()},
    }

    # Adding adapters

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Add an adapter to `model`; an error about names that match nothing gets the closest.

        Without names, models of a type that has no row in `target_module_mapping` are adapted
        wherever an adapter reaches. Warns if layers of the repeating stack end up without any.
        """
        config = self.peft_config[adapter_name]
        model_type = self.get_model_config(model).get("model_type")
        if config.target_modules is None and model_type not in self.target_module_mapping:
            config.target_modules = set(default_targets(model))
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            hint = closest_names(self.peft_config[adapter_name], model)
            raise NoMatchingPeftModuleError(f"{error}{hint}") from None
        if not self.peft_config[adapter_name].inference_mode:
            warn_uncovered(self, stacklevel=4)

    def _prepare_model(self, peft_config: MoReConfig, model: nn.Module) -> None:
        """Check every target before the first one is replaced."""
        check_targets(self, peft_config, model)

    def _create_and_replace(
        self,
        config: MoReConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        shape = shape_of(config, current_key, target)
        if isinstance(target, MoReLayer):
            target.update_layer(adapter_name, shape, config)
            return
        plain = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(plain, nn.Embedding):
            module: nn.Module = MoReEmbedding(target, adapter_name, shape, config)
        else:
            extra = get_quantization_kwargs(self)
            module = MoReLinear(target, adapter_name, shape, config, **extra)
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)  # a further adapter is trained once it is chosen
        self._replace_module(parent, target_name, module, target)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        block_rank: int | None = None,
    ) -> dict[str, float]:
        """Add a frozen adapter that is a weighted sum of others, which stay.

        Args:
            adapters: names of adapters with the same blocks; their ranks may differ.
            weights: a factor for each, negative ones too.
            adapter_name: of the sum.
            block_rank: of the sum; default one that holds it exactly. A smaller one gives the best
                approximation.

        Returns:
            By name of module, the squared error as a share of the squared norm.
        """
        if len(adapters) != len(weights):
            raise ValueError(f"{len(adapters)} adapters need as many weights, not {len(weights)}.")
        if adapter_name in self.peft_config:
            raise ValueError(f"There is an adapter {adapter_name!r} already. Choose another name.")
        layers = adapted_by(self.model, adapters)
        config = weighted_config(self.peft_config, adapters, layers, block_rank)
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name)
        return {
            name: set_weighted_sum(layer, adapters, weights, adapter_name)
            for name, layer in layers.items()
        }

    # Merging: with safe_merge all layers are checked before the first is changed

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge adapters into the base weights; `unmerge_adapter` undoes it exactly."""
        if safe_merge:
            self._refuse_broken(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge and safe_merge:
            self._refuse_broken(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _refuse_broken(self, adapter_names: list[str] | None) -> None:
        for module in self.model.modules():
            if isinstance(module, MoReLayer):
                wanted = module.active_adapters if adapter_names is None else adapter_names
                absent = set(module.merged_adapters)
                names = [name for name in wanted if name in module.more_A and name not in absent]
                module.merged_weight(names, safe_merge=True)

    # One adapter per row of the batch

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        with adapter_names_by_row(self, kwargs.get("adapter_names"), kwargs.get("num_beams")):
            yield

    # Loading

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: MoReConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, torch.Tensor]:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        refuse_other_shapes(model, config, state)
        return state
