"""Tokenizers: byte-level BPE is exact, and two tokenizers are told apart by what they do."""

from pathlib import Path

import pytest

from manticore.text.tokenizers import (
    balanced,
    check_round_trip,
    check_same_tokenizer,
    continuation,
    load_tokenizer,
    same_tokenizer,
    train_bpe,
)

STORIES = Path(__file__).parents[2] / "recipes" / "zoo" / "stories260k"
TEXTS = [f"The {w} sat on {n} mats, and {n + 1} more.\n" for n in range(40) for w in ("cat", "dog")]
AWKWARD = [
    "",
    " ",
    "\n\n  two\tspaces \r\n",
    "naïve café — “quotes” 漢字 🦁\u200d🔥",
    "\x00\x7f\ufffd\u00a0",
    "It 's don 't . , !",
    "<|endoftext|> spelled out",
    "".join(map(chr, range(1, 300))),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 300)


def test_any_text_comes_back_exactly(tokenizer):
    check_round_trip(tokenizer, AWKWARD + TEXTS)


def test_every_byte_has_a_token_and_the_size_is_as_asked(tokenizer):
    assert len(tokenizer) == 300
    assert len(tokenizer.encode("\U0010ffff", add_special_tokens=False)) == 4


def test_end_of_text_is_token_zero_and_ends_begins_and_pads(tokenizer):
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    ids = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 0, 0)


def test_encoding_adds_nothing_by_itself(tokenizer):
    assert tokenizer("cat")["input_ids"] == tokenizer.encode("cat", add_special_tokens=False)


def test_the_same_texts_give_the_same_file(tmp_path):
    train_bpe(TEXTS, 300, tmp_path / "a")
    train_bpe(iter(TEXTS), 300, tmp_path / "b")
    a, b = ((tmp_path / n / "tokenizer.json").read_bytes() for n in "ab")
    assert a == b


def test_a_saved_tokenizer_is_the_same_loaded_from_folder_or_file(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "t")
    assert all("pickle" not in p.name and p.suffix == ".json" for p in (tmp_path / "t").iterdir())
    loaded = load_tokenizer(tmp_path / "t")
    check_same_tokenizer(tokenizer, loaded)
    check_round_trip(loaded, AWKWARD)
    assert load_tokenizer(tmp_path / "t" / "tokenizer.json").get_vocab() == loaded.get_vocab()


def test_different_tokenizers_are_told_apart_with_a_reason(tokenizer):
    smaller = train_bpe(TEXTS, 290)
    other = train_bpe([t.upper() for t in TEXTS], 300)
    assert same_tokenizer(tokenizer, train_bpe(TEXTS, 300))
    with pytest.raises(ValueError, match=r"token 290 is .* in one and None in the other"):
        check_same_tokenizer(tokenizer, smaller)
    with pytest.raises(ValueError, match="they have 290 and 300 tokens"):
        check_same_tokenizer(smaller, tokenizer)
    with pytest.raises(ValueError, match=r"token \d+ is '.*' in one and '.*' in the other"):
        check_same_tokenizer(tokenizer, other)


def test_the_same_words_with_another_rule_are_another_tokenizer(tokenizer):
    from tokenizers import pre_tokenizers

    other = train_bpe(TEXTS, 300)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="cut by different rules"):
        check_same_tokenizer(tokenizer, other)


def test_another_end_of_text_is_another_tokenizer(tokenizer):
    other = train_bpe(TEXTS, 300)
    other.eos_token = "a"
    with pytest.raises(ValueError, match=r"end-of-text tokens are '<\|endoftext\|>' and 'a'"):
        check_same_tokenizer(tokenizer, other)


def test_a_lossy_tokenizer_fails_the_round_trip():
    from tokenizers import normalizers

    lossy = train_bpe(TEXTS, 300)
    lossy.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="turns 'The' into 'the'"):
        check_round_trip(lossy, ["the", "The"])


def test_balanced_takes_as_many_bytes_of_each_kind():
    kinds = {"long": [f"{n:04d}" * 10 for n in range(100)], "short": ["é" * 25] * 8}
    chosen = balanced(kinds)
    n_short = sum(len(t.encode()) for t in chosen if t[0] == "é")
    n_long = sum(len(t.encode()) for t in chosen if t[0] != "é")
    assert n_short == 400
    assert 400 <= n_long < 440
    assert chosen == balanced({"long": kinds["long"][::-1], "short": kinds["short"]})


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (TEXTS, 256, "vocab_size=256 has no room"),
        ([], 300, "no text to train"),
        (["abc"], 300, r"enough for 25\d tokens, not vocab_size=300"),
    ],
)
def test_training_that_cannot_succeed_says_why(tmp_path, texts, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(texts, vocab_size, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"No tokenizer could be loaded from \./not/here"):
        load_tokenizer("./not/here")


def test_a_continuation_keeps_the_space_that_sentencepiece_drops_at_a_start():
    llama = load_tokenizer(STORIES)
    text = "Once upon a time, there was a little girl"
    ids = llama.encode(text)
    start = len(llama.encode("Once upon a time, there was"))
    assert not llama.decode(ids[start:]).startswith(" ")  # the reason for the function
    assert continuation(llama, ids, start) == " a little girl"


def test_a_continuation_of_half_a_letter_is_told_from_there(tokenizer):
    ids = tokenizer.encode("caf\u00e9", add_special_tokens=False)
    assert continuation(tokenizer, ids, len(ids) - 1) == "\ufffd"
