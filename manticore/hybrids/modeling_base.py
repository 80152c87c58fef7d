"""What the hybrid's backbone and its task heads share."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.mixture import Mixture
from manticore.hybrids.streams import Loyalty

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
        return getattr(self, self.base_model_prefix, self)

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
