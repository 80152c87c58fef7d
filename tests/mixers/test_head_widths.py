"""Widths that come back from quotients, and heads that cannot share them."""

import pytest

from manticore.mixers.gated_linear_attention import GatedLinearAttentionSpec
from manticore.mixers.head_widths import check_heads
from manticore.mixers.rotary import rotated_channels

PAIRS = [(d_model, width) for d_model in range(1, 97) for width in range(1, 2 * d_model + 1)]


def test_a_width_over_d_model_gives_that_width_again():
    assert any(int(d_model * (width / d_model)) != width for d_model, width in PAIRS)
    for d_model, width in PAIRS:
        share = width / d_model
        spec = GatedLinearAttentionSpec(
            d_model=d_model, n_heads=width, expand_key=share, expand_value=share
        )
        assert (spec.key_width, spec.value_width) == (width, width)


def test_rotated_channels_over_channels_give_as_many_again():
    for channels, rotated in PAIRS:
        if rotated <= channels:
            assert rotated_channels(channels, rotated / channels) == rotated
    assert rotated_channels(10, 0.99) == 9  # rounded down as transformers does


@pytest.mark.parametrize(
    ("n_heads", "factor", "message"),
    [
        (3, 1.0, "n_heads=3 does not divide 16, which is d_model=16 times expand_key=1"),
        (0, 1.0, "n_heads=0"),
        (1, 0.0, "Choose n_heads >= 1 that does, or another expand_key"),
        (1, 0.3, "does not divide 4.8"),
    ],
)
def test_what_heads_cannot_share_says_what_to_choose(n_heads, factor, message):
    with pytest.raises(ValueError, match=message):
        check_heads(16, n_heads, expand_key=factor)
