"""Text in another vocabulary than the source's is refused before anything is computed."""

import pytest
import torch

from manticore.conversion.transfer import transfer
from manticore.conversion.vocabulary import check_tokenizer
from manticore.text.tokenizers import train_bpe
from tests.models.tiny import tiny, tiny_config

HERE = "the cat sat on the mat, and the dog sat by the door " * 20
THERE = "colourless green ideas sleep furiously beneath quiet purple skies " * 20


def test_calibration_on_tokens_that_the_source_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"token 61, .* ends at 60.*source's own tokenizer"):
        transfer(tiny("gpt_neox"), "retention", calibration=torch.tensor([[3, 61]]))


def test_a_tokenizer_other_than_the_sources_is_refused_with_the_first_difference(tmp_path):
    config = tiny_config("llama", vocab_size=270)
    own = train_bpe([HERE], 270, tmp_path)
    check_tokenizer(tmp_path, config, own)
    other = train_bpe([THERE], 270)
    with pytest.raises(ValueError, match=r"The tokenizers differ: token \d+ is .* in one and"):
        check_tokenizer(tmp_path, config, other)


def test_where_the_source_brings_no_tokenizer_it_must_at_least_be_large_enough(tmp_path):
    tokenizer = train_bpe([HERE], 270)
    check_tokenizer(tmp_path, tiny_config("llama", vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens, .* ends at 60"):
        check_tokenizer(tmp_path, tiny_config("llama"), tokenizer)
