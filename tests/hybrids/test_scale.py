"""Hybrids of real sizes: built without memory, counted exactly."""

import time

import pytest
import torch
from transformers import GPTNeoXConfig, MambaConfig

from manticore import ManticoreConfig, ManticoreForCausalLM
from manticore.hybrids.costs import hybrid_cache_bytes, hybrid_cost

MILLION = 1e6
# Parameters between Pythia-410M and Mamba-370M, in millions, by blocks.
PROJECTORS = {
    "shared": {1: 4.2, 12: 50.4, 24: 100.8},
    "streams": {1: 4.2, 12: 27.3, 24: 52.5},
}


def config_of(mixing: str, num_blocks: int) -> ManticoreConfig:
    pythia = GPTNeoXConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        vocab_size=50_304,
        tie_word_embeddings=False,
    )
    mamba = MambaConfig(
        hidden_size=1024, num_hidden_layers=48, vocab_size=50_280, tie_word_embeddings=True
    )
    return ManticoreConfig(components=[pythia, mamba], num_blocks=num_blocks, mixing=mixing)


@pytest.mark.parametrize("mixing", list(PROJECTORS))
@pytest.mark.parametrize("num_blocks", [1, 12, 24])
def test_pythia_410m_with_mamba_370m_builds_in_seconds(mixing: str, num_blocks: int) -> None:
    start = time.process_time()
    with torch.device("meta"):
        hybrid = ManticoreForCausalLM(config_of(mixing, num_blocks))
    assert time.process_time() - start < 20  # about one second on an idle core
    assert {p.device.type for p in hybrid.parameters()} == {"meta"}
    cost = hybrid_cost(hybrid.config, seq_len=1024)
    assert round(cost.stored["projectors"] / MILLION, 1) == PROJECTORS[mixing][num_blocks]
    assert cost.stored["router"] == (2 * 2048 + 2 if mixing == "streams" else 0)
    assert cost.parameters == hybrid.num_parameters()
    projectors = sum(p.numel() for p in hybrid.projector_parameters())
    assert projectors == cost.stored["projectors"] + cost.stored["router"]


def test_sizes_of_the_pair_are_known() -> None:
    config = config_of("streams", 12)
    cost = hybrid_cost(config, seq_len=1024)
    # 405.3 M (Pythia-410M) and 371.5 M (Mamba-370M), tables cut to 50,280 rows.
    components = cost.stored["components"] + cost.stored["heads"]
    assert components == 405_334_016 - 2 * 24 * 1024 + 371_516_416
    assert 0.02 < cost.projector_flops_share < 0.04
    cache = hybrid_cache_bytes(config, 32_768, dtype=torch.bfloat16)
    assert cache.kv == 24 * 2 * 1024 * 32_768 * 2
    assert cache.state == 48 * 2048 * (4 * 2 + 16 * 4)
