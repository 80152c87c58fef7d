"""Which of the shared checks of families belong to the slow tests."""

from __future__ import annotations

import pytest

# Every configuration of these is checked each time: the first families, those with a fault in
# transformers or a cache of their own, and ours. The others are much like them, so the fast tests
# take one configuration of each, and the slow tests the other two.
ALWAYS = frozenset(
    [
        "gpt_neox",
        "gpt2",
        "gpt_neo",
        "llama",
        "mamba",
        "opt",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "falcon",
        "olmo2",
        "mamba2",
        "falcon_mamba",
        "jamba",
        "bamba",
        "granitemoehybrid",
        "falcon_h1",
        "lfm2",
        "qwen3_next",
        "olmo_hybrid",
        "nemotron_h",
        "kimi_linear",
        "rwkv",
        "manticore_mixers",
        "manticore_converted",
    ]
)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the second and third configuration of the other families as slow."""
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if given.get("variant", 0) and given.get("family", "llama") not in ALWAYS:
            item.add_marker(pytest.mark.slow)
