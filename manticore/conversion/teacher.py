"""What all students of a recipe share: the teacher, in both forms, and the text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from manticore.config import dump_yaml
from manticore.config.load import from_plain
from manticore.config.strict_yaml import parse_yaml
from manticore.config.transfer_recipe import TransferRecipe
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.transfer import identity
from manticore.conversion.vocabulary import check_tokenizer
from manticore.evaluation.recall import recall_tokens
from manticore.models.loading import load_component
from manticore.text.prepared import PreparedData, prepare_data, resolve_path
from manticore.text.tokenizers import load_tokenizer


@dataclass(frozen=True)
class Prepared:
    """What all students of a recipe share."""

    source: PreTrainedModel
    """The pretrained transformer as it was loaded."""
    teacher: ConvertedForCausalLM
    """The same in converted blocks, with all its attention; frozen."""
    data: PreparedData
    """Packed text."""
    recall_tokens: list[int]
    """Ids that the training text uses: those from which recall probes draw."""


def prepared(recipe: TransferRecipe, base: Path) -> Prepared:
    """Teacher and data, made once in each process."""
    return _prepared_from(dump_yaml(recipe), str(base))


@lru_cache(maxsize=2)
def _prepared_from(text: str, base: str) -> Prepared:
    recipe = from_plain(TransferRecipe, parse_yaml(text, "the recipe"), source="the recipe")
    source, tokenizer = checked_teacher(recipe, Path(base))
    data = prepare_data(recipe.data, tokenizer, Path(base))
    rows = (pack.rows for pack in data.packs["train"].values())
    tokens = recall_tokens(rows, source.config.vocab_size, tokenizer.all_special_ids)
    return Prepared(source, identity(source).requires_grad_(False), data, tokens)


def checked_teacher(recipe: TransferRecipe, base: Path) -> tuple[PreTrainedModel, Any]:
    """The pretrained transformer, in float32, and the data's tokenizer, which must be its own."""
    source = load_component(resolve_path(recipe.teacher.path, base), dtype=torch.float32).eval()
    tokenizer = teacher_tokenizer(recipe, base)
    own = resolve_path(recipe.teacher.tokenizer or recipe.teacher.path, base)
    check_tokenizer(own, source.config, tokenizer)
    return source, tokenizer


def teacher_tokenizer(recipe: TransferRecipe, base: Path) -> Any:
    """The tokenizer of data and teacher."""
    given = recipe.data.tokenizer or recipe.teacher.tokenizer or recipe.teacher.path
    return load_tokenizer(resolve_path(given, base))
