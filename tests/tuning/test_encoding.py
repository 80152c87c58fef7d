"""Tokens and labels: loss on answers only, counted by hand; packing keeps examples whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import GPTNeoXForCausalLM

from manticore.config.example_sections import AdaptDataConfig
from manticore.config.load import from_plain
from manticore.tuning.batches import ExampleBatches, collate
from manticore.tuning.encoding import Encoded, encode_examples, pack_rows
from manticore.tuning.evaluate import tuning_loss
from manticore.tuning.examples import Example
from manticore.tuning.templates import chat_segments
from tests.tuning.tiny_recipes import save_model, tokenizer

END = 0
"""The zoo's end of text."""


def config(**fields: Any) -> AdaptDataConfig:
    fields = {"format": "instruction", "sources": [{"path": "rows.jsonl"}], **fields}
    return from_plain(AdaptDataConfig, fields, source="the test")


def row(ids: list[int], prompt: int) -> Encoded:
    """A row whose first `prompt` tokens are not scored."""
    array = np.array(ids, np.int32)
    labels = array.copy()
    labels[:prompt] = -100
    return Encoded(array, labels, array[:prompt], len(ids) - prompt)


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


# Masks


def test_only_the_answer_and_its_end_are_scored() -> None:
    example = Example("row 1", "g", prompt="How many eggs?\n", answer="Twelve eggs")
    (encoded,), n_long = encode_examples([example], tokenizer(), config())
    prompt, answer = ids_of("How many eggs?\n"), ids_of("Twelve eggs")
    assert encoded.ids.tolist() == [*prompt, *answer, END]
    assert encoded.labels.tolist() == [-100] * len(prompt) + [*answer, END]
    assert encoded.prompt.tolist() == prompt
    assert (encoded.n_scored, encoded.scored_bytes) == (len(answer) + 1, 11)
    assert n_long == 0


def test_the_assistants_words_and_the_end_of_its_turn_are_scored() -> None:
    messages = (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "Sure"},
    )
    example = Example("row 1", "g", messages=messages)
    chatml = config(format="chat", chat_template="chatml")
    (encoded,), _ = encode_examples([example], tokenizer(), chatml)
    given = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    parts = [
        (given + "<|im_start|>assistant\n", False),
        ("Hello<|im_end|>\n", True),
        ("<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n", False),
        ("Sure<|im_end|>\n", True),
    ]
    wanted: list[int] = []
    for text, is_answer in parts:
        wanted += ids_of(text) if is_answer else [-100] * len(ids_of(text))
    assert encoded.labels.tolist() == wanted
    assert encoded.ids.tolist() == [token for text, _ in parts for token in ids_of(text)]
    assert encoded.scored_bytes == len("Hello<|im_end|>\nSure<|im_end|>\n")


def test_a_template_of_ones_own_is_followed_and_one_that_rewrites_is_refused() -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own = "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }};{% endfor %}"
    own += "{% if add_generation_prompt %}[a]{% endif %}"
    found = [(s.text, s.is_answer) for s in chat_segments(tokenizer(), talk, own)]
    assert found == [("[u]a;[a]", False), ("b;", True)]
    last_only = "{{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        chat_segments(tokenizer(), [*talk, *talk], last_only)
    with pytest.raises(ValueError, match="has no chat template"):
        chat_segments(tokenizer(), talk, None)


def test_a_classifiers_rows_carry_the_number_of_their_label() -> None:
    texts = [Example("row 1", "g", prompt="One egg", answer="good")]
    (encoded,), _ = encode_examples(
        texts, tokenizer(), config(format="classification"), ("bad", "good")
    )
    assert encoded.ids.tolist() == ids_of("One egg")
    batch = collate([encoded, encoded], pad=7)
    assert batch["labels"].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"Labels good are not among bad, worse"):
        encode_examples(texts, tokenizer(), config(format="classification"), ("bad", "worse"))


def test_long_examples_are_left_out_and_counted() -> None:
    short = Example("row 1", "g", prompt="a ", answer="b")
    long = Example("row 2", "g", prompt="many words " * 20, answer="b")
    rows, n_long = encode_examples([short, long], tokenizer(), config(seq_len=16))
    assert (len(rows), n_long) == (1, 1)
    with pytest.raises(ValueError, match=r"No example fits into seq_len=4: the shortest has \d+"):
        encode_examples([long], tokenizer(), config(seq_len=4))
    empty = Example("row 3", "g", prompt="", answer="b")
    with pytest.raises(ValueError, match="row 3 has an empty prompt"):
        encode_examples([empty], tokenizer(), config())


# Batches


def test_padding_is_masked_and_not_scored() -> None:
    batch = collate([row([5, 6, 7], 1), row([8, 9], 1)], pad=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]


def test_every_epoch_has_every_row_once_in_another_order_that_the_seed_decides() -> None:
    rows = [row([number, 1], 1) for number in range(10)]

    def epoch(number: int, seed: int) -> list[int]:
        batches = ExampleBatches(rows, 2, seed, pad=0)
        steps = range(number * 5, number * 5 + 5)
        return [int(i) for s in steps for i in batches.batch_at(s)["input_ids"][:, 0]]

    assert sorted(epoch(0, 3)) == sorted(epoch(1, 3)) == list(range(10))
    assert epoch(0, 3) != epoch(1, 3)
    assert epoch(1, 3) == epoch(1, 3)
    assert epoch(0, 3) != epoch(0, 4)


def test_a_later_step_may_be_asked_for_first() -> None:
    rows = [row([number, 1], 1) for number in range(7)]
    forward, backward = (ExampleBatches(rows, 3, 0, pad=0) for _ in range(2))
    wanted = [forward.batch_at(step)["input_ids"] for step in range(8)]
    for step in reversed(range(8)):  # batches that span two epochs among them
        assert torch.equal(backward.batch_at(step)["input_ids"], wanted[step])


# Packing


def test_packing_keeps_every_example_whole_and_scores_the_same_tokens() -> None:
    rows = [row(list(range(n + 2, 2 * n + 4)), 1) for n in (6, 3, 5, 1, 1, 4)]
    packed = pack_rows(rows, 10)
    assert len(packed) < len(rows)
    assert all(len(r.ids) <= 10 for r in packed)
    assert sum(r.n_scored for r in packed) == sum(r.n_scored for r in rows)
    assert sum(r.scored_bytes for r in packed) == sum(r.scored_bytes for r in rows)
    joined = ["/".join(map(str, r.ids)) for r in packed]
    for original in rows:
        assert any("/".join(map(str, original.ids)) in text for text in joined)


def test_an_examples_first_token_is_not_predicted_from_the_example_before_it() -> None:
    (packed,) = pack_rows([row([4, 5], 0), row([6, 7], 0)], 8)
    assert packed.labels.tolist() == [4, 5, -100, 7]


def test_a_packed_example_sees_those_before_it_and_none_after(tmp_path: Path) -> None:
    """The named limit of packing: rows share a context, as in pretraining."""
    model = GPTNeoXForCausalLM.from_pretrained(save_model(tmp_path)).eval()
    first, second, other = row([4, 5, 6], 1), row([7, 8, 9], 1), row([40, 50, 60], 1)

    def losses(*members: Encoded) -> list[float]:
        """Nats of each example's two scored tokens, from one packed row."""
        (packed,) = pack_rows(members, 16)
        batch = collate([packed], pad=0)
        logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
        labels = batch["labels"][0, 1:]
        nats = functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
        return [float(nats[i : i + 2].sum()) for i in range(0, 3 * len(members), 3)]

    with torch.no_grad():
        alone, pair, swapped = losses(first), losses(first, second), losses(other, second)
        batch = collate(pack_rows([first, second], 16), pad=0)
        mean = float(tuning_loss(model, batch))
    assert pair[0] == pytest.approx(alone[0], abs=1e-5)
    assert pair[1] != pytest.approx(swapped[1], abs=1e-4)
    assert mean == pytest.approx(sum(pair) / 4, abs=1e-5)
