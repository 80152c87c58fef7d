"""The committed texts and tokenizer are what their README says."""

import re
from pathlib import Path

import pytest

from manticore.text.corpora import read_documents, source_hashes
from manticore.text.documents import text_hash
from manticore.text.packing import pack
from manticore.text.splits import check_disjoint, split_documents, split_record
from manticore.text.tokenizers import balanced, check_round_trip, load_tokenizer, train_bpe

ZOO = Path(__file__).parents[2] / "recipes" / "zoo"
README = (ZOO / "texts" / "README.md").read_text()
FRACTIONS = {"pretrain": 0.5, "train": 0.4, "architecture": 0.03, "validation": 0.03, "test": 0.04}


@pytest.fixture(scope="module")
def documents():
    return {
        "prose": read_documents(ZOO / "texts/prose", kind="prose"),
        "maths": read_documents(ZOO / "texts/maths", kind="maths", field="{question}\n{answer}"),
    }


@pytest.fixture(scope="module")
def splits(documents):
    return {kind: split_documents(d, FRACTIONS, seed=0) for kind, d in documents.items()}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ZOO / "tokenizer")


def test_files_have_the_published_hashes():
    listed = dict(re.findall(r"^\| (\S+\.xz) \|.*\| ([0-9a-f]{64}) \|$", README, re.MULTILINE))
    assert source_hashes(ZOO / "texts") == listed


def test_splits_are_those_that_the_zoo_was_trained_on(splits):
    table = re.findall(
        r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| [\d,]+ \| ([\d,]+) \| ([\d,]+)", README, re.M
    )
    published = {name: [int(n.replace(",", "")) for n in rest] for name, *rest in table}
    for name in FRACTIONS:
        records = [split_record(splits[kind])[name] for kind in ("prose", "maths")]
        assert [r[key] for r in records for key in ("documents", "bytes")] == published[name]


def test_token_counts_are_the_published_ones(splits, tokenizer):
    for name in ("validation", "test"):
        for column, kind in enumerate(("prose", "maths")):
            packed = pack(splits[kind][name], tokenizer, 128)
            line = next(line for line in README.splitlines() if line.startswith(f"| {name} |"))
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            published = int(cells[3 * (column + 1)].replace(",", ""))
            assert packed.n_tokens + packed.n_dropped == published


def test_no_text_region_or_question_is_in_two_splits(splits):
    for by_name in splits.values():
        check_disjoint(by_name)
    owners = {}
    for name, members in splits["maths"].items():
        for document in members:
            question = text_hash(document.text.split("\n#### ")[0].splitlines()[0])
            assert owners.setdefault(question, name) == name


def test_another_document_size_keeps_test_text_out_of_training(splits):
    other = split_documents(
        read_documents(ZOO / "texts/prose", kind="prose", document_chars=700), FRACTIONS, seed=0
    )
    trained = {p for d in splits["prose"]["pretrain"] for p in d.text.split("\n\n")}
    tested = {p for d in other["test"] for p in d.text.split("\n\n")}
    # Headings and single words ("Yes.") return all over a novel; sentences do not.
    assert not {p for p in trained & tested if len(p) > 80}


def test_the_texts_carry_no_name_but_their_own(documents):
    text = "\n".join(d.text for d in documents["prose"])
    assert not re.search(r"gutenberg|https?://|\bwww\.|transcriber", text, re.IGNORECASE)


def test_the_tokenizer_gives_a_thousand_lines_back(documents, tokenizer):
    lines = [line for d in documents["prose"] + documents["maths"] for line in d.text.split("\n")]
    check_round_trip(tokenizer, lines[:: len(lines) // 1000])
    assert (len(tokenizer), tokenizer.eos_token_id) == (2048, 0)


def test_tokens_are_longer_than_three_characters_of_prose_and_bytes_are_exact(splits, tokenizer):
    found = splits["prose"]["validation"]
    packed = pack(found, tokenizer, 128)
    n_bytes = sum(d.n_bytes for d in found)
    assert n_bytes / (packed.n_tokens - len(found)) > 3
    # All bytes but those of each row's first token and of the dropped end.
    missing = packed.token_bytes[:, 0].sum()
    assert packed.n_bytes + missing == packed.token_bytes.sum() <= n_bytes
    assert n_bytes - packed.token_bytes.sum() < 128 * 20


@pytest.mark.slow
def test_training_the_tokenizer_again_gives_the_same(splits, tokenizer):
    pretrain = {kind: [d.text for d in s["pretrain"]] for kind, s in splits.items()}
    again = train_bpe(balanced(pretrain), 2048)
    assert again.get_vocab() == tokenizer.get_vocab()
