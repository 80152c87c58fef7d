"""Packing: no token is lost or doubled, and every byte of text is counted once."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from manticore.text.documents import Document
from manticore.text.packing import PackedText, encode, evaluation_batches, pack
from manticore.text.tokenizers import load_tokenizer, train_bpe

SHARED = os.environ.get("MANTICORE_SHARED_DATA")
TEXTS = [f"Document {n} is {'very ' * (n % 5)}short.\n\n  Café №{n}." for n in range(50)]
WIDTHS = "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff"  # the edges of UTF-8's lengths
STORIES = Path(__file__).parents[2] / "recipes" / "zoo" / "stories260k"


def documents(texts):
    return [Document(t, "x", f"g{n}", f"s{n}") for n, t in enumerate(texts)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 290)


def tokens_one_by_one(tokenizer, texts):
    stream = []
    for text in texts:
        stream += [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return stream


@pytest.mark.parametrize("seq_len", [2, 7, 63, 64])
def test_rows_are_the_documents_in_order_with_an_end_after_each(tokenizer, seq_len):
    packed = pack(documents(TEXTS), tokenizer, seq_len)
    stream = tokens_one_by_one(tokenizer, TEXTS)
    assert packed.rows.dtype == np.int32
    assert packed.rows.shape == (len(stream) // seq_len, seq_len)
    assert packed.rows.ravel().tolist() == stream[: packed.n_tokens]
    assert packed.n_tokens + packed.n_dropped == len(stream)
    assert packed.n_dropped < seq_len


def test_rows_decode_to_the_text_of_the_documents(tokenizer):
    packed = pack(documents(TEXTS), tokenizer, 2)
    text = tokenizer.decode(packed.rows.ravel(), clean_up_tokenization_spaces=False)
    assert text.startswith("<|endoftext|>".join(TEXTS[:-1]))


def test_bytes_of_a_row_are_those_of_its_predicted_text():
    ascii_texts = [t.encode("ascii", "ignore").decode() for t in TEXTS]
    tokenizer = train_bpe(ascii_texts, 290)
    packed = pack(documents(ascii_texts), tokenizer, 11)
    for row, n_bytes in zip(packed.rows, packed.row_bytes, strict=True):
        text = tokenizer.decode(row[1:], clean_up_tokenization_spaces=False)
        assert n_bytes == len(text.replace("<|endoftext|>", "").encode())


def test_bytes_of_tokens_sum_to_the_bytes_of_each_text(tokenizer):
    awkward = [
        "",
        " ",
        "é漢🦁\u200d",
        "  a  ",
        "a\n\n",
        "<|endoftext|>",
        "\ufffd\x00",
        WIDTHS,
        *TEXTS,
    ]
    for text, (ids, n_bytes) in zip(awkward, encode(awkward, tokenizer), strict=True):
        assert len(ids) == len(n_bytes)
        assert n_bytes.sum() == len(text.encode())
        assert (n_bytes >= 0).all()


@pytest.mark.parametrize(
    "name", ["stories260k", "tok-gpt2/tokenizer.json", "tok-neox20b/20B_tokenizer.json"]
)
def test_bytes_are_exact_with_tokenizers_of_others(name):
    if name == "stories260k":
        tokenizer = load_tokenizer(STORIES)
    elif SHARED and (Path(SHARED) / name).is_file():
        tokenizer = load_tokenizer(Path(SHARED) / name)
    else:
        pytest.skip("set MANTICORE_SHARED_DATA to the folder with tokenizers")
    texts = [" Once upon  a time\n", "naïve 🦁 e\u0301 漢字", *TEXTS[:5]]
    for text, (_, n_bytes) in zip(texts, encode(texts, tokenizer), strict=True):
        assert n_bytes.sum() == len(text.encode())
        assert (n_bytes >= 0).all()


def test_what_a_tokenizer_drops_is_counted_with_the_next_token_or_the_last():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    [(ids, n_bytes)] = encode(["  one \u00e9  two   "], tokenizer)
    assert ids.tolist() == [0, 0, 1]
    assert n_bytes.tolist() == [5, 3, 8]


def test_an_end_of_text_spelled_in_a_document_is_no_boundary(tokenizer):
    [(ids, n_bytes)] = encode(["one <|endoftext|> two"], tokenizer)
    assert tokenizer.eos_token_id not in ids
    assert n_bytes.sum() == len("one <|endoftext|> two")
    assert tokenizer.encode("<|endoftext|>") == [tokenizer.eos_token_id], "left as it was"


def test_another_boundary_can_be_given(tokenizer):
    packed = pack(documents(["a", "b"]), tokenizer, 4, boundary_id=7)
    assert packed.rows[0, 1] == packed.rows[0, 3] == 7


def test_bits_per_byte_of_a_uniform_model_over_single_bytes_is_eight():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (10, 32)).astype(np.int32)
    packed = PackedText(rows, np.ones_like(rows))
    assert packed.bits_per_byte(math.log(256)) == pytest.approx(8, rel=1e-12)


def test_bits_per_byte_counts_predicted_tokens_and_their_bytes():
    packed = PackedText(np.zeros((2, 4), np.int32), np.array([[9, 1, 2, 3], [9, 0, 5, 0]]))
    assert packed.row_bytes.tolist() == [6, 5]
    assert (packed.n_bytes, packed.n_predicted) == (11, 6)
    assert packed.bits_per_byte(2.0) == pytest.approx(2.0 * 6 / 11 / math.log(2))


def test_evaluation_sees_every_row_once_in_order(tokenizer):
    packed = pack(documents(TEXTS), tokenizer, 16)
    batches = list(evaluation_batches(packed, 7))
    assert np.array_equal(np.concatenate([b["input_ids"] for b in batches]), packed.rows)
    assert np.array_equal(np.concatenate([b["bytes"] for b in batches]), packed.row_bytes)
    assert all(b["labels"].equal(b["input_ids"]) for b in batches)
    assert {b["input_ids"].shape[0] for b in batches[:-1]} == {7}


def test_take_keeps_the_first_rows_and_counts_the_rest_as_dropped(tokenizer):
    packed = pack(documents(TEXTS), tokenizer, 16)
    some = packed.take(3)
    assert np.array_equal(some.rows, packed.rows[:3])
    assert some.n_tokens + some.n_dropped == packed.n_tokens + packed.n_dropped


def test_many_documents_are_packed_across_chunks(tokenizer, monkeypatch):
    whole = pack(documents(TEXTS), tokenizer, 16)
    monkeypatch.setattr("manticore.text.packing.CHUNK", 7)
    assert np.array_equal(pack(documents(TEXTS), tokenizer, 16).rows, whole.rows)


def test_too_little_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match="1 documents give 2 tokens: not one row of seq_len=64"):
        pack(documents(["a"]), tokenizer, 64)


def test_a_row_of_one_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match="seq_len=1 leaves nothing to predict"):
        pack(documents(TEXTS), tokenizer, 1)


def test_a_tokenizer_without_an_end_of_text_needs_a_boundary(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    bare = load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="Give boundary_id"):
        pack(documents(TEXTS), bare, 8)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False
        eos_token_id = 0

    with pytest.raises(ValueError, match="Slow is not a fast tokenizer"):
        pack(documents(TEXTS), Slow(), 8)
