"""Random streams are named, stable and independent."""

import numpy as np
import pytest
import torch

from manticore.seeds import derive_seed, numpy_generator, torch_generator


def test_a_stream_never_changes():
    # sha256 of '[0, "search", 3]', first 8 bytes, shifted right by one; worked out with sha256sum.
    assert derive_seed(0, "search", 3) == 3288344493886962228


def test_streams_with_different_names_differ():
    names = [(), ("a",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1, "a"), ('a", "b',)]
    seeds = [derive_seed(seed, *name) for seed in (0, 1, -1) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(
        torch.rand(3, generator=torch_generator(1, "x")),
        torch.rand(3, generator=torch_generator(1, "x")),
    )
    assert numpy_generator(1, "x").random() == numpy_generator(1, "x").random()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("part", [True, 1.5, None])
def test_a_name_that_is_no_word_or_number_is_refused(part):
    with pytest.raises(ValueError, match="made of integers and strings"):
        derive_seed(0, part)
