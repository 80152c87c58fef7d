"""One token through the layers themselves gives what the base model around them gives."""

import pytest
import torch

from manticore.models import token_step
from manticore.models.component_cache import cache_layers
from manticore.models.pretrained import embed_tokens, enter, run_layers, split_causal_lm
from manticore.models.stage_cache import StageCache
from manticore.models.varied_shapes import VARIED
from tests.models.tiny import ALL_TINY, tiny, token_ids

every_model = pytest.mark.parametrize(("family", "variant"), ALL_TINY)
PROMPT, NEW = 7, 3
LEFT_TO_THE_BASE_MODEL = ("gpt_neo", "falcon", "gemma2", "gemma3_text", "olmo3", "gptj", "codegen")


def decode(model, ids, directly):
    """Hidden states of the new tokens, decoded in two stages one token at a time."""
    base, _ = split_causal_lm(model)
    depth, layers, outputs = base.config.num_hidden_layers, cache_layers(base.config), []
    for start, end in [(0, PROMPT), *((t, t + 1) for t in range(PROMPT, ids.shape[1]))]:
        positions = torch.arange(start, end)[None]
        hidden = enter(base, embed_tokens(base, ids[:, start:end]), positions)
        rotary = token_step.rotary_table(base, hidden, positions)
        for lo, hi in ((0, 1), (1, depth)):
            cache = StageCache(layers[lo:hi], lo, start)
            shared = {"position_ids": positions, "cache": cache, "final_norm": hi == depth}
            if directly and start >= PROMPT:
                hidden = token_step.run_token(base, hidden, lo, hi, rotary=rotary, **shared)
            else:
                hidden = run_layers(base, hidden, lo, hi, attention_mask=None, **shared)
        outputs.append(hidden)
    return torch.cat(outputs[1:], dim=1)


@every_model
@torch.no_grad()
def test_a_token_through_the_layers_equals_one_through_the_base_model(family, variant):
    model = tiny(family, variant=variant)
    if not token_step.takes_token(split_causal_lm(model)[0]):
        # Tuples instead of tensors, several masks or tables; windows and alibi need a mask.
        is_left = family in (*LEFT_TO_THE_BASE_MODEL, *VARIED)
        assert is_left or model.config.sliding_window
        return
    ids = token_ids(model, 2, PROMPT + NEW)
    expected = decode(model, ids, directly=False)
    # The same layers in the same order: nothing is left to round differently.
    assert torch.equal(decode(model, ids, directly=True), expected)


def test_only_one_unpadded_token_without_gradients_is_plain():
    one, two = torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long)
    ones, padded = torch.ones(2, 5), torch.tensor([[0.0, 1, 1], [1, 1, 1]])
    assert not token_step.is_plain_token(one, None)  # gradients are on
    with torch.no_grad():
        assert token_step.is_plain_token(one, None)
        assert token_step.is_plain_token(one, ones)
        assert not token_step.is_plain_token(two, None)
        assert not token_step.is_plain_token(one, padded)


@torch.no_grad()
def test_another_attention_is_left_to_the_base_model():
    base = tiny("llama").base_model
    assert token_step.takes_token(base)
    base.config._attn_implementation = "flex_attention"
    assert not token_step.takes_token(base)
