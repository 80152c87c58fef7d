"""The gated short convolution: transformers' layer with the same weights."""

import pytest
import torch
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from manticore.mixers.table import mixer_spec
from tests.mixers.small import small_mixer, tokens


@torch.no_grad()
@pytest.mark.parametrize("seq_len", [1, 2, 63])
def test_outputs_equal_lfm2s(seq_len):
    ours = small_mixer("gated-conv")
    config = Lfm2Config(hidden_size=16, conv_L_cache=3, num_hidden_layers=1, layer_types=["conv"])
    stock = Lfm2ShortConv(config, layer_idx=0)
    weights = {
        "in_proj.weight": ours.input.weight,
        "conv.weight": ours.conv.weight.unsqueeze(1),
        "out_proj.weight": ours.output.weight,
    }
    stock.load_state_dict(weights)
    x = tokens(2, seq_len, 16)
    torch.testing.assert_close(ours(x), stock(x), atol=1e-5, rtol=1e-5)  # two orders of few sums


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="conv_size=0 must be at least 1"):
        mixer_spec("gated-conv", conv_size=0)
