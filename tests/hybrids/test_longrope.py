"""A component whose rotary angles depend on the length: generation equals runs without a cache."""

import pytest
import torch

from manticore.models.family import RefusedError
from tests.hybrids.pairs import build, ids_for, largest_difference, member, one_hot, padded
from tests.models.attention_families import longrope
from tests.models.tiny import tiny

BORDER, NEW = 12, 10
CLOSE = 1e-4  # a cached step and a full forward sum in different orders


def phi3():
    return tiny("phi3", **longrope(BORDER))


def hybrid_of(kind):
    hybrid = build([phi3(), member(1)], num_blocks=2)
    if kind == "one-hot":
        hybrid.set_mixture(one_hot(2, 2, 0))
    return hybrid


def batch():
    rows = [ids_for(1, length, seed=length)[0] for length in (BORDER + 1, BORDER - 3, 4)]
    ids, mask = padded(rows, "left")
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, inputs, new=NEW, **options):
    return model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=new,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


@pytest.mark.parametrize("kind", ["one-hot", "soft"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generating_over_the_border_costs_no_accuracy(kind, beams):
    hybrid, inputs = hybrid_of(kind), batch()
    ours, truth = (
        generate(hybrid, inputs, use_cache=cached, num_beams=beams) for cached in (True, False)
    )
    assert torch.equal(ours.sequences, truth.sequences)
    for step, (got, wanted) in enumerate(zip(ours.logits, truth.logits, strict=True)):
        assert largest_difference(got, wanted) < CLOSE, step


@torch.no_grad()
def test_every_generated_token_is_the_one_that_phi3_gives_alone():
    stock, inputs = phi3(), batch()
    ours = generate(hybrid_of("one-hot"), inputs)
    vocab = stock.config.vocab_size
    for row, mask in zip(range(3), inputs["attention_mask"], strict=True):
        tokens = ours.sequences[row, int((mask == 0).sum()) :]
        for step, logits in enumerate(ours.logits):
            wanted = stock(tokens[None, : len(tokens) - NEW + step]).logits[0, -1]
            assert largest_difference(logits[row, :vocab], wanted) < CLOSE, step


def test_the_cache_is_made_anew_once_for_a_single_row():
    hybrid, lengths = hybrid_of("soft"), []
    hybrid.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    generate(hybrid, {"input_ids": ids_for(1, BORDER - 2)}, new=6)
    assert lengths == [BORDER - 2, 1, 1, BORDER + 1, 1, 1]


def test_a_chat_goes_on_over_the_border_from_the_cache_of_the_last_turn():
    hybrid = hybrid_of("soft")
    turn = generate(hybrid, {"input_ids": ids_for(1, 5)}, new=3)
    prompt = {"input_ids": torch.cat([turn.sequences, ids_for(1, BORDER, seed=1)], 1)}
    resumed = generate(hybrid, prompt, past_key_values=turn.past_key_values)
    assert torch.equal(resumed.sequences, generate(hybrid, prompt, use_cache=False).sequences)


@torch.no_grad()
def test_a_prompt_of_embeddings_ends_at_the_border():
    hybrid, ids = hybrid_of("soft"), ids_for(1, BORDER - 3)
    embedded = {"inputs_embeds": hybrid.model.embed(ids)}
    made = generate(hybrid, embedded, new=4).sequences
    assert torch.equal(made, generate(hybrid, {"input_ids": ids}, new=4).sequences[:, -4:])
    with pytest.raises(RefusedError, match="cache was filled by the short ones"):
        generate(hybrid, embedded, new=5)


@torch.no_grad()
def test_a_cache_that_does_not_fit_any_more_is_refused():
    hybrid, ids = hybrid_of("soft"), ids_for(1, BORDER + 6)
    short = hybrid(ids[:, : BORDER - 1], use_cache=True).past_key_values
    with pytest.raises(RefusedError, match="cache was filled by the short ones"):
        hybrid(ids[:, BORDER - 1 :], past_key_values=short)
    long = hybrid(ids[:, : BORDER + 2], use_cache=True).past_key_values
    rest = hybrid(ids[:, BORDER + 2 :], past_key_values=long).logits
    assert largest_difference(rest, hybrid(ids).logits[:, BORDER + 2 :]) < CLOSE
    hybrid.set_mixture(one_hot(2, 2, 1))  # the component with a border does not run
    short = hybrid(ids[:, : BORDER - 1], use_cache=True).past_key_values
    hybrid(ids[:, BORDER - 1 :], past_key_values=short)


@torch.no_grad()
def test_dynamic_angles_are_refused_past_their_limit():
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    parts = [tiny("llama", rope_parameters=dynamic, max_position_embeddings=BORDER), member(1)]
    hybrid = build(parts, num_blocks=2)
    hybrid(ids_for(1, BORDER))
    with pytest.raises(ValueError, match=r"13 tokens .* angles change with the length"):
        hybrid(ids_for(1, BORDER + 1))
    with pytest.raises(ValueError, match=r"13 tokens .* angles change with the length"):
        hybrid.generate(ids_for(1, BORDER - 2), max_new_tokens=8, min_new_tokens=8)
    hybrid.set_mixture(one_hot(2, 2, 1))
    hybrid(ids_for(1, BORDER + 1))
