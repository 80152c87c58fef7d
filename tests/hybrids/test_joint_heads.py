"""All heads as one product give the same logits and gradients as heads that are called."""

import pytest
import torch

from tests.hybrids.pairs import build, ids_for, largest_difference, members, random_rows

# Enough tokens that joining the heads pays: more than the widths of the components together.
MANY = (4, 40)


def hybrid_and_twin(count=3, **options):
    """Two equal hybrids; the second one's heads are called, because hooks sit on them."""
    pair = []
    for hooked in (False, True):
        hybrid = build(members(count), num_blocks=2, **options)
        hybrid.set_mixture(random_rows(2, count))
        for head in hybrid.heads if hooked else ():
            head.register_forward_hook(lambda head, inputs, output: None)
        pair.append(hybrid)
    return pair


@pytest.mark.parametrize("options", [{}, {"router": False}, {"mixing": "shared"}])
def test_joined_heads_give_the_logits_of_single_heads(options):
    joined, single = hybrid_and_twin(**options)
    ids = ids_for(*MANY)
    with torch.no_grad():
        assert largest_difference(joined(ids).logits, single(ids).logits) < 1e-5


def test_joined_heads_give_the_gradients_of_single_heads():
    joined, single = hybrid_and_twin()
    ids = ids_for(*MANY)
    for hybrid in (joined, single):
        hybrid(ids, labels=ids).loss.backward()
    truth = dict(single.named_parameters())
    compared = 0
    for name, parameter in joined.named_parameters():
        if truth[name].grad is not None:
            assert largest_difference(parameter.grad, truth[name].grad) < 1e-5, name
            compared += 1
    assert compared > 20


def sizes_of_logits(hybrid, monkeypatch):
    """How many tensors of the vocabulary's size the linear maps of one forward make."""
    made = []
    original = torch.nn.functional.linear

    def linear(*arguments):
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    with torch.no_grad():
        hybrid(ids_for(*MANY))
    monkeypatch.undo()
    return sum(tensor.shape[-1] == hybrid.config.vocab_size for tensor in made)


def test_joined_heads_make_one_tensor_of_the_vocabularys_size(monkeypatch):
    joined, single = hybrid_and_twin()
    assert sizes_of_logits(joined, monkeypatch) == 1
    assert sizes_of_logits(single, monkeypatch) == 3


def test_heads_with_a_bias_are_called():
    hybrid, generator = build(num_blocks=2), torch.Generator().manual_seed(0)
    for head in hybrid.heads:
        head.bias = torch.nn.Parameter(torch.randn(head.out_features, generator=generator))
    ids = ids_for(*MANY)
    with torch.no_grad():
        biased = hybrid(ids).logits
        bias = [head.bias.clone() for head in hybrid.heads]
        for head in hybrid.heads:
            head.bias = None
        output = hybrid.model(ids)
        scores = hybrid.model.rows.log_head_row(1) + hybrid.model.router(output.last_hidden_state)
        expected = hybrid(ids).logits + scores.softmax(dim=-1) @ torch.stack(bias)
    assert largest_difference(biased, expected) < 1e-5


def test_a_hook_in_front_of_a_head_is_obeyed():
    hybrid, plain = build(num_blocks=2), build(num_blocks=2)
    hybrid.heads[0].register_forward_pre_hook(lambda head, inputs: (2 * inputs[0],))
    ids = ids_for(*MANY)
    with torch.no_grad():
        plain.heads[0].weight.mul_(2)
        assert largest_difference(hybrid(ids).logits, plain(ids).logits) < 1e-5


def test_half_precision_keeps_the_dtype_of_single_heads():
    joined, single = (hybrid.to(torch.bfloat16) for hybrid in hybrid_and_twin(count=2))
    for hybrid in (joined, single):
        hybrid.model.rows.float()
    ids = ids_for(*MANY)
    with torch.no_grad():
        one, other = joined(ids).logits, single(ids).logits
    assert one.dtype == other.dtype == torch.float32  # Mamba's own model casts its logits
    assert largest_difference(one, other) < 0.05 * other.abs().max()
