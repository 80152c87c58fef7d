"""Data of recipes: every format becomes examples, splits stay apart, bad rows are named."""

from __future__ import annotations

import json
import lzma
import os
import re
from pathlib import Path
from typing import Any

import pytest

from manticore.config.example_sections import AdaptDataConfig
from manticore.config.load import ConfigError, from_plain
from manticore.tuning.commonsense import boolq, multiple_choice, worked_answer
from manticore.tuning.data import prepare_tuning_data
from manticore.tuning.examples import Example, read_examples, source_examples
from manticore.tuning.filling import fill
from tests.tuning.tiny_recipes import (
    EVERY_SPLIT,
    plain_recipe,
    recipe_of,
    sums,
    tokenizer,
    write_rows,
)

SHARED = os.environ.get("MANTICORE_SHARED_DATA")
needs_shared = pytest.mark.skipif(not SHARED, reason="MANTICORE_SHARED_DATA is not set")


def config(path: Path | str, **fields: Any) -> AdaptDataConfig:
    fields = {"sources": [{"path": str(path)}], "splits": EVERY_SPLIT, **fields}
    return from_plain(AdaptDataConfig, fields, source="the test")


def examples(path: Path, **fields: Any) -> list[Example]:
    made = config(path, **fields)
    return list(source_examples(made.sources[0], made, Path(".")))


# Formats


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.xz", ".parquet"])
def test_instructions_are_read_from_every_kind_of_file(tmp_path, suffix) -> None:
    rows, path = sums(5), tmp_path / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(lzma.compress(text) if suffix.endswith("xz") else text)
    found = examples(path, format="instruction", prompt="Q: {sum}", answer="{result}!")
    assert [(e.prompt, e.answer) for e in found] == [
        (f"Q: {row['sum']}", f"{row['result']}!") for row in rows
    ]


def test_alpacas_prompt_leaves_the_input_out_where_there_is_none(tmp_path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Wave.", "input": "", "output": "o/"},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    both, bare = examples(path, format="instruction", prompt="alpaca")
    assert "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n" in both.prompt
    assert both.answer == "3"
    assert "### Instruction:\nWave.\n\n### Response:\n" in bare.prompt
    assert "Input" not in bare.prompt


def test_the_prompt_of_llm_adapters_is_theirs_letter_by_letter(tmp_path) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl", [{"instruction": "Add.", "input": "", "output": "3"}]
    )
    (found,) = examples(path, format="instruction", prompt="llm-adapters")
    assert found.prompt + found.answer == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.  # noqa: E501\n\n"
        "                ### Instruction:\n"
        "                Add.\n"
        "                \n"
        "                ### Response:\n"
        "                3"
    )


def test_glues_tsv_has_columns_by_name_and_keeps_quotes(tmp_path) -> None:
    path = tmp_path / "cola.tsv"
    path.write_text('gj04\t1\t\tShe said "no.\ngj04\t0\t*\tSaid she\n')
    found = examples(
        path,
        format="classification",
        columns=["source", "label", "mark", "sentence"],
        text="sentence",
    )
    assert [(e.prompt, e.answer) for e in found] == [('She said "no.', "1"), ("Said she", "0")]


def test_csv_with_a_header_joins_two_sentences(tmp_path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('first,second,label\n"A, then",B,same\nC,D,other\n')
    found = examples(path, format="classification", text="{first} / {second}")
    assert [(e.prompt, e.answer) for e in found] == [("A, then / B", "same"), ("C / D", "other")]


def test_a_label_may_be_a_number_or_a_truth_in_parquet(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    table = {"text": ["a", "b"], "label": [0, 1], "good": [True, False]}
    parquet.write_table(pyarrow.table(table), path)
    assert [e.answer for e in examples(path, format="classification")] == ["0", "1"]
    found = examples(path, format="classification", label="good")
    assert [e.answer for e in found] == ["true", "false"]


def test_a_folder_of_plain_text_is_passages_labelled_by_file(tmp_path) -> None:
    (tmp_path / "emma.txt").write_text("Emma walked. " * 40)
    (tmp_path / "ahab.txt").write_text("Ahab sailed. " * 40)
    found = examples(tmp_path, format="classification", passage_chars=100)
    assert {e.answer for e in found} == {"emma", "ahab"}
    for example in found:
        assert len(example.prompt) <= 100
        assert ("Emma" in example.prompt) == (example.answer == "emma")


def test_running_text_is_packed_and_weighs_its_bytes(tmp_path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {n} says hello again." for n in range(2000)))
    data = {
        "format": "text",
        "seq_len": 16,
        "sources": [{"path": str(path), "region_chars": 2000, "kind": "hello"}],
        "splits": EVERY_SPLIT,
    }
    plain = plain_recipe(tmp_path, path, data=data, evaluate={"metrics": ["bits-per-byte"]})
    found = prepare_tuning_data(recipe_of(plain), tokenizer(), tmp_path)
    assert found.batches(2, seed=0).batch_at(0)["input_ids"].shape == (2, 16)
    assert set(found.packs["test"]) == {"hello"}
    assert found.n_train == found.packs["train"]["hello"].n_rows


# Splits


def test_rows_with_one_prompt_stay_in_one_split_and_every_split_differs(tmp_path) -> None:
    rows = [{"sum": row["sum"], "result": f" {n}"} for row in sums(40) for n in range(2)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found, repeats = read_examples(
        config(path, format="instruction", prompt="{sum}", answer="{result}"), Path(".")
    )
    prompts = {name: {e.prompt for e in split} for name, split in found.items()}
    assert sum(map(len, found.values())) == 80
    assert sum(map(len, prompts.values())) == 40
    assert repeats == {"train": 0, "validation": 0, "test": 0}


def test_what_is_tested_is_taken_out_of_training_and_counted(tmp_path) -> None:
    train = write_rows(tmp_path / "train.jsonl", sums(20))
    test = write_rows(tmp_path / "test.jsonl", sums(30)[15:])
    sources = [
        {"path": str(train), "use": "train"},
        {"path": str(train), "use": "validation", "limit": 3},
        {"path": str(test), "use": "test"},
    ]
    fields = {"format": "instruction", "prompt": "{sum}", "answer": "{result}"}
    found, repeats = read_examples(config(train, **{**fields, "sources": sources}), Path("."))
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": 12, "validation": 3, "test": 15
    }  # fmt: skip
    assert repeats == {"train": 8, "validation": 0, "test": 0}


def test_a_limit_takes_the_same_rows_whatever_their_order(tmp_path) -> None:
    fields = {"format": "instruction", "prompt": "{sum}", "answer": "{result}", "train_rows": 7}
    forward = write_rows(tmp_path / "a.jsonl", sums(60))
    backward = write_rows(tmp_path / "b.jsonl", sums(60)[::-1])
    paths = (forward, backward)
    chosen = [read_examples(config(p, **fields), Path("."))[0]["train"] for p in paths]
    assert len(chosen[0]) == 7
    assert [e.prompt for e in chosen[0]] == [e.prompt for e in chosen[1]]


# Conversions of public sets


def test_boolq_becomes_llm_adapters_instruction() -> None:
    row = boolq({"question": "is ice wet", "answer": True}, "row 1")
    assert row == {
        "instruction": "Please answer the following question with true or false, question: is ice "
        "wet?\n\nAnswer format: true/false",
        "input": "",
        "output": "the correct answer is true",
        "answer": "true",
    }


def test_choices_become_numbered_answers() -> None:
    choices = {"text": ["sun", "moon", "rain"], "label": ["A", "B", "C"]}
    row = multiple_choice({"question_stem": "Hot?", "choices": choices, "answerKey": "A"}, "row 1")
    assert row["instruction"].endswith(
        "Hot?\n\nAnswer1: sun Answer2: moon Answer3: rain\n\nAnswer format: answer1/answer2/answer3"
    )
    assert (row["output"], row["answer"]) == ("the correct answer is answer1", "answer1")


@needs_shared
def test_boolq_equals_llm_adapters_own_file() -> None:
    path = Path(SHARED or "") / "inst-llm-adapters" / "boolq_train.json.xz"
    theirs = json.loads(lzma.decompress(path.read_bytes()))
    for wanted in theirs:
        question = re.search(r"question: (.*)\?\n\n", wanted["instruction"], re.DOTALL)
        assert question is not None
        row = {"question": question.group(1), "answer": wanted["answer"] == "true"}
        assert boolq(row, "") == wanted


@needs_shared
@pytest.mark.parametrize("name", ["ARC-Challenge", "ARC-Easy", "openbookqa"])
def test_choices_equal_llm_adapters_own_files(name: str) -> None:
    path = Path(SHARED or "") / "inst-llm-adapters" / f"{name}_train.json.xz"
    compared = 0
    for wanted in json.loads(lzma.decompress(path.read_bytes())):
        text = wanted["instruction"]
        found = re.fullmatch(
            r"Please choose the correct answer to the question: (.*)\n\n(Answer1: .*)\n\n"
            r"Answer format: (\S+)", text, re.DOTALL,
        )  # fmt: skip
        if found is None:
            continue
        names = found.group(3).split("/")
        choices = re.split(r" ?Answer\d+: ", found.group(2))[1:]
        if len(choices) != len(names):
            continue  # a choice that itself says "Answer1:"
        row = {
            "question": found.group(1),
            "choices": {"text": choices, "label": names},
            "answerKey": wanted["answer"],
        }
        assert multiple_choice(row, "") == wanted
        compared += 1
    assert compared > 1000


def test_worked_answers_of_both_sets_end_in_their_number() -> None:
    gsm = worked_answer({"question": "2 and 2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}, "row 1")
    assert (gsm["instruction"], gsm["answer"]) == ("2 and 2?", "4")
    assert gsm["output"].endswith("#### 4")
    meta = worked_answer({"query": "How many?", "response": "So.\nThe answer is: 1,200"}, "row 1")
    assert (meta["instruction"], meta["answer"]) == ("How many?", "1,200")


@needs_shared
def test_every_row_of_gsm8k_has_a_number() -> None:
    path = Path(SHARED or "") / "inst-gsm8k" / "train.jsonl.xz"
    rows = [json.loads(line) for line in lzma.decompress(path.read_bytes()).splitlines()]
    answers = [worked_answer(row, "")["answer"] for row in rows]
    assert len(answers) == 7473
    assert all(re.fullmatch(r"-?[\d,]*\.?\d+", answer) for answer in answers)


# Bad input


def test_a_field_s_name_without_braces_is_the_field(tmp_path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", sums(40))
    named, braced = (
        examples(path, format="instruction", prompt=prompt, answer=answer)
        for prompt, answer in (("sum", "result"), ("{sum}", "{result}"))
    )
    assert named == braced


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "alpacca"}, r"row 1 has no field 'alpacca'\. It has: sum, result"),
        ({"prompt": "{sun}"}, r"rows\.jsonl, row 1 has no field 'sun'\. It has: sum, result"),
        ({"prompt": "{sum.real}"}, "may name plain fields only"),
        ({"prompt": "{sum"}, "brace that never closes"),
        ({"convert": "boolq"}, "has no text in 'question'"),
        ({"convert": "worked-answer"}, "has no text in 'question'"),
        ({"reference": "number"}, "has no field 'number'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, fields, message) -> None:
    path = write_rows(tmp_path / "rows.jsonl", sums(3))
    fields = {"format": "instruction", "prompt": "{sum}", "answer": "{result}", **fields}
    with pytest.raises(ValueError, match=message):
        examples(path, **fields)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "assistant"}]},
        {"messages": "Hi"},
        {"talk": []},
    ],
)
def test_a_row_without_a_conversation_says_what_it_has(tmp_path, row) -> None:
    path = write_rows(tmp_path / "chats.jsonl", [row])
    with pytest.raises(ValueError, match=r"no conversation in 'messages'.*The row has: "):
        examples(path, format="chat")


def test_a_line_with_too_few_columns_is_named(tmp_path) -> None:
    (tmp_path / "rows.tsv").write_text("text\tlabel\na\t1\nb\n")
    with pytest.raises(ValueError, match=r"Row 2 of rows\.tsv has 1 columns, not 2"):
        examples(tmp_path / "rows.tsv", format="classification")


def test_files_that_are_not_there_and_splits_without_rows_are_errors(tmp_path) -> None:
    fields = {"format": "instruction", "prompt": "{sum}", "answer": "{result}"}
    with pytest.raises(ValueError, match=r"There is no file or folder .*absent\.jsonl"):
        examples(tmp_path / "absent.jsonl", **fields)
    path = write_rows(tmp_path / "rows.jsonl", sums(4))
    with pytest.raises(ValueError, match=r"No row is for validation, test\. Give a source"):
        read_examples(
            config(path, **fields, sources=[{"path": str(path), "use": "train"}]), Path(".")
        )


def test_unknown_fields_of_a_recipe_are_refused(tmp_path) -> None:
    plain = plain_recipe(tmp_path, tmp_path)
    plain["data"] = {**plain["data"], "sequence_length": 3}
    with pytest.raises(ConfigError, match="sequence_length"):
        recipe_of(plain)


def test_values_are_written_into_templates_as_text() -> None:
    row = {"n": 3, "yes": True, "text": "a {b}"}
    assert fill("{n} {yes} {text} {{n}}", row, "row 1") == "3 true a {b} {n}"
    with pytest.raises(ValueError, match="is list, not text"):
        fill("{n}", {"n": [1]}, "row 1")
