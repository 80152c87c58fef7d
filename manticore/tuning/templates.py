"""Prompts by name, and conversations as text of which some parts are the assistant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT_TEMPLATES = {"chatml": CHATML}

_BELOW = "Below is an instruction that describes a task"
_WRITE = "Write a response that appropriately completes the request."
_STRAY = "  # noqa: E501"
_IN = " " * 16


@dataclass(frozen=True)
class Preset:
    """A prompt with the answer that follows it."""

    prompt: str
    """Template of the prompt."""
    answer: str
    """Template of the answer."""
    bare: str | None = None
    """Template for rows whose `input` is empty."""

    def prompt_for(self, row: Mapping[str, Any]) -> str:
        """The template that suits a row."""
        return self.bare if self.bare is not None and not row.get("input") else self.prompt


PRESETS: dict[str, Preset] = {
    # The format of Stanford Alpaca, from which most instruction sets descend.
    "alpaca": Preset(
        f"{_BELOW}, paired with an input that provides further context. {_WRITE}\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        "{output}",
        f"{_BELOW}. {_WRITE}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
    ),
    # What LLM-Adapters trains on, indentation and a linter's comment within the prompt included.
    "llm-adapters": Preset(
        f"{_BELOW}, paired with an input that provides further context. {_WRITE}{_STRAY}\n\n"
        f"{_IN}### Instruction:\n{_IN}{{instruction}}\n{_IN}\n{_IN}### Input:\n{_IN}{{input}}\n"
        f"{_IN}\n{_IN}### Response:\n{_IN}",
        "{output}",
        f"{_BELOW}. {_WRITE}{_STRAY}\n\n{_IN}### Instruction:\n{_IN}{{instruction}}\n{_IN}\n"
        f"{_IN}### Response:\n{_IN}",
    ),
}


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation."""

    text: str
    """As the template wrote it."""
    is_answer: bool
    """Whether the assistant says it: then it is trained on."""


def chat_segments(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template: str | None
) -> list[Segment]:
    """Render a conversation and cut it at the assistant's turns.

    A turn of the assistant begins after what the template writes to ask for one (its generation
    prompt) and includes what ends the turn, so that the model learns to stop.
    """
    chosen = CHAT_TEMPLATES.get(template or "", template) or getattr(
        tokenizer, "chat_template", None
    )
    if not chosen:
        raise ValueError(
            "The tokenizer has no chat template. Set data.chat_template to chatml or to a Jinja "
            "template."
        )

    def render(count: int, ask: bool) -> str:
        return tokenizer.apply_chat_template(
            list(messages[:count]),
            chat_template=chosen,
            tokenize=False,
            add_generation_prompt=ask,
        )

    segments, written = [], ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(number, ask=True), render(number + 1, ask=False)
        _check_prefix(written, before, after)
        segments.append(Segment(before[len(written) :], is_answer=False))
        segments.append(Segment(after[len(before) :], is_answer=True))
        written = after
    return [segment for segment in segments if segment.text]


def _check_prefix(written: str, before: str, after: str) -> None:
    if not (before.startswith(written) and after.startswith(before)):
        raise ValueError(
            "The chat template rewrites earlier turns when later ones come, so the assistant's "
            "words cannot be told apart. Use another data.chat_template, such as chatml."
        )
