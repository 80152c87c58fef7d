"""Public question sets in LLM-Adapters' format (arXiv:2304.01933), which MoRe's paper uses.

Sums with worked answers keep their words; the final number is the answer.

```
Please answer the following question with true or false, question: QUESTION?

Answer format: true/false          ->  the correct answer is true
```
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
_FINAL = re.compile(r"(?:####|The answer is:)\s*(.+)")


def boolq(row: Row, place: str) -> dict[str, str]:
    """A row of BoolQ: question (without its mark) and a boolean answer."""
    question, answer = _text(row, "question", place), row.get("answer")
    if not isinstance(answer, bool):
        raise ValueError(f"{place}: BoolQ's answer is true or false, not {answer!r}.")
    word = "true" if answer else "false"
    return _row(
        "Please answer the following question with true or false, question: "
        f"{question.rstrip('?')}?\n\nAnswer format: true/false",
        word,
    )


def multiple_choice(row: Row, place: str) -> dict[str, str]:
    """A row of ARC or OpenBookQA: a question, choices {text, label}, and the key of the answer."""
    stem = "question" if "question" in row else "question_stem"
    question, key = _text(row, stem, place), _text(row, "answerKey", place)
    choices = row.get("choices")
    if not isinstance(choices, Mapping) or {"text", "label"} - set(choices):
        raise ValueError(f"{place} has no choices with text and label.")
    labels = [str(label) for label in choices["label"]]
    if key not in labels:
        raise ValueError(f"{place}: the key {key!r} is none of {', '.join(labels)}.")
    listed = " ".join(f"Answer{n}: {text}" for n, text in enumerate(choices["text"], start=1))
    names = "/".join(f"answer{n}" for n in range(1, len(labels) + 1))
    return _row(
        f"Please choose the correct answer to the question: {question}\n\n{listed}\n\n"
        f"Answer format: {names}",
        f"answer{labels.index(key) + 1}",
    )


def worked_answer(row: Row, place: str) -> dict[str, str]:
    """A row of GSM8K (question, answer) or MetaMathQA (query, response), as PEFT compares methods.

    The answer is the number that GSM8K puts after "####" and MetaMathQA after "The answer is:".
    """
    asked, said = ("query", "response") if "query" in row else ("question", "answer")
    question, output = _text(row, asked, place), _text(row, said, place)
    found = _FINAL.findall(output)
    if not found:
        raise ValueError(f"{place} has no number after '####' or 'The answer is:'.")
    return {"instruction": question, "input": "", "output": output, "answer": found[-1].strip()}


def _as_it_is(row: Row, place: str) -> Row:
    return row


CONVERSIONS: dict[str, Callable[[Row, str], Row]] = {
    "none": _as_it_is,
    "boolq": boolq,
    "multiple-choice": multiple_choice,
    "worked-answer": worked_answer,
}


def _row(instruction: str, answer: str) -> dict[str, str]:
    output = f"the correct answer is {answer}"
    return {"instruction": instruction, "input": "", "output": output, "answer": answer}


def _text(row: Row, key: str, place: str) -> str:
    if not isinstance(row.get(key), str):
        raise ValueError(f"{place} has no text in {key!r}. It has: {', '.join(map(str, row))}.")
    return str(row[key])
