"""Blocks that one component runs alone, one after the other, run as one range of its layers."""

import torch

from manticore.models import pretrained
from tests.hybrids.pairs import build, ids_for, largest_difference, member, members, one_hot


def ranges_run(hybrid, monkeypatch, **options):
    """Layer ranges of one forward pass, in order."""
    ranges = []
    original = pretrained.run_layers

    def run_layers(base, hidden, lo, hi, **arguments):
        ranges.append((lo, hi))
        return original(base, hidden, lo, hi, **arguments)

    monkeypatch.setattr(pretrained, "run_layers", run_layers)
    with torch.no_grad():
        hybrid(ids_for(), **options)
    monkeypatch.undo()
    return ranges


def test_a_path_through_one_component_is_one_range(monkeypatch):
    hybrid = build(num_blocks=4)
    hybrid.set_mixture(one_hot(4, 2, 0))
    depth = member(0).config.num_hidden_layers
    assert ranges_run(hybrid, monkeypatch) == [(0, depth)]


def test_a_path_that_switches_or_mixes_ends_a_range(monkeypatch):
    hybrid = build(num_blocks=4)
    first, second = hybrid.config.partition
    hybrid.set_mixture(one_hot(4, 2, [0, 0, 1, 1]))
    switched = [(first[0][0], first[1][1]), (second[2][0], second[3][1])]
    assert ranges_run(hybrid, monkeypatch) == switched
    rows = one_hot(4, 2, [0, 0, 0, 0])
    rows[3] = 0.5
    hybrid.set_mixture(rows, embed=torch.tensor([1.0, 0.0]))
    assert ranges_run(hybrid, monkeypatch) == [
        (first[0][0], first[2][1]),
        tuple(first[3]),
        tuple(second[3]),
    ]


def test_every_boundary_is_there_when_hidden_states_are_asked_for(monkeypatch):
    hybrid = build(num_blocks=4)
    hybrid.set_mixture(one_hot(4, 2, 1))
    assert len(ranges_run(hybrid, monkeypatch, output_hidden_states=True)) == 4
    with torch.no_grad():
        output = hybrid(ids_for(), output_hidden_states=True)
        assert len(output.hidden_states) == 5
        assert largest_difference(output.logits, hybrid(ids_for()).logits) < 1e-5


def test_a_path_that_switches_is_the_same_with_and_without_gradients():
    hybrid = build(members(3), num_blocks=3)
    hybrid.set_mixture(one_hot(3, 3, [2, 0, 1]))
    with torch.no_grad():
        without = hybrid(ids_for()).logits
    assert largest_difference(without, hybrid(ids_for()).logits) < 1e-5
