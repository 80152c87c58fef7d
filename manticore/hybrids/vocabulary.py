"""One vocabulary for all components: common prefix of tables, or rows transplanted to a host."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manticore.hybrids.spelling import Spelling, num_tokens

Tables = list[tuple[nn.Embedding, nn.Module]]


@dataclass(frozen=True, kw_only=True)
class VocabularyReport:
    """What happened to the components' tables."""

    vocab_size: int
    """Rows of every table of the hybrid."""
    cut_rows: list[int] = field(default_factory=list)
    """For each component, surplus rows that were cut off its end."""
    exact_rows: list[int] = field(default_factory=list)
    """For each component, rows that are the component's own row of the same token."""
    mean_rows: list[int] = field(default_factory=list)
    """For each component, rows that are the mean over the token's pieces."""

    def lines(self) -> list[str]:
        """The report as text, one line for each component."""
        return [
            f"component {k}: {exact} of {self.vocab_size} rows exact, {mean} means of pieces, "
            f"{cut} surplus rows cut"
            for k, (exact, mean, cut) in enumerate(
                zip(self.exact_rows, self.mean_rows, self.cut_rows, strict=True)
            )
        ]


def align_vocabulary(
    models: Sequence[PreTrainedModel], tokenizers: Sequence[Any] | None, host: int
) -> tuple[Tables, VocabularyReport]:
    """Give every component tables over the same token ids.

    Without tokenizers the components are taken to share one: the tables' common prefix is kept.
    With one tokenizer each, the host's decides: a component with the same vocabulary keeps its
    rows, another one gets them transplanted.

    Returns:
        (embedding, head) for each component, and the report. Tables that need no change are the
        models' own, not copies.
    """
    if tokenizers is not None and len(tokenizers) != len(models):
        raise ValueError(
            f"{len(tokenizers)} tokenizers for {len(models)} components. Give one for each, in "
            "the same order, or none when they share one."
        )
    if tokenizers is None or all(same_vocabulary(t, tokenizers[host]) for t in tokenizers):
        needed = 0 if tokenizers is None else num_tokens(tokenizers[host])
        return _common_prefix(models, needed)
    return _transplant_all(models, tokenizers, host)


def same_vocabulary(tokenizer: Any, other: Any) -> bool:
    """Whether two tokenizers give every token the same id."""
    return tokenizer is other or tokenizer.get_vocab() == other.get_vocab()


def agree(tokenizer: Any, other: Any, rows: int | None = None) -> bool:
    """Whether no id (below `rows`) is one token to one tokenizer and another to the other."""
    ids = {index: token for token, index in other.get_vocab().items()}
    return all(
        ids.get(index, token) == token
        for token, index in tokenizer.get_vocab().items()
        if rows is None or index < rows
    )


def check_shared(tokenizers: Sequence[Any], rows: int) -> None:
    """Raise where components that are taken to share a tokenizer do not.

    Args:
        tokenizers: what comes with each component; None where that is not known.
        rows: of the tables that all keep.
    """
    known = [(k, tokenizer) for k, tokenizer in enumerate(tokenizers) if tokenizer is not None]
    for k, tokenizer in known[1:]:
        first, other = known[0]
        if not agree(tokenizer, other, rows):
            raise ValueError(
                f"Components {first} and {k} come with different tokenizers ({num_tokens(other)} "
                f"and {num_tokens(tokenizer)} tokens): the same id is another token. Pass "
                "tokenizers=[...], one for each in the same order, and the rows of all but the "
                "host are transplanted."
            )


def _common_prefix(models: Sequence[PreTrainedModel], needed: int) -> tuple[Tables, Any]:
    rows = [model.get_input_embeddings().num_embeddings for model in models]
    vocab_size = min(rows)
    if vocab_size < needed:
        raise ValueError(
            f"The shortest embedding table has {vocab_size} rows ({rows}), the tokenizer "
            f"{needed} tokens. The hybrid needs a row for each token: use the tokenizer that the "
            "components were trained with, or pass one tokenizer for each component."
        )
    tables = [_cut(model, vocab_size) for model in models]
    report = VocabularyReport(
        vocab_size=vocab_size,
        cut_rows=[row - vocab_size for row in rows],
        exact_rows=[vocab_size] * len(models),
        mean_rows=[0] * len(models),
    )
    return tables, report


def _cut(model: PreTrainedModel, vocab_size: int) -> tuple[nn.Embedding, nn.Module]:
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embed.num_embeddings == vocab_size:
        return embed, head
    index = torch.arange(vocab_size)
    return _tables_from_rows(model, lambda table: table[index.to(table.device)])


def _transplant_all(
    models: Sequence[PreTrainedModel], tokenizers: Sequence[Any], host: int
) -> tuple[Tables, VocabularyReport]:
    sizes = [model.get_input_embeddings().num_embeddings for model in models]
    for k, (size, tokenizer) in enumerate(zip(sizes, tokenizers, strict=True)):
        if size < num_tokens(tokenizer):
            raise ValueError(
                f"Component {k} has a table of {size} rows, its tokenizer {num_tokens(tokenizer)} "
                "tokens. Give it the tokenizer that it was trained with."
            )
    vocab_size = num_tokens(tokenizers[host])
    tables: Tables = []
    exact, cut = [vocab_size] * len(models), [0] * len(models)
    for k, model in enumerate(models):
        if same_vocabulary(tokenizers[k], tokenizers[host]):
            tables.append(_cut(model, vocab_size))
            cut[k] = sizes[k] - vocab_size
        else:
            pieces, exact[k] = token_pieces(tokenizers[host], tokenizers[k])
            tables.append(_tables_from_rows(model, lambda table, p=pieces: mean_rows(table, p)))
    mean = [vocab_size - n for n in exact]
    return tables, VocabularyReport(
        vocab_size=vocab_size, cut_rows=cut, exact_rows=exact, mean_rows=mean
    )


def token_pieces(host: Any, guest: Any) -> tuple[list[list[int]], int]:
    """For every host token, the guest tokens that spell it, and how many are one exact token.

    Tokens are compared by the bytes they stand for, special tokens by their role or name. A
    token that the guest cannot spell gets no piece.
    """
    spelling, special = Spelling(guest), special_pairs(host, guest)
    pieces: list[list[int]] = []
    exact = 0
    for index, data in enumerate(Spelling(host).token_bytes):
        spelled = [] if data is None else spelling.spell(data)
        ids = [special[index]] if index in special else spelled
        pieces.append(ids)
        exact += index in special or [spelling.token_bytes[i] for i in ids] == [data]
    return pieces, exact


def special_pairs(host: Any, guest: Any) -> dict[int, int]:
    """Special tokens of the host that the guest has under the same name or in the same role."""
    guest_vocab = guest.get_vocab()
    names = zip(host.all_special_tokens, host.all_special_ids, strict=True)
    pairs = {index: guest_vocab[name] for name, index in names if name in guest_vocab}
    # One token may play several roles, often end and padding. The last role here wins: models
    # are trained on the end of text, seldom on padding.
    for role in ("unk_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
        ours, theirs = getattr(host, role, None), getattr(guest, role, None)
        if ours is not None and theirs is not None:
            pairs[ours] = theirs
    return pairs


def mean_rows(table: Tensor, pieces: list[list[int]]) -> Tensor:
    """Row i is the mean of `table[pieces[i]]`; without pieces, the mean of the whole table."""
    mean = table.float().mean(dim=0)
    rows = [table[p].float().mean(dim=0) if p else mean for p in pieces]
    return torch.stack(rows).to(table.dtype)


@torch.no_grad()
def _tables_from_rows(model: PreTrainedModel, rows: Any) -> tuple[nn.Embedding, nn.Module]:
    """New embedding and head whose rows come from `rows(old table)`; tied ones stay tied."""
    old_embed, old_head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = rows(old_embed.weight).contiguous()
    count, width = weight.shape
    embed = nn.Embedding(count, width, device=weight.device, dtype=weight.dtype)
    embed.weight.copy_(weight)
    tied = old_head.weight is old_embed.weight
    head_weight = weight if tied else rows(old_head.weight).contiguous()
    bias = getattr(old_head, "bias", None)
    head = nn.Linear(
        head_weight.shape[1],
        head_weight.shape[0],
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    if tied:
        head.weight = embed.weight
    else:
        head.weight.copy_(head_weight)
    if bias is not None:
        head.bias.copy_(rows(bias.unsqueeze(-1)).squeeze(-1))
    embed.weight.requires_grad_(old_embed.weight.requires_grad)
    return embed, head
