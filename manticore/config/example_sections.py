"""The section of an adapter recipe that says which examples are read, and what is asked in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from manticore.config.data_sections import SplitConfig


@dataclass(frozen=True, kw_only=True)
class ExampleSourceConfig:
    path: str
    """File or folder (JSON, JSON lines, Parquet, TSV, CSV, text; .xz and .gz), or hf:NAME."""
    use: Literal["split", "train", "validation", "test"] = "split"
    """Which split its rows belong to; split divides them by `data.splits`."""
    split: str | None = None
    """Data sets with splits of their own: the one to read."""
    kind: str = "text"
    """Name of the kind of text in tables (format text)."""
    region_chars: int = 12000
    """Format text: neighbours within so many characters stay in one split."""
    limit: int | None = None
    """Read at most so many rows."""
    licence: str = ""
    """Shown in the report and in model cards."""


@dataclass(frozen=True, kw_only=True)
class AdaptDataConfig:
    format: Literal["instruction", "chat", "classification", "text"]
    """Prompts with answers; conversations; texts with labels; running text."""
    sources: tuple[ExampleSourceConfig, ...]
    """Where the rows come from."""
    convert: Literal["none", "boolq", "multiple-choice", "worked-answer"] = "none"
    """Rows of a public data set to instruction, output and answer: questions in LLM-Adapters'
    format; worked-answer is GSM8K and MetaMathQA."""
    prompt: str = "{prompt}"
    """Instruction: field, a template such as '{question}\\n', or a preset: alpaca, llm-adapters."""
    answer: str = "{answer}"
    """Instruction: field or template of what the model has to say; only this is trained on."""
    reference: str | None = None
    """Instruction: field that a generated answer is compared with; default the whole answer."""
    messages: str = "messages"
    """Chat: field with the list of {role, content}; every assistant turn is trained on."""
    chat_template: str | None = None
    """Chat: chatml, or a Jinja template; default the tokenizer's own."""
    text: str = "text"
    """Classification and text: field, or a template such as '{sentence1} {sentence2}'."""
    label: str = "label"
    """Classification: field of the label; for a folder of plain text the file's name is it."""
    labels: tuple[str, ...] = ()
    """Classification: the labels in order; default those found, sorted."""
    columns: tuple[str, ...] = ()
    """TSV and CSV without a header: names of the columns."""
    passage_chars: int = 200
    """Classification of plain text: length of a passage."""
    seq_len: int = 256
    """Longest example in tokens; longer ones are left out, of the tests too, and counted."""
    packing: bool = False
    """Put several examples into one row, each ended by the end-of-text token."""
    train_rows: int | None = None
    """Train on at most so many examples."""
    eval_rows: int | None = None
    """Examples (format text: rows of each kind) that an evaluation reads; default all."""
    splits: SplitConfig = field(default_factory=SplitConfig)
    """How rows are divided; rows with the same prompt stay together."""
