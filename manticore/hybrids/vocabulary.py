"""One vocabulary for all components: common prefix of tables, or rows transplanted to a host."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

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
        needed = 0 if tokenizers is None else len(tokenizers[host])
        return _common_prefix(models, needed)
    return _transplant_all(models, tokenizers, host)


def same_vocabulary(tokenizer: Any, other: Any) -> bool:
    """Whether two tokenizers give every token the same id."""
    return tokenizer is other or tokenizer.get_vocab() == other.get_vocab()


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
    vocab_size = min(models[host].get_input_embeddings().num_embeddings, len(tokenizers[host]))
    if vocab_size < len(tokenizers[host]):
        raise ValueError(
            f"The host's embedding table has {vocab_size} rows, its tokenizer "
            f"{len(tokenizers[host])} tokens. Choose the tokenizer it was trained with."
        )
    tables: Tables = []
    exact: list[int] = []
    for k, model in enumerate(models):
        if same_vocabulary(tokenizers[k], tokenizers[host]):
            tables.append(_cut(model, vocab_size))
            exact.append(vocab_size)
            continue
        pieces, copied = token_pieces(tokenizers[host], tokenizers[k], vocab_size)
        tables.append(_tables_from_rows(model, lambda table, p=pieces: mean_rows(table, p)))
        exact.append(copied)
    sizes = [model.get_input_embeddings().num_embeddings for model in models]
    report = VocabularyReport(
        vocab_size=vocab_size,
        cut_rows=[
            size - vocab_size if n == vocab_size else 0
            for size, n in zip(sizes, exact, strict=True)
        ],
        exact_rows=exact,
        mean_rows=[vocab_size - n for n in exact],
    )
    return tables, report


def token_pieces(host: Any, guest: Any, vocab_size: int) -> tuple[list[list[int]], int]:
    """For every host token, the guest tokens that spell it, and how many are one exact token.

    Tokens are compared by the text they stand for, so that byte-level and SentencePiece
    spellings of a leading space meet. A token that the guest cannot spell gets no piece.
    """
    guest_text = {text: i for i, text in reversed(list(enumerate(token_texts(guest))))}
    special = special_pairs(host, guest)
    pieces: list[list[int]] = []
    exact = 0
    for index, text in enumerate(token_texts(host)[:vocab_size]):
        if index in special or text in guest_text:
            pieces.append([special[index] if index in special else guest_text[text]])
            exact += 1
        else:
            known = guest.encode(text, add_special_tokens=False) if text else []
            pieces.append([i for i in known if i != guest.unk_token_id])
    return pieces, exact


def special_pairs(host: Any, guest: Any) -> dict[int, int]:
    """Special tokens of the host that the guest has under the same role."""
    roles = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    pairs = ((getattr(host, role, None), getattr(guest, role, None)) for role in roles)
    return {h: g for h, g in pairs if h is not None and g is not None}


def token_texts(tokenizer: Any) -> list[str]:
    """The text that each token stands for inside a sentence, by id; special tokens their name."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
    texts = []
    for index, token in enumerate(tokens):
        if index in special or token is None:
            texts.append(token or "")
        elif token.startswith("▁") or decoder is None:
            # SentencePiece's decoder strips the space in front of a first token.
            texts.append(token.replace("▁", " "))
        else:
            texts.append(decoder.decode([token]))
    return texts


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
