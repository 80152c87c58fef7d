"""Where angles or windows depend on the length, a component is right or refused."""

import pytest
import torch
from transformers import DynamicCache

from manticore.models.component_lengths import check_length, longest_sequence
from manticore.models.rotary_lengths import crosses, longrope_border
from manticore.models.supported import UnsupportedFamilyError, check_supported
from tests.models.attention_families import longrope
from tests.models.test_components import maximal, pad, run_in_stages
from tests.models.tiny import MAX_POSITIONS, tiny, tiny_config, token_ids

BORDER = 12
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_each_row_has_the_angles_that_it_has_alone(side):
    model = tiny("phi3", **longrope(BORDER))
    lengths = (BORDER + 5, BORDER, BORDER + 1, 3)
    rows = [token_ids(model, 1, length, seed=length)[0] for length in lengths]
    ids, mask, positions = pad(rows, side, model.config.pad_token_id)
    ours = run_in_stages(model, ids, [0, 1, 4], mask, positions)
    stock = model(ids, attention_mask=mask, position_ids=positions).logits
    for row, kept, got, theirs in zip(rows, mask.bool(), ours, stock, strict=True):
        alone = model(row[None]).logits[0]
        assert maximal(got[kept] - alone) < 1e-4
        # The longest row decides in transformers; if this is mended, drop `RowRotary`.
        assert (maximal(theirs[kept] - alone) < 1e-4) == (len(row) > BORDER)


def test_a_border_is_crossed_by_the_token_behind_it_and_only_with_a_past():
    def positions(first, last):
        return torch.arange(first, last + 1)[None]

    assert crosses(BORDER, positions(BORDER, BORDER))
    assert crosses(BORDER, positions(3, BORDER + 4))
    assert not crosses(BORDER, positions(3, BORDER - 1))
    assert not crosses(BORDER, positions(0, BORDER + 4))
    assert not crosses(BORDER, positions(BORDER + 1, BORDER + 4))
    assert crosses(BORDER, torch.tensor([[3, 4], [BORDER - 1, BORDER]]))


def test_dynamic_angles_end_at_the_limit():
    config = tiny_config("llama", **DYNAMIC)
    assert longest_sequence(config) == MAX_POSITIONS
    check_length(config, MAX_POSITIONS)
    with pytest.raises(ValueError, match=r"65 tokens .* angles change .* fixed angles"):
        check_length(config, MAX_POSITIONS + 1)


def test_longrope_is_free_where_we_see_the_rotary_module_and_ends_at_its_border_elsewhere():
    config = tiny_config("phi3", **longrope(BORDER))
    assert (longrope_border(config), longest_sequence(config)) == (BORDER, None)
    check_length(config, 1_000)
    rope = longrope(BORDER)["rope_parameters"] | {"original_max_position_embeddings": BORDER}
    config = tiny_config("gemma2", rope_parameters=rope)
    assert longest_sequence(config) == BORDER
    with pytest.raises(ValueError, match=r"13 tokens .* angles change"):
        check_length(config, BORDER + 1)


@torch.no_grad()
def test_the_remembered_length_of_dynamic_angles_is_still_a_fault_of_transformers():
    model = tiny("llama", **DYNAMIC)
    ids = token_ids(model, 1, MAX_POSITIONS + 20)
    first = model(ids[:, : MAX_POSITIONS + 2]).logits
    model(ids)
    again = model(ids[:, : MAX_POSITIONS + 2]).logits
    assert maximal(again - first) > 1e-3  # if this is mended, drop the limit


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "phi3"])
def test_a_window_of_one_token_is_refused_because_the_cache_keeps_all(family):
    used = {"use_sliding_window": True, "max_window_layers": 0} if family == "qwen2" else {}
    check_supported(tiny_config(family, sliding_window=2, **used))
    with pytest.raises(UnsupportedFamilyError, match=r"sliding_window=1: .* 2 or more"):
        check_supported(tiny_config(family, sliding_window=1, **used))


@torch.no_grad()
def test_a_window_of_one_token_is_still_a_fault_of_transformers():
    model = tiny("mistral", sliding_window=1)
    ids, cache, pieces = token_ids(model, 1, 9), DynamicCache(config=model.config), []
    whole = model(ids, use_cache=False).logits
    for t in range(9):
        pieces.append(model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits)
    assert maximal(torch.cat(pieces, 1) - whole) > 1e-1  # if this is mended, drop the refusal
