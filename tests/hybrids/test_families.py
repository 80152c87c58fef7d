"""Hybrids of unlike families: each component exactly, and the whole by every road."""

import pytest
import torch

from manticore.evaluation.conformance import doctor
from manticore.evaluation.conformance.small_models import small_model
from tests.hybrids.pairs import VOCAB_SIZE, build, ids_for, largest_difference, one_hot
from tests.models.tiny import tiny

MIXES = (
    ("qwen2", "mistral"),
    ("gemma2", "mamba"),
    ("phi", "gpt2", "qwen3"),
    ("gemma3_text", "falcon", "llama"),
    ("olmo2", "phi3", "gpt_neo", "mamba"),
    ("mamba2", "gpt_neox"),
    ("falcon_h1", "lfm2"),
    ("jamba", "falcon_mamba", "llama"),
    ("bamba", "granitemoehybrid", "olmo_hybrid"),
    ("qwen3_next", "nemotron_h", "kimi_linear", "gpt2"),
    ("opt", "jamba"),
    ("gpt2", "opt", "mamba2", "opt"),
    ("cohere", "stablelm"),
    ("manticore_mixers", "cohere", "mamba"),
    ("manticore_converted", "llama"),
    ("stablelm", "manticore_mixers", "manticore_converted", "gemma3_text"),
)
every_mix = pytest.mark.parametrize("families", MIXES, ids="+".join)


def parts(families):
    """One tiny model of each family; the variants differ, so that windows and ties are there."""
    return [
        small_model(family, configuration=index % 3)
        if family == "manticore_converted"
        else tiny(family, variant=index % 3)
        for index, family in enumerate(families)
    ]


@every_mix
@torch.no_grad()
def test_all_weight_on_one_component_gives_that_component(families):
    models, ids = parts(families), ids_for()
    expected = [model(ids).logits[..., :VOCAB_SIZE] for model in models]
    hybrid = build(parts(families), num_blocks=2)
    for k, logits in enumerate(expected):
        hybrid.set_mixture(one_hot(2, len(models), k))
        assert largest_difference(hybrid(ids).logits[..., :VOCAB_SIZE], logits) < 1e-5


@every_mix
def test_the_mixture_computes_the_same_by_every_road(families):
    report = doctor(build(parts(families), num_blocks=2))
    assert report.passed, str(report)
