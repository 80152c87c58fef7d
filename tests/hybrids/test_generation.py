"""Generation with the composite cache equals generation without any, token by token."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.hybrids.pairs import build, ids_for, largest_difference, member, one_hot, padded

NEW = 64
CLOSE = 1e-4  # a cached step and a full forward sum in different orders
SOFT = torch.tensor([[0.6, 0.4], [0.35, 0.65]])


def hybrid_of(kind: str):
    components = [member(0, max_position_embeddings=128), member(1)]
    if kind == "shared":
        return build(components, num_blocks=2, mixing="shared")
    hybrid = build(components, num_blocks=2)
    if kind == "streams":
        hybrid.set_mixture(SOFT)
        return hybrid
    hybrid.set_mixture(one_hot(2, 2, [0, 1]))
    return hybrid.prune() if kind == "pruned" else hybrid


every_kind = pytest.mark.parametrize("kind", ["streams", "shared", "pruned"])
two_kinds = pytest.mark.parametrize("kind", ["streams", "pruned"])


def batch() -> dict[str, Tensor]:
    rows = [ids_for(1, length, seed=length)[0] for length in (7, 3)]
    ids, mask = padded(rows, "left")
    return {"input_ids": ids, "attention_mask": mask}


def generate(hybrid, inputs: dict[str, Tensor], use_cache: bool, new_tokens: int = NEW, **options):
    torch.manual_seed(0)  # transformers samples from the global stream
    return hybrid.generate(
        **inputs,
        use_cache=use_cache,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def assert_cache_changes_nothing(hybrid, inputs, **options) -> None:
    cached, full = (generate(hybrid, inputs, use, **options) for use in (True, False))
    assert cached.sequences.shape[1] == inputs["input_ids"].shape[1] + NEW
    assert torch.equal(cached.sequences, full.sequences)
    assert cached.past_key_values.get_seq_length() == cached.sequences.shape[1] - 1
    for step, (ours, truth) in enumerate(zip(cached.logits, full.logits, strict=True)):
        assert largest_difference(ours, truth) < CLOSE, step


@every_kind
def test_greedy_search_over_a_left_padded_batch(kind):
    hybrid, inputs = hybrid_of(kind), batch()
    assert_cache_changes_nothing(hybrid, inputs, do_sample=False)
    short = {"input_ids": inputs["input_ids"][1:, -3:]}
    alone, together = (generate(hybrid, x, True, new_tokens=16) for x in (short, inputs))
    assert torch.equal(alone.sequences[0, -16:], together.sequences[1, -16:])


@every_kind
def test_sampling_several_sequences_with_one_seed(kind):
    options = {"do_sample": True, "num_return_sequences": 2, "top_k": 0, "temperature": 1.5}
    hybrid, inputs = hybrid_of(kind), batch()
    assert_cache_changes_nothing(hybrid, inputs, **options)
    sequences = generate(hybrid, inputs, True, **options).sequences
    assert len({tuple(row.tolist()) for row in sequences}) == 4


@every_kind
def test_beam_search(kind):
    hybrid = hybrid_of(kind)
    assert_cache_changes_nothing(
        hybrid, batch(), do_sample=False, num_beams=3, num_return_sequences=2
    )


@every_kind
def test_a_returned_cache_continues_with_several_tokens(kind):
    hybrid, ids = hybrid_of(kind), ids_for(2, 24)
    with torch.no_grad():
        truth = hybrid(ids, use_cache=False).logits
        cache, pieces, start = None, [], 0
        for length in (9, 1, 8, 1, 5):
            end = start + length
            output = hybrid(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache, start = output.past_key_values, end
            pieces.append(output.logits)
        assert cache.get_seq_length() == 24
        assert largest_difference(torch.cat(pieces, 1), truth) < CLOSE


@two_kinds
def test_a_chat_goes_on_from_the_cache_of_the_last_turn(kind):
    hybrid, first, second = hybrid_of(kind), ids_for(1, 6), ids_for(1, 5, seed=1)
    turn = generate(hybrid, {"input_ids": first}, True, new_tokens=8)
    prompt = {"input_ids": torch.cat([turn.sequences, second], 1)}
    resumed = generate(hybrid, prompt, True, new_tokens=8, past_key_values=turn.past_key_values)
    assert torch.equal(resumed.sequences, generate(hybrid, prompt, False, new_tokens=8).sequences)


def count_calls(hybrid) -> Counter:
    calls: Counter = Counter()
    for k, component in enumerate(hybrid.model.components):
        for index, layer in enumerate(component.layers):
            layer.register_forward_hook(lambda *_, key=(k, index): calls.update([key]))
    for name, maps in (("T", hybrid.model.translators.pairs()), ("h", enumerate(hybrid.heads))):
        for *place, module in maps:
            module.register_forward_hook(lambda *_, key=(name, *place): calls.update([key]))
    return calls


def test_branches_without_weight_are_never_called_and_keep_no_cache():
    hybrid = hybrid_of("switching")  # neox layers 0-1, then mamba layers 2-4
    calls = count_calls(hybrid)
    with torch.no_grad():
        hybrid(ids_for())
    used = {(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)}
    assert {key for key in calls if isinstance(key[0], int)} == used
    assert all(calls[key] == 1 for key in used)

    calls.clear()
    cache = generate(hybrid, batch(), True, new_tokens=5).past_key_values
    layers = {
        (k, index): layer
        for k, held in enumerate(cache.component_layers)
        for index, layer in enumerate(held)
    }
    assert all(calls[key] == (5 if key in used else 0) for key in layers)
    assert {key for key, layer in layers.items() if is_filled(layer)} == used
    heads = {key for key in calls if key[0] == "h"}
    assert heads == {("h", 1)}


def test_translators_of_skipped_streams_are_never_called():
    hybrid = build([member(0), member(1), member(3)], num_blocks=2)
    hybrid.set_mixture(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    # A hook makes the hybrid call the module instead of folding the weight into its matrix.
    calls = count_calls(hybrid)
    with torch.no_grad():
        hybrid(ids_for())
    # At boundary 0 the streams 0 and 1 read each other, at boundary 1 stream 1 reads stream 0.
    translators = {key[1:] for key in calls if key[0] == "T"}
    assert translators == {(0, 0, 1), (0, 1, 0), (1, 0, 1)}


@two_kinds
@pytest.mark.parametrize(
    "options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": member(3)}]
)
def test_decoding_that_rolls_back_is_refused(kind, options):
    with pytest.raises(ValueError, match="stateful"):
        hybrid_of(kind).generate(ids_for(1, 5), max_new_tokens=4, **options)


def test_a_cache_cannot_be_cropped():
    with torch.no_grad():
        cache = hybrid_of("streams")(ids_for(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="recurrent states hold no past tokens"):
        cache.crop(3)


def test_generation_past_a_position_table_says_so():
    hybrid = build([member(2, max_position_embeddings=10), member(1)], num_blocks=2)
    with pytest.raises(ValueError, match=r"A sequence of 11 tokens .* table of 10 positions"):
        hybrid.generate(ids_for(1, 6), max_new_tokens=8, min_new_tokens=8)


def is_filled(layer) -> bool:
    held = [value for value in vars(layer).values() if isinstance(value, Tensor)]
    held += [
        state
        for value in vars(layer).values()
        if isinstance(value, dict)
        for state in value.values()
        if isinstance(state, Tensor)
    ]
    return bool(sum(tensor.numel() for tensor in held))
