"""Refuse a saved adapter of other shapes before any weight is written."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from manticore.adapters.more.config import MoReConfig


def refuse_other_shapes(model: nn.Module, config: MoReConfig, state: dict[str, Tensor]) -> None:
    """Have the coming `model.load_state_dict(state)` raise before it copies anything.

    torch copies what fits and complains at the end. The check waits for the call itself, because
    PEFT drops entries of other shapes before it when asked to (`ignore_mismatched_sizes=True`).
    """
    expected = {key: value.shape for key, value in model.state_dict().items() if key in state}
    other = [key for key in expected if ".more_" in key and state[key].shape != expected[key]]
    if not other:
        return

    def check(_: nn.Module, loaded: dict[str, Any], *__: Any) -> None:
        handle.remove()
        found = [key for key in other if key in loaded]
        if found:
            raise ValueError(_message(found, loaded, expected, config))

    handle = model.register_load_state_dict_pre_hook(check)


def _message(
    keys: list[str], loaded: dict[str, Tensor], expected: dict[str, Any], config: MoReConfig
) -> str:
    lines = [
        f"  {key}: saved {tuple(loaded[key].shape)}, here {tuple(expected[key])}"
        for key in keys[:5]
    ]
    more = f"\n  and {len(keys) - 5} more" if len(keys) > 5 else ""
    return (
        f"The saved adapter has other shapes than nblocks={config.nblocks}, "
        f"block_rank={config.block_rank} gives this model (size mismatch):\n"
        + "\n".join(lines)
        + more
        + "\nLoad it with the configuration it was saved with, and on a model of the same sizes."
    )
