"""One vocabulary for all components: cut to the common prefix, or carried over token by token."""

import lzma
import math
import re
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.hybrids.spelling import Spelling
from manticore.hybrids.vocabulary import token_pieces
from manticore.text.tokenizers import load_tokenizer
from tests.hybrids.pairs import build, largest_difference, member, one_hot, reloaded
from tests.models.tiny import tiny

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "recipes" / "zoo" / "stories260k"


@pytest.fixture(scope="module")
def stories():
    """SentencePiece-like: 512 tokens, "▁" for a space, 256 byte tokens."""
    return load_tokenizer(STORIES)


@pytest.fixture(scope="module")
def zoo():
    """Byte-level: 2,048 tokens."""
    return load_tokenizer(ROOT / "recipes" / "zoo" / "tokenizer")


@pytest.fixture(scope="module")
def lines():
    with lzma.open(ROOT / "recipes/zoo/texts/prose/moby-dick.txt.xz", "rt", encoding="utf-8") as f:
        text = f.read()
    return [line for line in text.splitlines()[2_000:] if line.strip()][:1_000]


def stories_model():
    return AutoModelForCausalLM.from_pretrained(STORIES).eval()


def text_of(tokenizer, ids: list[int]) -> str:
    """SentencePiece text of tokens, spelled out without the tokenizer's own decoder."""
    pieces = [token.replace("▁", " ").encode() for token in tokenizer.convert_ids_to_tokens(ids)]
    raw = [re.fullmatch(rb"<0x(..)>", piece) for piece in pieces]
    return b"".join(
        bytes([int(byte[1], 16)]) if byte else piece
        for byte, piece in zip(raw, pieces, strict=True)
    ).decode()


@pytest.mark.parametrize("is_loaded", [False, True])
def test_components_that_come_with_different_tokenizers_need_them_named(stories, zoo, is_loaded):
    parts = [str(ROOT / "recipes" / "zoo" / "neox-prose"), str(STORIES)]
    if is_loaded:
        parts = [AutoModelForCausalLM.from_pretrained(part) for part in parts]
    with pytest.raises(ValueError, match=r"0 and 1 come with different tokenizers \(2048 and 512"):
        ManticoreForCausalLM.from_components(parts)
    named = ManticoreForCausalLM.from_components(parts, tokenizers=[zoo, stories])
    assert named.vocabulary_report.mean_rows == [0, 1650]
    new = ManticoreForCausalLM.from_components(parts, embeddings="new")
    assert new.config.vocab_size == 512


def test_tables_of_different_sizes_are_cut_to_their_common_prefix(tmp_path):
    hybrid = build([member(1), member(0), member(2, vocab_size=70)], num_blocks=2)
    report = hybrid.vocabulary_report
    assert (report.vocab_size, report.cut_rows) == (61, [2, 0, 9])
    assert "component 2: 61 of 61 rows exact, 0 means of pieces, 9 surplus rows cut" in (
        report.lines()
    )
    loaded = reloaded(hybrid, tmp_path)
    for k, original in enumerate((member(1), member(0), member(2, vocab_size=70))):
        for model in (hybrid, loaded):
            table = model.model.components[k].get_input_embeddings().weight
            assert torch.equal(table, original.get_input_embeddings().weight[:61])
            assert torch.equal(model.heads[k].weight, original.get_output_embeddings().weight[:61])
            assert (model.heads[k].weight is table) == (k != 1)  # tied ones stay tied


def test_a_table_shorter_than_its_tokenizer_is_refused(zoo, stories):
    def join(tokenizers, *sizes, host=0):
        components = [tiny("gpt_neox", vocab_size=size) for size in sizes]
        ManticoreForCausalLM.from_components(components, tokenizers=tokenizers, host=host)

    with pytest.raises(ValueError, match=r"has 2047 rows .*the tokenizer 2048 tokens"):
        join([zoo, zoo], 2_100, 2_047)
    for host in range(3):
        with pytest.raises(ValueError, match=r"Component 1 has a table of 500 rows, .* 512 tokens"):
            join([zoo, stories, zoo], 2_100, 500, 2_048, host=host)
        with pytest.raises(ValueError, match="Component 2 has a table of 2047 rows"):
            join([zoo, stories, zoo], 2_100, 512, 2_047, host=host)


@pytest.mark.parametrize(
    ("byte_level", "sentencepiece"),
    [("Ġthe", "▁the"), ("he", "he"), ("Ċ", "<0x0A>"), ("A", "A"), ("Ã", "<0xC3>"), ("Ġ", "▁"),
     ("ł", "<0xA0>"), ("<|endoftext|>", "</s>")],
)  # fmt: skip
def test_the_same_token_meets_itself_in_another_spelling(zoo, stories, byte_level, sentencepiece):
    ours, theirs = (
        zoo.convert_tokens_to_ids(byte_level),
        stories.convert_tokens_to_ids(sentencepiece),
    )
    assert token_pieces(zoo, stories)[0][ours] == [theirs]
    if byte_level != "<|endoftext|>":
        assert token_pieces(stories, zoo)[0][theirs] == [ours]


def test_pieces_spell_their_token_and_nothing_else(zoo, stories):
    pieces, exact = token_pieces(zoo, stories)
    texts = [zoo.decode([index]) for index in range(len(zoo))]
    whole = [index for index in range(1, len(zoo)) if "\ufffd" not in texts[index]]
    assert len(whole) > 1_900
    for index in whole:
        assert text_of(stories, pieces[index]) == texts[index]
    by_text = {text_of(stories, [i]) for i in range(259, 512)}
    same = [index for index in whole if texts[index] in by_text]
    assert len(same) > 200
    assert exact == sum(len(piece) == 1 for piece in pieces)
    assert all(len(pieces[index]) == 1 for index in same)


def test_special_tokens_go_by_their_role(zoo, stories):
    assert token_pieces(zoo, stories)[0][0] == [stories.eos_token_id]  # not bos, not padding
    back = token_pieces(stories, zoo)[0]
    assert [back[stories.bos_token_id], back[stories.eos_token_id]] == [[0], [0]]
    assert back[stories.unk_token_id] == []  # "<unk>" is no text, and the zoo has no such role


def test_added_tokens_and_metaspace_spellings_are_read_as_text():
    vocab = {token: i for i, token in enumerate(["<unk>", "▁", "a", "b", "▁a", "<0x61>"])}
    metaspace = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    guest = PreTrainedTokenizerFast(tokenizer_object=metaspace, unk_token="<unk>")
    guest.add_tokens([AddedToken("<b>", special=False), AddedToken("Ġa", special=False)])
    spelling = Spelling(guest)
    assert spelling.token_bytes == [
        None, b" ", b"a", b"b", b" a", b"a", b"<b>", "Ġa".encode()
    ]  # fmt: skip
    texts = (b" a", b"a", b"ba a", b"<b>", b"z", b" ab\xc3")
    assert [spelling.spell(text) for text in texts] == [[4], [2], [3, 2, 4], [6], [], [1, 2, 3]]


def test_transplanted_rows_are_copies_or_means_in_table_and_head(zoo, stories):
    for tied in (True, False):
        guest = tiny("mamba", vocab_size=512, tie_word_embeddings=tied)
        host = tiny("gpt_neox", vocab_size=2_050)
        hybrid = build([host, guest], num_blocks=2, tokenizers=[zoo, stories])
        report, pieces = hybrid.vocabulary_report, token_pieces(zoo, stories)[0]
        assert (report.vocab_size, report.cut_rows) == (2_048, [2, 0])
        assert report.exact_rows == [2_048, sum(len(piece) == 1 for piece in pieces)]
        assert report.mean_rows == [0, 2_048 - report.exact_rows[1]]
        old = guest.get_input_embeddings().weight, guest.get_output_embeddings().weight
        new = hybrid.model.components[1].get_input_embeddings().weight, hybrid.heads[1].weight
        assert (new[0] is new[1]) == tied
        for before, after in zip(old, new, strict=True):
            for row, piece in zip(after, pieces, strict=True):
                assert torch.allclose(row, before[piece].mean(0), rtol=0, atol=1e-6)
            exact = [i for i, piece in enumerate(pieces) if len(piece) == 1]
            assert torch.equal(after[exact], before[[pieces[i][0] for i in exact]])


@pytest.mark.parametrize("host", [0, 1])
def test_text_comes_back_and_costs_the_host_as_many_bits_as_before(host, zoo, stories, lines):
    tokenizers = [stories, zoo]
    components = [stories_model(), tiny("gpt_neox", vocab_size=2_048)]
    hybrid = build(components, num_blocks=2, tokenizers=tokenizers, host=host)
    tokenizer = tokenizers[host]
    assert hybrid.config.vocab_size == len(tokenizer)
    assert hybrid.config.eos_token_id == components[host].config.eos_token_id
    encoded = [tokenizer.encode(line, add_special_tokens=False) for line in lines]
    assert [tokenizer.decode(ids) for ids in encoded] == lines

    hybrid.set_mixture(one_hot(2, 2, host))
    alone = [stories_model(), tiny("gpt_neox", vocab_size=2_048)][host]
    rates = [bits_per_byte(model, encoded[:20], lines[:20]) for model in (alone, hybrid)]
    assert rates[0] == pytest.approx(rates[1], abs=1e-6)
    if host == 0:
        assert 1 < rates[0] < 4  # a model of stories, on another kind of text


def test_a_transplanted_hybrid_is_the_same_after_save_and_load(zoo, stories, tmp_path):
    components = [tiny("gpt_neox", vocab_size=2_048), stories_model()]
    hybrid = build(components, num_blocks=2, tokenizers=[zoo, stories])
    ids = torch.tensor([zoo.encode("Once upon a time, there was a whale.")])
    loaded = reloaded(hybrid, tmp_path)
    with torch.no_grad():
        assert largest_difference(hybrid(ids).logits, loaded(ids).logits) == 0


@torch.no_grad()
def bits_per_byte(model, encoded: list[list[int]], texts: list[str]) -> float:
    """Bits that the text after each line's first token costs, for each byte of the lines."""
    bits = 0.0
    for ids in map(torch.tensor, encoded):
        log_p = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        bits -= log_p.gather(-1, ids[1:, None]).sum().item() / math.log(2)
    return bits / sum(len(text.encode()) for text in texts)
