"""What the hybrid's backbone and its task heads share."""

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from manticore.hybrids.card import replace_generic_card, save_missing_card
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.loading import check_loaded, check_options, spare_from_quantization
from manticore.hybrids.loyalty import Loyalty
from manticore.hybrids.mixture import Mixture
from manticore.hybrids.resizing import resize_tables

if TYPE_CHECKING:
    from manticore.hybrids.modeling_backbone import ManticoreModel


class ManticorePreTrainedModel(PreTrainedModel):
    """What backbone and task heads share: loading, initialisation, access to the parts."""

    config_class = ManticoreConfig
    config: ManticoreConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Recurrent states cannot be rolled back; assisted decoding refuses cleanly because of this.
    _is_stateful = True
    _keep_in_fp32_modules_strict = ["rows", "loyalty"]  # noqa: RUF012 (Hugging Face's protocol)

    card_text: str | None = None
    """Model card that `save_pretrained` writes; None: one made from what the hybrid knows."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **options: Any) -> Any:
        """Load a saved hybrid (safetensors only); options as for every transformers model.

        Weights that are missing, left over or of another shape raise a ValueError, except those
        of a task's head.
        """
        check_options(str(name), options)
        with_info = options.pop("output_loading_info", False)
        # Shapes are compared below, with a message that says what to do.
        allow_mismatch = options.pop("ignore_mismatched_sizes", False)
        options = {"use_safetensors": True, **spare_from_quantization(options)}
        model, info = super().from_pretrained(
            name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        check_loaded(str(name), info, allow_mismatch)
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """Save config, weights (safetensors) and, unless there is one, a model card."""
        check_saveable(self)
        super().save_pretrained(save_directory, *args, **options)
        if options.get("is_main_process", True) and os.path.isdir(save_directory):
            save_missing_card(save_directory, self)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **options: Any) -> Any:
        # By now transformers has put its generic card into the folder that is uploaded.
        replace_generic_card(working_dir, self)
        return super()._upload_modified_files(working_dir, *args, **options)

    @classmethod
    def is_custom_code(cls) -> bool:
        # transformers initialises containers of "custom" code differently and would leave
        # non-persistent buffers of some families as garbage after from_pretrained.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Mixture):
            for row in (module.blocks, module.embed, module.head):
                if row is not None:
                    init.constant_(row, -torch.log(torch.tensor(row.shape[-1])).item())
        elif isinstance(module, Loyalty):
            init.copy_(module.value, torch.tensor(self.config.loyalty_values()))
        elif isinstance(module, Router):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)

    @property
    def backbone(self) -> "ManticoreModel":
        """The `ManticoreModel`, also when called on it."""
        backbone: Any = getattr(self, self.base_model_prefix, self)
        return backbone

    @property
    def mixture(self) -> Tensor:
        """(num_blocks, K) weights of the blocks; rows sum to 1."""
        return self.backbone.rows.weights

    def set_mixture(
        self, mixture: Tensor, embed: Tensor | None = None, head: Tensor | None = None
    ) -> None:
        """Set mixture weights; zeros are exact and switch a branch off.

        Args:
            mixture: (num_blocks, K), rows on the simplex.
            embed: (K,) weights of the embeddings; default those of the first block.
            head: (K,) weights of the heads; default those of the last block (`streams`) or of
                the first one (`shared`, as in the paper).
        """
        backbone = self.backbone
        check_pruned_branches(self.config, torch.as_tensor(mixture))
        backbone.rows.set(torch.as_tensor(mixture), embed, head)
        self.config.own_embed_mixture = backbone.rows.embed is not None
        self.config.own_head_mixture = backbone.rows.head is not None

    def freeze_mixture(self, frozen: bool = True) -> None:
        """Take the mixture out of training (or put it back)."""
        for parameter in self.mixture_parameters():
            parameter.requires_grad_(not frozen)

    def mixture_parameters(self) -> list[nn.Parameter]:
        """Log weights of blocks, embeddings and heads."""
        return list(self.backbone.rows.parameters())

    def projector_parameters(self) -> list[nn.Parameter]:
        """Translators or projectors, learned loyalties and the router."""
        names = ("translators", "projectors", "loyalty", "router")
        modules = [getattr(self.backbone, name, None) for name in names]
        return [p for module in modules if module is not None for p in module.parameters()]

    def component_parameters(self, index: int) -> list[nn.Parameter]:
        """All parameters of one component, its head included, each once."""
        modules = [self.backbone.components[index]]
        heads = getattr(self, "heads", None)
        if heads is not None:
            modules.append(heads[index])
        return list({id(p): p for module in modules for p in module.parameters()}.values())

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, Any], *args: Any, **options: Any
    ) -> None:
        """Choose the attention of all components, or `{"component_0": "eager"}` for some.

        One name for all goes to the components that have it; the others (a Mamba has no
        attention) use their eager code.
        """
        requested = attn_implementation
        if isinstance(requested, str):
            requested = {"": requested} | {
                f"component_{k}": requested if has_attention(component, requested) else "eager"
                for k, component in enumerate(self.backbone.components)
            }
        known = ["", *self.config.sub_configs]
        unknown = [key for key in requested if key not in known]
        if unknown:
            raise ValueError(
                f"attn_implementation names {unknown}. Known: {', '.join(known[1:])} "
                '(and "" for the hybrid itself).'
            )
        super().set_attn_implementation(requested, *args, **options)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Resize the tables and heads of every component; returns the host's embedding."""
        size = new_num_tokens or self.config.vocab_size
        if pad_to_multiple_of:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != self.config.vocab_size:
            resize_tables(self, size, mean_resizing)
        return self.get_input_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        """The host component's embedding table."""
        return self.backbone.components[self.config.host].get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the host component's embedding table."""
        self.backbone.components[self.config.host].set_input_embeddings(value)


class Router(nn.Linear):
    """Per-token head weights from the final streams; zero at the start, so it changes nothing."""

    def reset_parameters(self) -> None:
        """Start at zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def has_attention(component: PreTrainedModel | type[PreTrainedModel], name: str) -> bool:
    """Whether a family has this attention implementation; eager is always there."""
    flags = {"sdpa": "_supports_sdpa", "flex_attention": "_supports_flex_attn"}
    flag = "_supports_flash_attn" if "flash" in name else flags.get(name)
    if name == "eager" or flag is None:  # a name of its own is judged by transformers
        return True
    return bool(getattr(component, flag, False))


def check_saveable(hybrid: ManticorePreTrainedModel) -> None:
    """Quantized components would not load again: the hybrid's config does not describe them."""
    for k, component in enumerate(hybrid.backbone.components):
        if getattr(component.config, "quantization_config", None) is not None:
            raise ValueError(
                f"Component {k} is quantized, and a hybrid with quantized components cannot be "
                "saved whole. Save what was trained (an adapter with peft's save_pretrained, or "
                "projector_parameters() and the mixture), or build the hybrid from unquantized "
                "components, load that into it, and save it."
            )


def check_pruned_branches(config: ManticoreConfig, mixture: Tensor) -> None:
    """A branch whose layers were pruned away cannot be given weight again."""
    if tuple(mixture.shape) != (config.num_blocks, config.num_components):
        return  # the wrong shape has its own error
    for k, ranges in enumerate(config.partition):
        for block, (first, last) in enumerate(ranges):
            if first == last and mixture[block, k] != 0:
                raise ValueError(
                    f"Component {k} has no layers left in block {block} (they were pruned), so "
                    f"its weight there must be 0, not {mixture[block, k].item():g}."
                )
