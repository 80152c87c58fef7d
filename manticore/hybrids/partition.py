"""Cutting a component's layers into blocks."""

from collections.abc import Sequence
from itertools import pairwise

Partition = list[list[list[int]]]


def even_partition(num_layers: int, num_blocks: int) -> list[list[int]]:
    """Cut layers into blocks as evenly as possible; B need not divide the depth."""
    check_num_blocks(num_blocks, [num_layers])
    bounds = [round(block * num_layers / num_blocks) for block in range(num_blocks + 1)]
    return [[first, last] for first, last in pairwise(bounds)]


def check_num_blocks(num_blocks: int, depths: Sequence[int] = ()) -> None:
    """At least one block, and at most one for each layer of the shallowest of these components."""
    if not isinstance(num_blocks, int) or num_blocks < 1:
        raise ValueError(f"num_blocks={num_blocks!r}: give a whole number of at least 1.")
    if depths and num_blocks > min(depths):
        raise ValueError(
            f"num_blocks={num_blocks} does not fit components of {list(depths)} layers. "
            f"Choose 1 to {min(depths)}, the depth of the shallowest."
        )


def check_partition(
    ranges: list[list[int]], num_layers: int, num_blocks: int, component: int
) -> None:
    """Every layer in order and exactly once; an empty range marks a branch that was pruned."""
    where = f"partition of component {component} ({ranges})"
    if len(ranges) != num_blocks:
        raise ValueError(
            f"The {where} has {len(ranges)} ranges for num_blocks={num_blocks}. Give one for each "
            "block."
        )
    expected = 0
    for first, last in ranges:
        if first != expected or last < first:
            problem = "repeats" if first < expected or last < first else "skips"
            raise ValueError(
                f"The {where} {problem} a layer: block [{first}, {last}] should start at layer "
                f"{expected}. Ranges are [first, last) and follow each other from 0 to "
                f"{num_layers}."
            )
        expected = last
    if expected != num_layers:
        raise ValueError(
            f"The {where} ends at layer {expected}, but the component has {num_layers} layers."
        )
