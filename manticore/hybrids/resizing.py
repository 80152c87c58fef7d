"""Give every token table of a hybrid another number of rows."""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from manticore.hybrids.modeling_base import ManticorePreTrainedModel


def resize_tables(
    hybrid: "ManticorePreTrainedModel", num_tokens: int, mean_resizing: bool = True
) -> None:
    """Resize the embeddings and heads of all components alike; tied ones stay tied.

    New rows are drawn as transformers draws them: around the mean of the old ones, or with
    `mean_resizing=False` from the initial distribution.
    """
    heads: Any = getattr(hybrid, "heads", None)
    for k, component in enumerate(hybrid.backbone.components):
        old = component.get_input_embeddings()
        tied = heads is not None and heads[k].weight is old.weight
        component.resize_token_embeddings(num_tokens, mean_resizing=mean_resizing)
        if tied:
            _retie(heads[k], component.get_input_embeddings())
        elif heads is not None:
            heads[k] = hybrid._get_resized_lm_head(
                heads[k], num_tokens, mean_resizing=mean_resizing
            )
    hybrid.config.vocab_size = num_tokens


def _retie(head: nn.Linear, table: nn.Embedding) -> None:
    if head.bias is not None:
        missing = table.num_embeddings - head.out_features
        head.bias = nn.Parameter(
            nn.functional.pad(head.bias.detach(), (0, missing)), head.bias.requires_grad
        )
    head.weight, head.out_features = table.weight, table.num_embeddings
